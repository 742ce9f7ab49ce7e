"""A frozen supervisor does not hold its job: a cancel and a deadline end it, with their outcome and nothing alive."""

import sqlite3
from typing import Any

import pytest
from tests.runner.freezing import freezer
from tests.sandboxed.host_inspection import (
    host_mounts,
    leftover_job_files,
    live_agent_processes,
    loop_devices,
)

from steadyhand.testing.service import MakeService, Service, wait_until

STAYS = "[[standin: lifetime=120 deaf spawn=daemon:deaf say=spawned sleep=120 text=done]]"
END_SECONDS = 30.0


WAYS = ("signal", "group of version 1", "group of version 2")
NOW = {("bwrap", "deadline", "group of version 2"), ("none", "cancel", "signal")}
"""Each level, each ending, and a signal and a group; the others are for the long run."""
CASES = [
    pytest.param(level, ending, outcome, way, marks=[] if (level, ending, way) in NOW else [pytest.mark.long])
    for level in ("bwrap", "none")
    for ending, outcome in (("cancel", "cancelled"), ("deadline", "timeout"))
    for way in WAYS
]


@pytest.fixture(scope="module")
def service(make_service_in: MakeService, request: pytest.FixtureRequest) -> Any:
    with make_service_in(env={"STEADYHAND_ISOLATION": request.param, "STEADYHAND_CONCURRENCY": "1"}) as made:
        yield made


def supervisor_of(service: Service, job_id: str) -> int | None:
    """Return the pid of the supervisor of a job's newest run, once the store has it."""
    query = "SELECT supervisor FROM runs JOIN jobs ON runs.job = jobs.sequence WHERE jobs.id = ?"
    with sqlite3.connect(service.data_dir / "steadyhand.db") as database:
        row = database.execute(query, (job_id,)).fetchone()
    return None if row is None else row[0]


def has_spawned(service: Service, job_id: str) -> bool:
    said = [event["data"] for event in service.events(job_id) if event["type"] == "message"]
    return any(each.get("text") == "spawned" for each in said)


@pytest.mark.parametrize(("service", "ending", "outcome", "way"), CASES, indirect=["service"])
def test_a_job_ends_as_asked_though_its_supervisor_is_frozen(
    service: Service, ending: str, outcome: str, way: str
) -> None:
    seconds = 4 if ending == "deadline" else 600
    job_id = service.submit(STAYS, timeout_seconds=seconds)["id"]
    wait_until(lambda: has_spawned(service, job_id))
    supervisor = wait_until(lambda: supervisor_of(service, job_id))
    with freezer(way) as freeze:
        freeze(supervisor)
        assert live_agent_processes(service)
        if ending == "cancel":
            assert service.client.post(f"/v1/jobs/{job_id}/cancel").status_code in (200, 202)
        job = service.wait_until_ended(job_id, END_SECONDS)
        assert job["outcome"]["type"] == outcome
        assert "processes_stuck" not in [warning["code"] for warning in job["warnings"]]
        wait_until(lambda: not live_agent_processes(service))
    assert host_mounts(service) == []
    wait_until(lambda: not loop_devices(service), 10)
    wait_until(lambda: not leftover_job_files(service), 10)
    # The slot is free again.
    assert service.run_job("[[standin: text=next]]")["answer"] == "next"
