"""The error body and every line of its table that one request can provoke."""

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs
from tests.api.api_service import ADMIN, RunningService, running_service

from steadyhand.api import ApiOptions
from steadyhand.errors import RetryLater, StoreError, StoreUnavailable

JSON = {"content-type": "application/json"}
KEYS = {"type", "title", "status", "detail", "code", "request_id", "errors", "error"}


def check(reply: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    body: dict[str, Any] = reply.json()
    assert set(body) == KEYS
    assert body["status"] == status
    assert body["code"] == body["error"]["code"] == code
    assert isinstance(body["detail"], str)
    assert body["error"]["message"] == body["detail"]
    assert body["request_id"] == reply.headers["x-request-id"]
    native = reply.request.url.path.startswith(("/v1/jobs", "/v1/agents", "/v1/workspaces", "/nowhere"))
    expected = "application/problem+json" if native else "application/json"
    assert reply.headers["content-type"] == expected
    return body


@pytest.mark.parametrize("path", ["/execute", "/v1/jobs", "/v1/chat/completions", "/v1/responses"])
def test_what_is_not_json_is_400(client: httpx2.Client, path: str) -> None:
    for raw in (b"{", b"", b"\xff\xfe", b"{'a': 1}", b'{"a": "\x01"}', b'{"a": 1} x'):
        check(client.post(path, content=raw, headers=JSON), 400, "malformed_json")


@pytest.mark.parametrize("path", ["/execute", "/v1/jobs", "/v1/chat/completions"])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_a_bomb_of_nesting_is_refused(client: httpx2.Client, path: str, opening: bytes) -> None:
    for depth in (101, 900, 200_000):
        reply = client.post(path, content=opening * depth + b"1" + b"]" * depth, headers=JSON)
        assert reply.status_code in (400, 422), reply.text
    nested = b'{"prompt":"x","agent":"claude","metadata":' + b'{"a":' * 500 + b"1" + b"}" * 501
    check(client.post("/execute", content=nested, headers=JSON), 422, "invalid_field")


def test_a_number_with_thousands_of_digits_is_422(client: httpx2.Client) -> None:
    raw = b'{"prompt":"x","agent":"claude","timeout_seconds":' + b"9" * 5000 + b"}"
    check(client.post("/execute", content=raw, headers=JSON), 422, "invalid_field")


def test_unknown_routes_and_methods(client: httpx2.Client) -> None:
    check(client.get("/nowhere"), 404, "not_found")
    reply = client.put("/v1/jobs", json={})
    check(reply, 405, "method_not_allowed")
    check(client.get("/execute"), 405, "method_not_allowed")
    assert client.get("/execute").headers["allow"] == "POST"
    assert client.put("/v1/jobs").headers["allow"] == "GET, POST"
    assert client.put("/v1/jobs/0123456789ab").headers["allow"] == "DELETE, GET"
    check(client.get("/jobs/"), 404, "not_found")


def test_native_bodies_have_to_say_that_they_are_json(client: httpx2.Client) -> None:
    body = b'{"prompt": "say x"}'
    for headers in (
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/json; charset=latin-1"},
    ):
        check(client.post("/v1/jobs", content=body, headers=headers), 415, "unsupported_media_type")
    encoded = {**JSON, "content-encoding": "gzip"}
    check(client.post("/v1/jobs", content=body, headers=encoded), 415, "unsupported_media_type")
    form = {"content-type": "application/x-www-form-urlencoded"}
    check(client.post("/execute", content=b"prompt=x", headers=form), 415, "unsupported_media_type")
    good = {"content-type": "application/json; charset=UTF-8"}
    assert client.post("/v1/jobs", content=body, headers=good).status_code == 202


def test_an_events_type_that_is_not_to_be_had_is_406(client: httpx2.Client) -> None:
    job_id = client.post("/v1/jobs", json={"prompt": "say x"}).json()["id"]
    for accept in ("image/png", "text/html;q=0.9, image/*", "application/json;q=0"):
        reply = client.get(f"/v1/jobs/{job_id}/events", headers={"accept": accept})
        check(reply, 406, "not_acceptable")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    options = ApiOptions(max_body_bytes=1_000, max_openai_body_bytes=2_000)
    with running_service(
        tmp_path_factory.mktemp("small"), options=options, capacity=1, max_queued=1
    ) as found:
        yield found


@pytest.mark.parametrize("path", ["/execute", "/v1/jobs", "/v1/chat/completions", "/v1/responses"])
def test_a_body_above_the_limit_is_413_however_it_comes(small: RunningService, path: str) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 100

    with small.client() as client:
        check(client.post(path, content=b" " * 2_001, headers=JSON), 413, "body_too_large")
        check(client.post(path, content=pieces(), headers=JSON), 413, "body_too_large")


def test_a_declared_length_is_refused_before_the_body_comes(small: RunningService) -> None:
    host, _, port = small.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            f"POST /v1/jobs HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {ADMIN}\r\n"
            "Content-Type: application/json\r\nContent-Length: 99999999\r\n\r\n".encode()
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_full_queue_is_429_with_retry_after(small: RunningService) -> None:
    with small.client() as client:
        held = [client.post("/v1/jobs", json={"prompt": "hold"}).json()["id"] for _ in range(2)]
        reply = client.post("/v1/jobs", json={"prompt": "say x"})
        body = check(reply, 429, "queue_full")
        assert body["error"]["type"] == "rate_limit_error"
        assert int(reply.headers["retry-after"]) >= 1
        chat = {"model": "claude", "messages": [{"role": "user", "content": "say x"}]}
        response = {"model": "claude", "input": "say x"}
        before = small.count()
        for stream in (False, True):
            for path, asked in (("/v1/chat/completions", chat), ("/v1/responses", response)):
                reply = client.post(path, json={**asked, "stream": stream})
                check(reply, 429, "queue_full")
                assert int(reply.headers["retry-after"]) >= 1
                assert "x-should-retry" not in reply.headers  # nothing has started: ask again
        assert small.count() == before
        for job_id in held:
            client.post(f"/v1/jobs/{job_id}/cancel")


def test_a_service_that_stops_is_503_draining_everywhere(tmp_path: Path) -> None:
    async def stopping() -> None:
        raise RetryLater("The service is stopping.", code="draining", retry_after=7)

    with (
        running_service(tmp_path, options=ApiOptions(readiness_check=stopping)) as service,
        service.client() as client,
    ):
        service.loop.call_soon_threadsafe(service.queue.drain)
        reply = client.get("/readyz")
        assert (reply.status_code, reply.json()["code"]) == (503, "draining")
        assert reply.headers["retry-after"] == "7"
        assert client.get("/livez").status_code == 200
        check(client.post("/execute", json={"prompt": "x", "agent": "claude"}), 503, "draining")
        check(client.post("/v1/jobs", json={"prompt": "x"}), 503, "draining")


def test_a_service_whose_store_does_not_answer_says_so_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steadyhand.api.native.health.READY_SECONDS", 0.1)

    async def frozen() -> None:
        await asyncio.Event().wait()

    with (
        running_service(tmp_path, options=ApiOptions(readiness_check=frozen)) as service,
        service.client() as client,
    ):
        reply = client.get("/readyz")
        assert (reply.status_code, reply.json()["code"]) == (503, "unavailable")
        assert reply.json()["detail"] == "The store did not answer within 0.1 s."
        assert client.get("/livez").status_code == 200


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (StoreError("disk at /secret/path is gone"), "The store cannot be read."),
        (StoreUnavailable("The disk is full."), "The disk is full."),
    ],
)
def test_a_service_that_cannot_use_its_store_says_when_to_ask_whether_it_is_ready(
    tmp_path: Path, error: StoreError, detail: str
) -> None:
    async def broken() -> None:
        raise error

    with (
        running_service(tmp_path, options=ApiOptions(readiness_check=broken)) as service,
        service.client() as client,
    ):
        reply = client.get("/readyz")
        assert client.get("/livez").status_code == 200
    assert (reply.status_code, reply.headers.get("retry-after")) == (503, "5")
    assert (reply.json()["code"], reply.json()["detail"]) == ("unavailable", detail)


