"""Processes that wait for jobs, with the real CLI and the scripted model: what a job gets and cannot notice."""

import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.runner.freezing import freezer
from tests.sandboxed.warm_services import PATIENCE, cli, cli_below, events_of, wait_for_slot, warm_service
from tests.service_fixtures import make_repository, make_service_root

from steadyhand.config.file_schema import ServiceTable
from steadyhand.runner.claude.warm import REHEARSAL_PROMPT
from steadyhand.testing.live_folders import contents_below, paths_in
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.scenario import ModelToolCall, ModelTurn, Scenario
from steadyhand.testing.service import Service, run_git, wait_until

CONFIG = """\
[agents.chat]
warm = 1
"""
LONG_NONE = pytest.param("none", marks=pytest.mark.long)
"""Without a boundary: in `make test` it is in test_kept_processes.py."""
__all__ = ["cli"]  # a fixture, taken in


@pytest.fixture(scope="module", params=["bwrap", LONG_NONE])
def service(
    request: pytest.FixtureRequest, reachable_tmp: Path, cli: Path, model: ScriptedModel
) -> Iterator[Service]:
    """A service with one waiting process of `chat`; shared, and each test leaves a new one waiting."""
    with warm_service(reachable_tmp, cli, model, str(request.param), CONFIG) as made:
        yield made


def _run(service: Service, prompt: str = "Say that all is well.", **fields: Any) -> dict[str, Any]:
    # Each job has a caller of its own, so none gets the process that another one has left.
    return service.run_job(prompt, agent="chat", metadata={"user": secrets.token_hex(4)}, **fields)


