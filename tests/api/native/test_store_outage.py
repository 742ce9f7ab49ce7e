"""What callers see while another program holds the database: 503 and a reason, and no request without an end."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.api.api_service import RunningService, run_job, running_service, wait_until

REASON = "The store cannot be written: another program holds the database."


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningService]:
    monkeypatch.setattr("steadyhand.store.sqlite.BUSY_TIMEOUT_MS", 10)
    with running_service(tmp_path) as running:
        yield running


@contextmanager
def locked(tmp_path: Path) -> Iterator[None]:
    """Hold the database for the length of the block, as a backup or a shell may."""
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_what_has_to_be_stored_is_503_with_a_time_to_retry_and_nothing_is_stored(
    service: RunningService, tmp_path: Path
) -> None:
    with service.client() as client:
        ended = run_job(client, "fail it")["id"]
        before = service.count()
        requests: tuple[tuple[str, dict[str, Any]], ...] = (
            ("/v1/jobs", {"prompt": "say hello"}),
            (f"/v1/jobs/{ended}/retry", {}),
            ("/v1/chat/completions", {"model": "claude", "messages": [{"role": "user", "content": "say x"}]}),
            ("/v1/responses", {"model": "claude", "input": "say x"}),
            ("/execute", {"prompt": "say x", "agent": "claude"}),
        )
        with locked(tmp_path):
            for path, body in requests:
                reply = client.post(path, json=body)
                assert reply.status_code == 503, (path, reply.text)
                assert int(reply.headers["retry-after"]) >= 1
                assert (reply.json()["code"], reply.json()["detail"]) == ("unavailable", REASON)
            assert client.get(f"/v1/jobs/{ended}").status_code == 200
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert service.count() == before
        assert run_job(client, "say hello")["state"] == "completed"


def test_every_operation_that_is_503_in_an_outage_is_documented_so(
    service: RunningService, tmp_path: Path
) -> None:
    with service.client() as client:
        ended = run_job(client, "say hello")["id"]
        key = client.post("/v1/keys", json={"name": "n8n", "scopes": ["read"]}).json()["id"]
        requests: tuple[tuple[str, str, dict[str, str], Any], ...] = (
            ("DELETE", "/v1/jobs/{job_id}", {"job_id": ended}, None),
            ("POST", "/v1/keys", {}, {"name": "make", "scopes": ["read"]}),
            ("POST", "/v1/keys/{key_id}/rotate", {"key_id": key}, {}),
            ("DELETE", "/v1/keys/{key_id}", {"key_id": key}, None),
        )
        documented = client.get("/openapi.json").json()["paths"]
        with locked(tmp_path):
            for method, path, values, body in requests:
                reply = client.request(method, path.format(**values), json=body)
                assert reply.status_code == 503, (path, reply.text)
                assert int(reply.headers["retry-after"]) >= 1
                response = documented[path][method.lower()]["responses"]["503"]
                assert "retry-after" in response["headers"]
                assert "application/problem+json" in response["content"]


def test_readiness_names_the_reason_and_liveness_stays(service: RunningService, tmp_path: Path) -> None:
    with service.client() as client:
        with locked(tmp_path):
            assert client.post("/v1/jobs", json={"prompt": "say hello"}).status_code == 503
            reply = client.get("/readyz")
            assert reply.status_code == 503
            assert int(reply.headers["retry-after"]) >= 1
            assert (reply.json()["code"], reply.json()["detail"]) == ("unavailable", REASON)
            assert client.get("/livez").status_code == 200
            assert client.get("/health").status_code == 200
        wait_until(lambda: client.get("/readyz").status_code == 200)