def test_readiness_asks_the_store_when_nothing_else_is_given(client: httpx2.Client) -> None:
    assert client.get("/readyz").status_code == 200


def test_a_fault_of_ours_says_nothing_of_its_cause(tmp_path: Path) -> None:
    async def broken() -> None:
        raise ValueError("token abc at /secret/path")

    with (
        capture_logs() as logged,
        running_service(tmp_path, options=ApiOptions(readiness_check=broken)) as service,
        service.client() as client,
    ):
        reply = client.get("/readyz")
    assert reply.status_code == 500
    assert [line["request_id"] for line in logged if line["log_level"] == "error"] == [
        reply.json()["request_id"]
    ]
    assert reply.json()["code"] == "internal"
    assert reply.json()["error"]["type"] == "server_error"
    assert reply.json()["request_id"] == reply.headers["x-request-id"]
    for secret in ("abc", "secret", "Traceback", "ValueError"):
        assert secret not in reply.text


def test_no_error_repeats_the_prompt_or_the_key(client: httpx2.Client) -> None:
    body = {"prompt": "a secret prompt", "budget_usd": "a secret prompt", "model": "--a secret prompt"}
    reply = client.post("/v1/jobs", json=body)
    assert reply.status_code == 422
    assert "secret" not in json.dumps(reply.json())
    assert ADMIN not in reply.text
