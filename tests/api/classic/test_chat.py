"""The chat route in the classic profile."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.api.api_service import RunningService, running_service, wait_until

from steadyhand.api import ApiOptions
from steadyhand.redact import Redactor

OPTIONS = ApiOptions(profile="classic", openai_default_agent="recruiter-triage")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running_service(
        tmp_path_factory.mktemp("classic"), options=OPTIONS, capacity=1, max_queued=0
    ) as found:
        yield found


def ask(client: httpx2.Client, *messages: tuple[str, Any], **fields: Any) -> httpx2.Response:
    listed = [{"role": role, "content": content} for role, content in messages]
    return client.post("/v1/chat/completions", json={"model": "any-name", "messages": listed, **fields})


def test_one_prompt_is_made_of_the_sections(client: httpx2.Client, service: RunningService) -> None:
    reply = ask(
        client,
        ("system", "S1"),
        ("user", "U1"),
        ("assistant", "left out"),
        ("system", "S2"),
        ("user", [{"type": "text", "text": "U2"}]),
    )
    assert reply.status_code == 200, reply.text
    assert reply.json()["model"] == "any-name"
    job = service.runner.specs[-1]
    assert job.spec.prompt == "System instructions:\nS1\n\nS2\n\n---\n\nRequest:\nU1\n\nU2"
    assert (job.agent, job.spec.model) == ("recruiter-triage", None)
    assert (job.budget_micros, job.timeout_seconds) == (2_000_000, 900)
    assert reply.json()["usage"]["prompt_tokens"] == 240


def test_streaming_is_refused_in_the_old_words(client: httpx2.Client) -> None:
    reply = ask(client, ("user", "x"), stream=True)
    assert reply.status_code == 400
    assert reply.json() == {"error": "streaming not supported", "detail": "streaming not supported"}


def test_a_second_call_is_503_and_a_second_job_409(client: httpx2.Client) -> None:
    held = client.post("/execute", json={"prompt": "hold", "agent": "x"}).json()["job_id"]
    reply = ask(client, ("user", "x"))
    assert reply.status_code == 503
    assert reply.json() == {"error": "execution failed", "detail": "agent is busy"}
    reply = client.post("/execute", json={"prompt": "hold", "agent": "x"})
    assert (reply.status_code, reply.json()["detail"]) == (409, "Agent is busy")
    client.post(f"/v1/jobs/{held}/cancel")
    wait_until(lambda: client.get("/health").json()["busy"] is False)


def test_a_failure_is_one_short_line(tmp_path: Path) -> None:
    with (
        running_service(tmp_path, options=OPTIONS, capacity=1, max_queued=0) as service,
        service.client() as client,
    ):
        service.runner.forced_result = "fail"
        reply = ask(client, ("user", "many\nlines " * 100))
    assert reply.status_code == 503
    assert set(reply.json()) == {"error", "detail"}
    assert reply.json()["error"] == "execution failed"
    assert reply.json()["detail"] == "some stderr"
    assert reply.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("stderr", "detail"),
    [
        ("Error: no\n  such   thing\n", "Error: no such thing"),
        ("x" * 300, "x" * 200),
        ("", None),
        (" \n", None),
    ],
)
def test_a_failures_detail_is_the_stderr_as_one_line_or_without_any_our_own_text(
    tmp_path: Path, stderr: str, detail: str | None
) -> None:
    with (
        running_service(tmp_path, options=OPTIONS, capacity=1, max_queued=0) as service,
        service.client() as client,
    ):
        service.runner.forced_result = "fail"
        service.runner.stderr = stderr
        reply = ask(client, ("user", "x"))
        job = client.get(f"/v1/jobs/{reply.headers['x-steadyhand-job-id']}").json()
    assert reply.json()["detail"] == (detail or job["error"]["message"])


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ({}, "Missing bearer token"),
        ({"authorization": "Basic eDp5"}, "Missing bearer token"),
        ({"authorization": "Bearer"}, "Missing bearer token"),
        ({"authorization": "Bearer wrong"}, "Invalid token"),
    ],
)
@pytest.mark.parametrize("path", ["/execute", "/v1/chat/completions"])
def test_a_401_has_the_earlier_services_words(
    service: RunningService, path: str, headers: dict[str, str], detail: str
) -> None:
    with service.client(None) as client:
        reply = client.post(path, json={}, headers=headers)
    assert (reply.status_code, reply.json()["detail"], reply.json()["code"]) == (
        401,
        detail,
        "unauthenticated",
    )
    assert reply.headers["www-authenticate"].startswith("Bearer")


def test_a_401_of_a_service_without_keys_says_so(tmp_path: Path) -> None:
    with running_service(tmp_path, options=OPTIONS, keys=False) as service, service.client() as client:
        for headers in ({}, {"authorization": ""}):
            reply = client.post("/execute", json={}, headers=headers)
            assert (reply.status_code, reply.json()["detail"]) == (401, "Service unauthenticated")


PARTIAL = {"agent": "a", "timeout_seconds": "60"}
NOT_AN_OBJECT = "Input should be a valid dictionary or object to extract fields from"


@pytest.mark.parametrize(
    ("path", "body", "details"),
    [
        (
            "/execute",
            PARTIAL,
            [
                ("missing", ["body", "prompt"], "Field required", PARTIAL),
                ("int_type", ["body", "timeout_seconds"], "Input should be a valid integer", "60"),
            ],
        ),
        ("/execute", [1], [("model_attributes_type", ["body"], NOT_AN_OBJECT, [1])]),
        (
            "/v1/chat/completions",
            {"messages": [{"role": 5, "content": "x"}]},
            [("string_type", ["body", "messages", 0, "role"], "Input should be a valid string", 5)],
        ),
    ],
)
def test_a_422_lists_the_wrong_fields_as_fastapi_does(
    client: httpx2.Client, path: str, body: Any, details: list[Any]
) -> None:
    reply = client.post(path, json=body)
    assert reply.status_code == 422
    assert reply.json()["detail"] == [
        {"type": kind, "loc": loc, "msg": msg, "input": value} for kind, loc, msg, value in details
    ]
    assert isinstance(reply.json()["error"]["message"], str)


def test_the_input_of_a_422_is_cut_and_is_json(client: httpx2.Client) -> None:
    long = {"prompt": "x", "agent": "a", "timeout_seconds": "é" * 5000, "metadata": [0] * 5000}
    detail = {each["loc"][1]: each["input"] for each in client.post("/execute", json=long).json()["detail"]}
    assert detail == {"timeout_seconds": "é" * 512, "metadata": ("[" + "0," * 600)[:1024]}
    raw = b'{"prompt":"x","agent":"a","max_budget_usd":1%se99,"metadata":{"a":NaN}}' % (b"0" * 290)
    reply = client.post("/execute", content=raw)
    assert reply.status_code == 422
    (found,) = json.loads(reply.text, parse_constant=pytest.fail)["detail"]
    assert (found["loc"], found["input"]) == (["body", "max_budget_usd"], None)


def test_the_input_of_a_422_is_without_secrets(tmp_path: Path) -> None:
    secret = "sk-live-0123456789abcdef"
    options = replace(OPTIONS, redactor=Redactor([secret]))
    with running_service(tmp_path, options=options) as service, service.client() as client:
        for text in (secret, "x" * 1015 + secret + "y" * 5000):
            reply = client.post("/execute", json={"agent": "a", "prompt": "p", "timeout_seconds": text})
            assert reply.status_code == 422
            assert secret[:8] not in reply.text


def test_the_native_routes_keep_their_422(client: httpx2.Client) -> None:
    reply = client.post("/v1/jobs", json={"prompt": ""})
    assert (reply.status_code, reply.json()["detail"]) == (422, "prompt: is empty")


@pytest.mark.parametrize(
    ("printed", "answer"),
    [
        ("just words\nin two lines\n", "just words\nin two lines"),
        ('{"result": "", "content": "from content"}', "from content"),
        ('{"text": "from text", "other": 1}', "from text"),
        ("[1, 2]", "[1, 2]"),
    ],
)
def test_what_was_printed_is_the_answer_when_there_is_no_result(
    tmp_path: Path, printed: str, answer: str
) -> None:
    with (
        running_service(tmp_path, options=OPTIONS, capacity=1, max_queued=0) as service,
        service.client() as client,
    ):
        service.runner.forced_result = f"raw {printed}"
        reply = ask(client, ("user", "x"))
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == answer


def test_an_object_without_a_text_is_a_failure(tmp_path: Path) -> None:
    with (
        running_service(tmp_path, options=OPTIONS, capacity=1, max_queued=0) as service,
        service.client() as client,
    ):
        service.runner.forced_result = 'raw {"result": ""}'
        assert ask(client, ("user", "x")).status_code == 503


def test_every_models_name_is_known(client: httpx2.Client) -> None:
    assert client.get("/v1/models/whatever/it-is").status_code == 200


def test_a_call_without_a_users_message_is_422(client: httpx2.Client) -> None:
    assert ask(client, ("system", "x")).status_code == 422
    assert ask(client).status_code == 422
