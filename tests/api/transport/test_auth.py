"""Who gets in: Bearer tokens, scopes, hosts."""

import hashlib
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.api.api_service import ADMIN, LIMITED, SUBMITTER, RunningService, running_service
from tests.protected_routes import protected_routes

from steadyhand.api import ApiOptions
from steadyhand.api.transport.auth import authenticate
from steadyhand.errors import Unauthenticated
from steadyhand.keyring import Keyring
from steadyhand.ports import ALL_SCOPES, ApiKey, Store

UNUSED: Store = object()  # type: ignore[assignment]  # asking it for anything fails

BAD_HEADERS = [
    b"",
    b"Bearer",
    b"Bearer ",
    b"Bearer    ",
    b"Basic YWRtaW4tdG9rZW4=",
    b"admin-token",
    b"Bearer wrong",
    b"Bearer admin-token extra",
    b"Bearer \xff\xfe\xc3\xa9",
    b"Bearer " + "tök€n".encode(),
    b"Bearer " + b"x" * 5000,
    b"\xff Bearer admin-token",
]


def raw(service: RunningService, request: bytes) -> bytes:
    host, _, port = service.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            piece = connection.recv(65536)
            if not piece:
                break
            answer += piece
    return answer


def test_without_a_key_every_route_is_401_before_anything_else(service: RunningService) -> None:
    with service.client(token=None) as client:
        routes = protected_routes(client.get("/openapi.json").json())
        for method, path in routes:
            reply = client.request(method, path, content=b"{not json", headers={"content-type": "text/plain"})
            assert reply.status_code == 401, (method, path)
            assert reply.headers["www-authenticate"].startswith("Bearer")
            body = reply.json()
            assert body["code"] == body["error"]["code"] == "unauthenticated"
            assert body["error"]["type"] == "authentication_error"
            assert body["request_id"] == reply.headers["x-request-id"]


@pytest.mark.parametrize("header", BAD_HEADERS, ids=repr)
def test_a_header_that_holds_no_key_of_ours_is_401(service: RunningService, header: bytes) -> None:
    answer = raw(
        service, b"GET /jobs/0 HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: " + header + b"\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 401 "), answer


def test_two_authorization_headers_are_401(service: RunningService) -> None:
    line = b"Authorization: Bearer admin-token\r\n"
    answer = raw(service, b"GET /jobs/0 HTTP/1.1\r\nHost: 127.0.0.1\r\n" + line + line + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 401 ")


def test_a_401_comes_before_the_body_is_read(service: RunningService) -> None:
    head = b"POST /execute HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n"
    assert raw(service, head).startswith(b"HTTP/1.1 401 ")


def test_the_scheme_is_read_in_any_case(service: RunningService) -> None:
    with service.client(token=None, authorization=f"bearer {ADMIN}") as client:
        assert client.get("/v1/jobs").status_code == 200


def test_a_service_without_keys_lets_nobody_in(tmp_path: Path) -> None:
    with running_service(tmp_path, keys=False) as service:
        for header in (b"Bearer ", b"Bearer", b"Bearer admin-token"):
            head = b"GET /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: " + header + b"\r\n\r\n"
            assert raw(service, head).startswith(b"HTTP/1.1 401 ")


def test_an_empty_token_never_matches_even_a_key_made_of_nothing() -> None:
    empty = ApiKey("k", "empty", hashlib.sha256(b"").hexdigest(), ALL_SCOPES, datetime.now(UTC))
    keyring = Keyring([empty], UNUSED)
    with pytest.raises(Unauthenticated):
        authenticate(keyring, [(b"authorization", b"Bearer ")])


def test_a_key_without_the_scope_is_403(service: RunningService) -> None:
    with service.client(SUBMITTER) as client:
        assert client.post("/v1/jobs", json={"prompt": "say x"}).status_code == 202
        for method, path in (("GET", "/v1/jobs"), ("GET", "/v1/agents"), ("GET", "/jobs/000000000000")):
            reply = client.request(method, path)
            assert (reply.status_code, reply.json()["code"]) == (403, "scope_missing")
            assert reply.json()["error"]["type"] == "permission_error"


def test_a_wait_that_the_key_may_not_do_is_refused_before_a_job_is_stored(service: RunningService) -> None:
    before = service.count()
    with service.client(SUBMITTER) as client:
        reply = client.post("/v1/jobs", json={"prompt": "say x"}, headers={"prefer": "wait=5"})
    assert reply.status_code == 403
    assert service.count() == before


def test_a_path_as_workspace_needs_its_scope(service: RunningService) -> None:
    with service.client(LIMITED) as client:
        reply = client.post("/v1/jobs", json={"prompt": "say x", "workspace": "/srv/repository"})
    assert (reply.status_code, reply.json()["code"]) == (403, "workspace_not_allowed")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"host": "evil.example"}, "forbidden_host"),
        ({"host": "localhost.evil.example:80"}, "forbidden_host"),
        ({"host": "10.0.0.1"}, "forbidden_host"),
        ({"host": "["}, "forbidden_host"),
        ({"origin": "https://evil.example"}, "forbidden_origin"),
        ({"origin": "null"}, "forbidden_origin"),
        ({"origin": "http://localhost.evil.example"}, "forbidden_origin"),
    ],
)
def test_a_foreign_host_or_origin_is_403_on_the_native_routes(
    service: RunningService, headers: dict[str, str], code: str
) -> None:
    with service.client(**headers) as client:
        reply = client.get("/v1/jobs")
        assert (reply.status_code, reply.json()["code"]) == (403, code)
        assert reply.headers["content-type"] == "application/problem+json"
        # Callers of the earlier service use whatever name a container has; probes come by address.
        assert client.get("/health").status_code == 200
        assert client.get("/livez").status_code == 200
        assert client.post("/execute", json={}).status_code == 422


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:8080", "LOCALHOST", "127.0.0.2"])
def test_loopback_names_are_always_known(service: RunningService, host: str) -> None:
    with service.client(host=host, origin=f"http://{host}") as client:
        assert client.get("/v1/jobs").status_code == 200


def test_configured_names_and_the_public_one_are_known(tmp_path: Path) -> None:
    options = ApiOptions(
        allowed_hosts=("box.lan",), bind_host="192.0.2.7", public_url="https://agents.example.org/x"
    )
    with running_service(tmp_path, options=options) as service:
        for host, status in (
            ("box.lan:8080", 200),
            ("192.0.2.7:8080", 200),
            ("agents.example.org", 200),
            ("other.lan", 403),
        ):
            with service.client(host=host) as client:
                assert client.get("/v1/jobs").status_code == status
