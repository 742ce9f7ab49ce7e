"""However a run is ended, no process of it is left: plain child, setsid child, double-forked daemon, deaf tool.

The ends in the default profile are those of `tests/sandboxed/test_kill_matrix`, too: `make test` has them there.
"""

import signal
import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.blackbox.conftest import LONG_CLASSIC, LONG_DEFAULT, long
from tests.runner.freezing import freezer

from steadyhand.testing.service import MakeService, Service, wait_until

SPAWNED = 4
"""The three left-overs and the tool's shell; beside them the agent itself."""


def unruly(folder: Path) -> str:
    """An agent that ignores SIGTERM, its tool too, with three processes beside it that ignore it as well."""
    pids = folder / "pids"
    return (
        f"[[standin: pids={pids} lifetime=60 deaf spawn=child:deaf spawn=setsid:deaf spawn=daemon:deaf "
        f'touch={folder}/on run_deaf="sleep 60" ]]'
    )


def started(service: Service, folder: Path, **fields: Any) -> str:
    """Give the id of an unruly job once all its processes are there."""
    job_id = str(service.submit(unruly(folder), **fields)["id"])
    wait_until(lambda: (folder / "on").exists() or service.get_job(job_id)["finished_at"])
    assert (folder / "on").exists(), service.client.get(f"/jobs/{job_id}").text
    assert len((folder / "pids").read_text().split()) == SPAWNED - 1
    wait_until(lambda: len(service.live_agent_pids()) > SPAWNED)
    return job_id


def ran_for(job: dict[str, Any]) -> float:
    run = job["runs"][-1]
    span = datetime.fromisoformat(run["finished_at"]) - datetime.fromisoformat(run["started_at"])
    return span.total_seconds()


def none_alive(service: Service, seconds: float = 1.0) -> bool:
    return wait_until(lambda: not service.live_agent_pids(), seconds)


@LONG_DEFAULT
def test_a_timeout_of_3_seconds_ends_as_timeout_within_5_with_nothing_alive(
    service: Service, common_dir: Path
) -> None:
    assert none_alive(service)
    job = service.wait_until_ended(started(service, common_dir, timeout_seconds=3))
    assert (job["state"], job["outcome"]["type"]) == ("timeout", "timeout")
    assert 3 <= ran_for(job) <= 5
    assert none_alive(service)


@LONG_DEFAULT
def test_a_cancel_takes_at_most_2_seconds_and_leaves_nothing_alive(
    service: Service, common_dir: Path
) -> None:
    assert none_alive(service)
    job_id = started(service, common_dir)
    asked = datetime.now().astimezone()
    assert service.client.post(f"/v1/jobs/{job_id}/cancel").status_code in (200, 202)
    job = service.wait_until_ended(job_id)
    assert job["state"] == "cancelled"
    assert (datetime.fromisoformat(job["finished_at"]) - asked).total_seconds() <= 2
    assert none_alive(service)


@pytest.mark.parametrize("profile", [long("default"), "classic"])
def test_a_sigterm_to_the_service_leaves_nothing_alive(
    make_service: MakeService, common_dir: Path, profile: str
) -> None:
    service = make_service(
        classic=profile == "classic", env={"STEADYHAND_SERVICE__DRAIN_SECONDS": "0.5"}
    ).start()
    # What may go on after a planned stop does so at the next start; this one may not.
    job_id = started(service, common_dir, on_interrupt="fail")
    assert service.terminate(10) == 0
    assert service.live_agent_pids() == []
    service.restart()
    job = service.get_job(job_id)
    assert (job["state"], job["outcome"]["type"]) == ("interrupted", "interrupted")
    assert service.client.get(f"/jobs/{job_id}").json()["status"] == "error"


@pytest.mark.parametrize("profile", [long("default"), "classic"])
def test_a_kill_9_of_the_service_leaves_nothing_alive(
    make_service: MakeService, common_dir: Path, profile: str
) -> None:
    service = make_service(classic=profile == "classic").start()
    job_id = started(service, common_dir)
    service.kill()
    assert none_alive(service, 5)
    service.restart()
    job = service.get_job(job_id)
    assert (job["state"], job["outcome"]["type"]) == ("interrupted", "interrupted")


@LONG_DEFAULT
def test_a_run_that_ends_well_leaves_none_of_its_children_alive(service: Service, common_dir: Path) -> None:
    prompt = (
        f"[[standin: pids={common_dir}/pids spawn=child:deaf spawn=setsid:deaf spawn=daemon:deaf text=done]]"
    )
    job = service.run_job(prompt)
    assert (job["state"], job["answer"]) == ("completed", "done")
    assert len((common_dir / "pids").read_text().split()) == 3
    assert none_alive(service)


@LONG_DEFAULT
def test_a_process_that_forks_again_and_again_is_caught(service: Service, common_dir: Path) -> None:
    job = service.run_job(
        f"[[standin: pids={common_dir}/pids lifetime=20 spawn=refork:deaf sleep=0.3 text=done]]"
    )
    assert job["state"] == "completed"
    assert none_alive(service)


@LONG_CLASSIC
def test_an_agent_that_says_its_result_and_hangs_is_ended(service: Service) -> None:
    job = service.run_job("[[standin: text=done hang=50 deaf]]", timeout_seconds=20)
    # The result stands; whether the wait for its end was cut or ran into the deadline, nothing is left.
    assert job["state"] in ("completed", "timeout")
    assert none_alive(service)


@LONG_CLASSIC
def test_an_answer_after_the_supervisor_froze_is_kept_and_holds_no_slot(
    service: Service, common_dir: Path
) -> None:
    job_id = service.submit(f"[[standin: touch={common_dir}/on wait_for={common_dir}/go text=done]]")["id"]
    wait_until((common_dir / "on").exists)
    (supervisor,) = wait_until(lambda: supervisors_of(service, job_id))
    with freezer("signal") as freeze:
        freeze(supervisor)
        (common_dir / "go").touch()
        job = service.wait_until_ended(job_id)
    assert (job["state"], job["answer"]) == ("completed", "done")
    assert [warning["code"] for warning in job["warnings"]] == ["agent_lingered"]
    assert none_alive(service)


def supervisors_of(service: Service, job_id: str) -> list[int]:
    """Return the pids of the supervisors of a job's runs that the store has."""
    query = (
        "SELECT supervisor FROM runs JOIN jobs ON job = sequence WHERE jobs.id = ? AND supervisor IS NOT NULL"
    )
    with closing(sqlite3.connect(service.data_dir / "steadyhand.db")) as database:
        return [row[0] for row in database.execute(query, (job_id,))]


@LONG_CLASSIC
def test_a_killed_agent_takes_its_children_with_it(service: Service, common_dir: Path) -> None:
    job = service.run_job(
        f"[[standin: pids={common_dir}/pids spawn=child spawn=daemon die={signal.SIGKILL:d}]]"
    )
    assert (job["state"], job["outcome"]["type"]) == ("failed", "killed")
    assert none_alive(service)