def _without_identity(body: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps({key: value for key, value in body.items() if key != "metadata"})
    system = [block for block in body["system"] if "billing-header" not in block["text"]]
    return {**json.loads(text), "system": system}


def test_the_model_gets_the_same_request_as_from_a_new_process(
    service: Service, model: ScriptedModel
) -> None:
    wait_for_slot(service)
    model.clear()
    warm = _run(service)
    cold = _run(service, max_turns=7)  # the model is not told of it, and no process that waits has it
    warm_request, cold_request = model.requests
    took = {each["job"] for each in events_of(service, "warm.taken")}
    assert warm["id"] in took
    assert cold["id"] not in took
    assert warm["answer"] == cold["answer"] == "ok: the scripted model has read the prompt."
    first, second = _without_identity(warm_request.body), _without_identity(cold_request.body)
    if "bwrap" in service.environment()["STEADYHAND_ISOLATION"]:
        assert first == second
    else:  # the paths differ, as they do between two jobs
        assert first.keys() == second.keys()
        assert [len(each["content"]) for each in first["messages"]] == [
            len(each["content"]) for each in second["messages"]
        ]


def test_the_rehearsal_is_in_no_record_and_costs_nothing(service: Service, model: ScriptedModel) -> None:
    wait_for_slot(service)
    model.clear()
    job = _run(service)
    assert model.calls == 1  # the rehearsal went to nobody
    assert job["usage"]["turns"] == 1
    assert job["cost"]["usd"] == job["cost"]["reported_usd"]
    usage = service.client.get(f"/v1/jobs/{job['id']}").json()["usage"]
    assert usage["input_tokens"] == 10
    texts = [json.dumps(service.events(job["id"]))]
    folder = service.data_dir / "jobs" / job["id"]
    texts += [content.decode("utf-8", "replace") for _, content in contents_below(folder)]
    assert (folder / "kept" / "transcript.jsonl").is_file()
    assert not any(REHEARSAL_PROMPT in text for text in texts)


# test_kept_processes.py has turns that resume.
@pytest.mark.long
def test_a_later_turn_resumes_the_session_of_a_job_that_a_waiting_process_ran(
    service: Service, model: ScriptedModel
) -> None:
    wait_for_slot(service)
    job = _run(service, "The first prompt.")
    wait_for_slot(service)  # a new session waits, and the turn must not have it
    model.clear()
    turn = service.client.post(f"/v1/jobs/{job['id']}/turns", json={"prompt": "The second prompt."})
    assert turn.status_code == 202, turn.text
    ended = service.wait_until_ended(turn.json()["id"])
    assert ended["state"] == "completed"
    assert ended["warnings"] == []
    text = json.dumps(model.requests[-1].body["messages"])
    assert "The first prompt." in text
    assert "The second prompt." in text


def test_a_waiting_process_has_a_user_that_no_job_in_a_process_of_its_own_can_have(service: Service) -> None:
    slots = ServiceTable().slots
    assert slots > ServiceTable().concurrency
    uid = Path(f"/proc/{cli_below(wait_for_slot(service))}").stat().st_uid
    if os.geteuid() == 0:
        assert uid >= service.uid_base + slots
    else:
        assert uid == os.geteuid()  # all share the user of the service


def test_a_process_that_was_killed_while_it_waited_costs_the_next_job_nothing(service: Service) -> None:
    supervisor = wait_for_slot(service)
    os.kill(cli_below(supervisor), signal.SIGKILL)
    job = _run(service)
    assert (job["state"], job["warnings"]) == ("completed", [])
    assert wait_for_slot(service) != supervisor


def test_a_supervisor_that_was_killed_costs_the_next_job_nothing_and_leaves_no_process(
    service: Service,
) -> None:
    supervisor = wait_for_slot(service)
    cli_pid = cli_below(supervisor)
    os.kill(supervisor, signal.SIGKILL)
    job = _run(service)
    assert job["state"] == "completed"
    wait_until(lambda: not Path(f"/proc/{cli_pid}").exists())


def test_a_process_that_does_not_answer_is_replaced_and_the_job_gets_another(service: Service) -> None:
    supervisor = wait_for_slot(service)
    with freezer("group of version 2") as freeze:  # no signal undoes it
        freeze(cli_below(supervisor))
        job = _run(service)
        assert (job["state"], job["warnings"]) == ("completed", [])
        (taken,) = [each for each in events_of(service, "warm.taken") if each["job"] == job["id"]]
        ended = wait_until(
            lambda: [each for each in events_of(service, "warm.ended") if each["slot_id"] == taken["slot_id"]]
        )
        assert [each["job"] for each in ended] == [None]  # it was another process that ran the job
        assert not Path(f"/proc/{supervisor}").exists()


def test_a_budget_of_one_cent_ends_a_job_in_a_waiting_process(service: Service) -> None:
    wait_for_slot(service)
    job = _run(service, "[[scenario:costly]] Spend.", budget_usd=0.01)
    assert job["outcome"]["type"] == "budget", job
    assert job["id"] in {each["job"] for each in events_of(service, "warm.taken")}


# --- in a repository -------------------------------------------------------------------------------


LOOK = "git for-each-ref; cat greeting.txt"
LIST_REFS = Scenario(
    "list-refs",
    "",
    (
        ModelTurn(
            tool=(
                ModelToolCall(
                    "Bash", {"command": "git for-each-ref; cat greeting.txt", "description": "Look"}
                ),
            )
        ),
        ModelTurn(text="{last_result}"),
    ),
)


@pytest.fixture(scope="module")
def repository_service(reachable_tmp: Path, cli: Path) -> Iterator[tuple[Service, ScriptedModel]]:
    """A sealed service with one waiting process of `claude` in a repository."""
    root = make_service_root(reachable_tmp)
    make_repository(root / "workspace", {"greeting.txt": "hello\n", "CLAUDE.md": "Answer in one line.\n"})
    env = {"STEADYHAND_ISOLATION": "bwrap", "STEADYHAND_SERVICE__LOG_LEVEL": "debug"}
    env["WORKSPACE_DIR"] = str(root / "workspace")
    config = "[agents.claude]\nwarm = 1\n"
    with (
        ScriptedModel(LIST_REFS) as model,
        Service(root, cli, model=model.url, env=env, config=config, constants=PATIENCE) as service,
    ):
        yield service, model
    shutil.rmtree(root, ignore_errors=True)


def _run_in_repository(service: Service, prompt: str = "Look.") -> dict[str, Any]:
    answer = service.client.post("/v1/jobs", json={"prompt": prompt}, headers={"prefer": "wait=60"})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def _was_warm(service: Service, job: dict[str, Any]) -> bool:
    ended = wait_until(
        lambda: [
            each
            for each in events_of(service, "warm.ended")
            if each["slot_id"]
            in {taken["slot_id"] for taken in events_of(service, "warm.taken") if taken["job"] == job["id"]}
        ]
    )
    return any(each["job"] == job["id"] for each in ended)


def test_a_job_in_a_repository_finds_the_commit_of_now_and_invents_no_change(
    repository_service: tuple[Service, ScriptedModel],
) -> None:
    service, _ = repository_service
    repository = service.root / "workspace"
    wait_for_slot(service)
    first = _run_in_repository(service)
    assert _was_warm(service, first)
    assert (first["state"], first["changes"], first["warnings"]) == ("completed", None, [])
    assert first["commit"] == run_git(repository, "rev-parse", "HEAD")
    # Another branch moves: the waiting process has it without a new start.
    wait_for_slot(service)
    run_git(repository, "branch", "moved-elsewhere")
    time.sleep(2.1)  # the debounce of fetches: within it no job, warm or not, sees the branch
    second = _run_in_repository(service)
    assert _was_warm(service, second)
    assert "refs/remotes/origin/moved-elsewhere" in second["answer"]
    assert (second["changes"], second["commit"]) == (None, first["commit"])
    # The base moves: the process cannot be used, and the job has one of its own.
    wait_for_slot(service)
    (repository / "greeting.txt").write_text("good morning\n")
    run_git(repository, "commit", "-qam", "Greet in the morning")
    time.sleep(2.1)
    third = _run_in_repository(service)
    assert not _was_warm(service, third)
    assert third["commit"] == run_git(repository, "rev-parse", "HEAD")
    assert "good morning" in third["answer"]
    wait_for_slot(service)
    fourth = _run_in_repository(service)
    assert _was_warm(service, fourth)
    assert (fourth["commit"], "good morning" in fourth["answer"]) == (third["commit"], True)


# test_live_repositories.py has the harvests, and test_attacks_by_process_mode.py the next job.
@pytest.mark.long
def test_the_work_of_a_job_in_a_waiting_process_is_harvested_and_goes_on_in_a_turn(
    repository_service: tuple[Service, ScriptedModel],
) -> None:
    service, _ = repository_service
    wait_for_slot(service)
    job = _run_in_repository(service, "[[scenario:commit]] Work.")
    assert _was_warm(service, job)
    assert job["changes"]["files"] == 1
    turn = service.client.post(f"/v1/jobs/{job['id']}/turns", json={"prompt": "[[scenario:bash]] Go on."})
    ended = service.wait_until_ended(turn.json()["id"])
    assert (ended["state"], ended["warnings"]) == ("completed", [])


def test_nothing_is_left_after_a_drain_and_after_a_crash(
    reachable_tmp: Path, cli: Path, model: ScriptedModel
) -> None:
    with warm_service(reachable_tmp, cli, model, "bwrap", CONFIG) as service:
        wait_for_slot(service)
        assert service.terminate() == 0
        assert wait_until(lambda: service.live_agent_pids() == [])
        assert paths_in(service.data_dir / "ahead") == []
        service.restart()
        supervisor = wait_for_slot(service)
        left = paths_in(service.data_dir / "ahead")
        os.kill(supervisor, signal.SIGSTOP)  # even one that cannot end its run by itself
        service.kill()
        service.restart()
        wait_until(lambda: not Path(f"/proc/{supervisor}").exists())
        assert not any(each.exists() for each in left)
        job = _run(service)
        assert (job["state"], job["answer"]) == ("completed", "ok: the scripted model has read the prompt.")
