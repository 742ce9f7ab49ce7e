"""A crash of the service between a stored answer and the end of its job: the answer stays, and so do the changes."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.sandboxed.host_inspection import host_mounts, leftover_job_files, live_agent_processes
from tests.sandboxed.process_modes import Mode, ModeService, agent_tables
from tests.sandboxed.warm_services import PATIENCE, wait_for_slot
from tests.service_fixtures import make_repository, make_service_root

from steadyhand.testing.live_folders import paths_in
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import wait_until

ANSWER = "The greeting is changed."
STAYS_SECONDS = 30
"""The agent stays longer than the service waits for it, so the crash always comes before its end."""
WORK = f'[[standin: run="echo more >> greeting.txt" hang={STAYS_SECONDS} text="{ANSWER}"]]'


@pytest.fixture(scope="module", params=[pytest.param("cold", marks=pytest.mark.long), "warm"])
def service(
    request: pytest.FixtureRequest, reachable_tmp: Path, stand_in: Path, model: ScriptedModel
) -> Iterator[ModeService]:
    """A sealed service with an agent in a repository."""
    mode: Mode = request.param
    root = make_service_root(reachable_tmp)
    make_repository(root / "repository", {"greeting.txt": "hello\n"})
    config = agent_tables({"worker": 'workspace = "work"'}, mode)
    config += f'[workspaces.work]\nrepository = "{root / "repository"}"\n'
    env = {"STEADYHAND_ISOLATION": "bwrap", "STEADYHAND_SERVICE__LOG_LEVEL": "debug"}
    made = ModeService(root, stand_in, model=model.url, env=env, config=config, constants=PATIENCE)
    made.mode = mode
    with made:
        yield made
    shutil.rmtree(root, ignore_errors=True)


def _answer_and_crash(service: ModeService) -> str:
    """Let a job answer, and kill the service before the job has ended; return the job's id."""
    if service.mode == "warm":
        wait_for_slot(service, "worker")
    body = {"model": "worker", "messages": [{"role": "user", "content": WORK}]}
    answer = service.client.post("/v1/chat/completions", json=body)
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER, answer.text
    job_id = str(service.client.get("/v1/jobs").json()["data"][0]["id"])
    assert service.mode_of(job_id) == service.mode
    job = service.get_job(job_id)
    assert (job["state"], job["answer"], job["outcome"]["type"]) == ("running", ANSWER, "success")
    assert job["changes"] is None
    service.kill()
    return job_id


def _is_reclaimed(service: ModeService, job: dict[str, Any]) -> None:
    """Hold that nothing of a job's run is left, apart from the processes that wait for others."""
    waiting = {path.name for path in paths_in(service.data_dir / "ahead")}
    own = [name for name in leftover_job_files(service) if name.startswith(job["id"])]
    assert own == []
    assert not [line for line in host_mounts(service) if job["id"] in line]
    assert waiting or not live_agent_processes(service)


def test_the_answer_and_the_changes_are_kept_after_a_crash(service: ModeService) -> None:
    job_id = _answer_and_crash(service)
    wait_until(lambda: not live_agent_processes(service))
    service.restart()
    job = service.client.get(f"/v1/jobs/{job_id}").json()
    assert (job["state"], job["answer"], job["warnings"]) == ("completed", ANSWER, [])
    assert job["outcome"]["type"] == "success"
    assert job["changes"]["files"] == 1
    assert "+more" in service.client.get(f"/v1/jobs/{job_id}/diff").text
    _is_reclaimed(service, job)
    # The next job begins with what was committed.
    following = service.run_job('[[standin: run="cat greeting.txt" text={last}]]', agent="worker")
    assert (following["answer"], following["warnings"]) == ("hello", [])


def test_changes_that_are_gone_are_told_and_the_answer_is_kept(service: ModeService) -> None:
    job_id = _answer_and_crash(service)
    wait_until(lambda: not live_agent_processes(service))
    for path in (service.data_dir / "jobs" / job_id).iterdir():
        if path.name != "kept":
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True) if path.is_file() else None
    service.restart()
    job = service.client.get(f"/v1/jobs/{job_id}").json()
    assert (job["state"], job["answer"], job["changes"]) == ("completed", ANSWER, None)
    assert [each["code"] for each in job["warnings"]] == ["harvest_failed"]
    _is_reclaimed(service, job)


def test_a_second_crash_during_the_recovery_loses_nothing(service: ModeService) -> None:
    job_id = _answer_and_crash(service)
    service.spawn()
    service.kill()  # at some step of the start
    service.restart()
    job = service.client.get(f"/v1/jobs/{job_id}").json()
    assert (job["state"], job["answer"], job["warnings"]) == ("completed", ANSWER, [])
    assert job["changes"]["files"] == 1
