"""A server of Postgres that is frozen: it refuses no connection, ends no statement and answers nothing."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.postgres_fixtures import pgbouncer

from steadyhand.testing.postgres import Postgres
from steadyhand.testing.service import MakeService, Service

PATIENCE = {"steadyhand.read_patience.REQUEST_READ_SECONDS": 3.0}
"""Less than a service has, and more than a read on a busy machine takes before and after."""


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    """A server that tests freeze."""
    with Postgres() as server:
        yield server


def read(service: Service, path: str) -> tuple[str, int, str | None, object]:
    with service.new_client() as client:
        answer = client.get(path, timeout=40)
    return path, answer.status_code, answer.headers.get("retry-after"), answer.json().get("code")


def submit(service: Service) -> tuple[int, str]:
    with service.new_client() as client:
        answer = client.post("/v1/jobs", json={"prompt": "hello", "workspace": "scratch"}, timeout=90)
    return answer.status_code, answer.text


@pytest.mark.parametrize("is_pooled", [False, True])
def test_a_read_is_refused_and_a_write_is_held_while_the_server_is_frozen(
    own_postgres: Postgres, make_service: MakeService, common_dir: Path, *, is_pooled: bool
) -> None:
    url = own_postgres.url(own_postgres.create_database())
    env = {"STEADYHAND_DATABASE_URL": url}
    with ExitStack() as stack:
        if is_pooled:
            env["STEADYHAND_DATABASE_URL"] = stack.enter_context(pgbouncer(own_postgres, url, common_dir))
            env["STEADYHAND_SERVICE__DATABASE_LISTEN_URL"] = url
        service = stack.enter_context(make_service(env=env, constants=PATIENCE))
        job_id = service.run_job("hello")["id"]
        paths = [
            "/v1/jobs",
            *(f"/v1/jobs/{job_id}{part}" for part in ("", "/events", "/transcript")),
            f"/v1/responses/resp_{job_id}",
            "/v1/usage",
            "/v1/schedules",
        ]
        with ThreadPoolExecutor(len(paths) + 1) as pool:
            with own_postgres.frozen():
                submitting = pool.submit(submit, service)
                for found in pool.map(lambda path: read(service, path), paths):
                    assert found == (found[0], 503, "5", "unavailable")
                assert service.client.get("/livez").status_code == 200
            status, text = submitting.result()
        assert status == 202, text
        assert service.get_job(job_id)["state"] == "completed"
        assert "Traceback" not in service.log
