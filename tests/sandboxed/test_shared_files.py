"""The files of jobs in an object store: each run is stored as it goes on, and all goes with its job."""

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from steadyhand.testing.live_folders import files_below, paths_in
from steadyhand.testing.service import MakeService, Service, wait_until

SECONDS = 60.0


def stored(service: Service, job_id: str) -> dict[str, int]:
    """Return the numbers of the stored files of a job, by name."""
    with closing(sqlite3.connect(service.data_dir / "steadyhand.db")) as connection:
        rows = connection.execute(
            "SELECT name, artifacts.sequence FROM artifacts JOIN jobs ON jobs.sequence = job"
            " WHERE jobs.id = ? AND artifacts.state = 'stored'",
            (job_id,),
        )
        return dict(rows.fetchall())


def objects(service: Service) -> list[Path]:
    return files_below(service.root / "objects")


def lose_files(service: Service, job_id: str) -> None:
    """Take the folder of a job away, as on a node that has never had it."""
    (service.data_dir / "jobs" / job_id).rename(service.root / f"lost-{time.monotonic_ns()}")


@pytest.fixture
def service(make_service: MakeService) -> Service:
    config = "[artifacts]\nurl = '{}'\ndatabase_bytes = 0\n"
    service = make_service(config="")
    service.config_path.write_text(config.format(f"file://{service.root / 'objects'}"), "utf-8")
    return service.start()


def test_a_run_is_stored_while_its_agent_works_and_resumed_from_that_after_its_node_is_gone(
    service: Service,
) -> None:
    script = "[[standin: write=new.txt:kept say=here sleep=120]]"
    job_id = service.submit(script, workspace="default", on_interrupt="resume")["id"]
    wait_until(lambda: {"session", "bundle", "diff"} <= set(stored(service, job_id)), SECONDS)
    service.kill()
    # Another node has nothing of it but what is stored.
    lose_files(service, job_id)
    service.restart()
    job = service.wait_until_ended(job_id, SECONDS)
    assert [run["state"] for run in job["runs"]] == ["interrupted", "completed"]
    assert job["changes"]["files"] == 1, service.log[-2000:]
    assert "Continue from where you left off" in job["answer"]
    folder = service.data_dir / "jobs" / job_id
    at_rest = {"config", "kept", "prepared", "run"}
    wait_until(lambda: {path.name for path in paths_in(folder)} <= at_rest, SECONDS)
    lose_files(service, job_id)
    for name in ("diff", "bundle", "transcript"):
        assert service.client.get(f"/v1/jobs/{job_id}/{name}").status_code == 200, name
    assert "kept" in service.client.get(f"/v1/jobs/{job_id}/diff").text
    reply = service.client.post(f"/v1/jobs/{job_id}/turns", json={"prompt": "[[standin: history]]"})
    turn = service.wait_until_ended(reply.json()["id"], SECONDS)
    assert any("write=new.txt:kept" in text for _, text in json.loads(turn["answer"])), turn["answer"]
    for each in (turn["id"], job_id):
        assert service.client.delete(f"/v1/jobs/{each}").status_code == 204
    assert objects(service) == []
