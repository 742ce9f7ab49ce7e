"""A server of Postgres that goes away under a real service: no run ends, and nothing is lost or needs a restart."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from steadyhand.testing.postgres import Postgres
from steadyhand.testing.service import MakeService, Service, wait_until


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    """A server that tests stop."""
    with Postgres() as server:
        yield server


def talks(go: Path) -> str:
    """A prompt of an agent that says something before and after the file `go` is there."""
    return f"[[standin: say=before wait_for={go} say={'x' * 20_000} text=done]]"


def follow(service: Service, job_id: str) -> list[int]:
    """Follow a job to the end of its stream, over as many streams as it takes, and give the numbers of its events."""
    numbers: list[int] = []
    ended = False
    with service.new_client() as client:
        while not ended:
            wait_until(lambda: client.get("/readyz").status_code == 200, 60)
            answer = client.get(f"/v1/jobs/{job_id}")
            ended = answer.status_code == 200 and answer.json()["state"] not in {"queued", "running"}
            headers = {"accept": "text/event-stream", "last-event-id": str(numbers[-1] if numbers else 0)}
            with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as reply:
                numbers += [int(line[4:]) for line in reply.iter_lines() if line.startswith("id: ")]
    return numbers


def check_unavailable(service: Service, job_id: str) -> None:
    """Check that what has to read or store is refused in the same way, each by a request of its own."""
    requests = [
        *(
            ("GET", path)
            for path in (
                "/v1/jobs",
                f"/v1/jobs/{job_id}",
                f"/v1/jobs/{job_id}/events",
                f"/v1/jobs/{job_id}/diff",
                f"/v1/jobs/{job_id}/transcript",
                f"/v1/responses/resp_{job_id}",
                "/v1/usage",
                "/v1/forecast",
                "/v1/tools",
                "/v1/schedules",
                "/v1/nodes",
                "/v1/callbacks/deliveries",
                "/readyz",
            )
        ),
        ("POST", f"/v1/jobs/{job_id}/cancel"),
        ("DELETE", f"/v1/jobs/{job_id}"),
        ("POST", "/v1/nodes/default/drain"),
    ]

    def send(request: tuple[str, str]) -> tuple[tuple[str, str], int, str | None, str]:
        with service.new_client() as client:
            answer = client.request(*request, timeout=40)
        return request, answer.status_code, answer.headers.get("retry-after"), answer.json()["code"]

    with ThreadPoolExecutor(len(requests)) as pool:
        for found in pool.map(send, requests):
            assert found == (found[0], 503, "5", "unavailable")


@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGQUIT])
def test_an_outage_ends_no_run_and_loses_nothing(
    own_postgres: Postgres, make_service: MakeService, common_dir: Path, how: signal.Signals
) -> None:
    url = own_postgres.url(own_postgres.create_database())
    go = common_dir / "go"
    with make_service(env={"STEADYHAND_DATABASE_URL": url}) as service, ThreadPoolExecutor(1) as pool:
        job_id = service.submit(talks(go))["id"]
        wait_until(lambda: any(event["type"] == "message" for event in service.events(job_id)))
        following = pool.submit(follow, service, job_id)
        own_postgres.stop(how)
        refused = service.client.post("/v1/jobs", json={"prompt": "x", "workspace": "scratch"})
        assert refused.status_code == 503, refused.text
        assert refused.json()["code"] == "unavailable"
        assert "the database cannot be reached" in refused.json()["detail"]
        ready = service.client.get("/readyz")
        assert ready.status_code == 503
        assert service.client.get("/livez").status_code == 200
        check_unavailable(service, job_id)
        go.touch()
        wait_until(lambda: not service.live_agent_pids(), 30)
        own_postgres.start()
        wait_until(lambda: service.client.get("/readyz").status_code == 200)
        job = service.wait_until_ended(job_id)
        assert (job["state"], len(job["runs"]), job["answer"]) == ("completed", 1, "done")
        assert following.result(60) == list(range(1, job["last_event"] + 1))
        assert service.submit("again")["state"] in {"queued", "running"}
        assert service.log.count("store.unavailable") == 1
        assert "Traceback" not in service.log


@pytest.fixture(scope="module")
def first(postgres: Postgres, make_service_in: MakeService) -> Iterator[tuple[Service, str]]:
    """A service, and the address of its database."""
    url = postgres.url(postgres.create_database())
    with make_service_in(env={"STEADYHAND_DATABASE_URL": url}) as service:
        yield service, url


def test_a_second_service_on_a_database_ends_at_once_and_names_the_first(
    first: tuple[Service, str], make_service: MakeService
) -> None:
    service, url = first
    with pytest.raises(RuntimeError, match="the service ended with 75") as refused:
        make_service(env={"STEADYHAND_DATABASE_URL": url}).start()
    assert f"The database is in use by process {service.pid} on " in str(refused.value)
    assert "set database_url to another database" in str(refused.value)


def test_no_secret_of_the_address_is_in_the_log_or_in_an_agents_environment(
    postgres: Postgres, first: tuple[Service, str]
) -> None:
    service, _ = first
    job = service.wait_until_ended(service.submit("[[standin: run=env text=done]]")["id"])
    assert job["state"] == "completed"
    events = str(service.events(job["id"]))
    assert "STEADYHAND_DATABASE_URL" not in events
    assert postgres.password not in events
    assert postgres.password not in service.log
