"""Runs that outlive their service: it is killed at any moment, started again in time, and they go on as before."""

import random
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from typing import Any

import pytest
from tests.blackbox.conftest import UNSANDBOXED

from steadyhand.testing.cli import cli_path
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import MakeService, Service, wait_until

REATTACH_SECONDS = 3
CONFIG = f"[service]\nreattach_seconds = {REATTACH_SECONDS}\nconcurrency = 6\n"
NEVER_KEPT_SECONDS = 1.0
LEVELS = {"bwrap": {}, "none": UNSANDBOXED}
STEPS = [f"Step {n} of eight, in a few words that come one after the other." for n in range(1, 9)]
ANSWERS = {
    "eight-steps": [*STEPS, "All eight steps are done."],
    "silent-tool": ["I'll wait for it.", "The command said: it is there"],
    "background": ["I start it.", "I will be told when it is done.", "The build is done."],
}
"""The messages of each scenario, once each."""
STREAM = "slow"
"""A scenario with one message that comes in pieces for ten seconds."""


@pytest.fixture
def level(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "bwrap"))


@pytest.fixture
def service(make_service: MakeService, level: str, scripted_model: ScriptedModel) -> Iterator[Service]:
    with make_service(
        claude=cli_path(), model=scripted_model.url, env=LEVELS[level], config=CONFIG
    ) as started:
        yield started


def submit(service: Service, scenario: str, mark: str, **fields: Any) -> str:
    prompt = f"[[scenario:{scenario}]] {mark}"
    return str(service.submit(prompt, workspace="default", agent="claude", **fields)["id"])


def wait_until_running(service: Service, *job_ids: str) -> None:
    def all_run() -> bool:
        return all(
            any(e["type"] == "phase" and e["data"]["phase"] == "running" for e in service.events(job_id))
            for job_id in job_ids
        )

    wait_until(all_run, 30)


def wait_for_event(service: Service, job_id: str, event_type: str, **data: str) -> None:
    def is_there() -> bool:
        return any(
            event["type"] == event_type and data.items() <= event["data"].items()
            for event in service.events(job_id)
        )

    wait_until(is_there, 30, interval=0.005)


def stored_calls(service: Service, job_id: str) -> list[tuple[int, int]]:
    """The calls of a job in the ledger: (settled, micro-dollars)."""
    with closing(sqlite3.connect(f"file:{service.data_dir}/steadyhand.db?mode=ro", uri=True)) as database:
        return database.execute("SELECT settled, micros FROM calls WHERE job_id = ?", (job_id,)).fetchall()


def check_whole(
    service: Service, model: ScriptedModel, job_id: str, mark: str, before: list[dict[str, Any]]
) -> dict[str, Any]:
    """Hold that nothing of a job is lost or doubled: its events, its state changes, its calls of the model."""
    job, events = service.wait_until_ended(job_id, 60), service.events(job_id)
    assert (job["state"], [run["number"] for run in job["runs"]]) == ("completed", [1]), job
    assert events[: len(before)] == before
    assert [event["seq"] for event in events] == list(range(1, job["last_event"] + 1))
    changes = [(e["data"]["from"], e["data"]["to"]) for e in events if e["type"] == "state.changed"]
    assert changes == [(None, "queued"), ("queued", "running"), ("running", "completed")]
    phases = [event["data"]["phase"] for event in events if event["type"] == "phase"]
    assert [phase for phase, count in Counter(phases).items() if count > 1] == []
    for kind in ("tool.started", "tool.finished"):
        tools = [event["data"]["tool_id"] for event in events if event["type"] == kind]
        assert len(tools) == len(set(tools))
    turns = [event["data"]["turns"] for event in events if event["type"] == "usage"]
    assert all(one <= two for one, two in pairwise(turns[:-1])), turns
    calls = stored_calls(service, job_id)
    assert [settled for settled, _ in calls] == [1] * len(calls)
    assert len(calls) == sum(mark in request.prompt for request in model.requests)
    return job


def messages(service: Service, job_id: str) -> list[str]:
    return [event["data"]["text"] for event in service.events(job_id) if event["type"] == "message"]


def run_through_a_kill(service: Service, model: ScriptedModel, seed: int) -> None:
    """Kill the service at a random moment of four runs, start it again, and hold that each ends as if nothing was."""
    generator = random.Random(seed)  # noqa: S311  # for a test's variety
    kinds = [*ANSWERS, STREAM]
    jobs = {kind: submit(service, kind, f"{kind}-{seed}") for kind in kinds}
    wait_until_running(service, *jobs.values())
    time.sleep(generator.uniform(0.0, 4.0))  # the random moment is what this is about
    before = {kind: service.events(job_id) for kind, job_id in jobs.items()}
    service.kill()
    time.sleep(generator.uniform(0.0, REATTACH_SECONDS - 2))  # the same
    service.restart()
    with ThreadPoolExecutor(len(kinds)) as pool:
        list(pool.map(lambda kind: service.wait_until_ended(jobs[kind], 60), kinds))
    for kind, job_id in jobs.items():
        check_whole(service, model, job_id, f"{kind}-{seed}", before[kind])
        if kind in ANSWERS:
            assert messages(service, job_id) == ANSWERS[kind]
    assert "\n+8\n" in service.client.get(f"/v1/jobs/{jobs['eight-steps']}/diff").text
    assert held_folders(service) == []


def held_folders(service: Service) -> list[str]:
    return [each.name for each in (service.data_dir / "run" / "held").iterdir()]


@pytest.mark.parametrize(("level", "seed"), [("bwrap", 1), ("none", 2), ("bwrap", 3)], indirect=["level"])
def test_runs_go_on_after_a_kill_9_at_any_moment(
    service: Service, scripted_model: ScriptedModel, seed: int
) -> None:
    run_through_a_kill(service, scripted_model, seed)


@pytest.mark.long
@pytest.mark.parametrize("level", list(LEVELS), indirect=True)
def test_runs_go_on_after_kills_at_thirty_moments(service: Service, scripted_model: ScriptedModel) -> None:
    for seed in range(100, 130):
        run_through_a_kill(service, scripted_model, seed)


def test_a_run_goes_on_over_kills_in_a_row(service: Service, scripted_model: ScriptedModel) -> None:
    job_id = submit(service, "eight-steps", "again")
    wait_until_running(service, job_id)
    before: list[dict[str, Any]] = []
    for _ in range(3):
        time.sleep(0.5)  # the moments are what this is about
        before = service.events(job_id)
        service.kill()
        service.restart()
    check_whole(service, scripted_model, job_id, "again", before)
    assert messages(service, job_id) == ANSWERS["eight-steps"]


@pytest.mark.parametrize("level", list(LEVELS), indirect=True)
def test_without_a_service_in_time_nothing_is_alive(service: Service) -> None:
    job_ids = [submit(service, kind, "alone") for kind in ("eight-steps", "silent-tool")]
    wait_until_running(service, *job_ids)
    service.kill()
    assert service.live_agent_pids() != []
    wait_until(lambda: not service.live_agent_pids(), REATTACH_SECONDS + 5)
    service.restart()
    for job_id in job_ids:
        job = service.wait_until_ended(job_id)
        assert (job["state"], job["outcome"]["type"], job["error"]["retryable"]) == (
            "interrupted",
            "interrupted",
            True,
        )
    assert held_folders(service) == []


def test_a_run_that_ended_without_a_service_is_whole(service: Service, scripted_model: ScriptedModel) -> None:
    job_id = submit(service, "silent-tool", "alone")
    wait_for_event(service, job_id, "tool.started")
    # The tool ends meanwhile, and the call after it waits for the next service.
    before = service.events(job_id)
    service.kill()
    time.sleep(REATTACH_SECONDS - 1)
    service.restart()
    job = check_whole(service, scripted_model, job_id, "alone", before)
    assert job["answer"] == "The command said: it is there"


def test_a_kill_during_the_harvest_loses_nothing(service: Service, scripted_model: ScriptedModel) -> None:
    job_id = submit(service, "many-files", "harvest")
    wait_for_event(service, job_id, "phase", phase="harvesting")
    before = service.events(job_id)
    service.kill()
    wait_until(lambda: not service.live_agent_pids(), NEVER_KEPT_SECONDS)
    service.restart()
    check_whole(service, scripted_model, job_id, "harvest", before)
    assert "file-600.txt" in service.client.get(f"/v1/jobs/{job_id}/diff").text


SLOW_SETUP = (
    CONFIG
    + """
[workspaces.slow]
repository = "{repository}"
setup = ["sleep 2; echo made > made-by-setup.txt"]
"""
)


def test_a_run_whose_agent_had_not_started_begins_with_its_checkout(
    make_service: MakeService, scripted_model: ScriptedModel
) -> None:
    service = make_service(claude=cli_path(), model=scripted_model.url)
    service.config_path.write_text(SLOW_SETUP.format(repository=service.root / "workspace"))
    with service:
        prompt = "[[scenario:bash]] setup"
        job_id = service.submit(prompt, workspace="slow", agent="claude")["id"]
        wait_for_event(service, job_id, "phase", phase="setup")
        before = service.events(job_id)
        service.kill()
        service.restart()
        job = check_whole(service, scripted_model, job_id, "setup", before)
        assert "hello from bash" in job["answer"]


TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def ask(service: Service, messages: list[dict[str, Any]]) -> dict[str, Any]:
    body = {"model": "claude", "messages": messages, "tools": [TOOL]}
    answer = service.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["choices"][0]["message"])


def test_a_run_that_waits_for_its_clients_tool_ends_with_the_service_and_its_client_goes_on(
    service: Service,
) -> None:
    talk: list[dict[str, Any]] = [{"role": "user", "content": "[[scenario:client-tools]] weather?"}]
    said = ask(service, talk)
    job_id = said["tool_calls"][0]["id"].split("_")[1]

    def is_written_down() -> bool:  # what the CLI has not written when it is killed, no later run can know
        sessions = service.data_dir.glob(f"jobs/{job_id}/config/projects/*/*.jsonl")
        return any("Rome" in path.read_text("utf-8", "replace") for path in sessions)

    wait_until(is_written_down, 10)
    service.kill()
    wait_until(lambda: not service.live_agent_pids(), NEVER_KEPT_SECONDS)
    service.restart()
    assert service.wait_until_ended(job_id)["outcome"]["type"] == "unanswered"
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "sun"} for call in said["tool_calls"]]
    assert ask(service, [*talk, said, *results])
    assert service.get_job(job_id)["run"] == 2


def test_processes_that_wait_end_with_the_service_and_new_ones_take_their_place(
    make_service: MakeService, scripted_model: ScriptedModel
) -> None:
    config = CONFIG + '[agents.claude]\nworkspace = "default"\nwarm = 1\n'
    with make_service(claude=cli_path(), model=scripted_model.url, config=config) as service:

        def waits() -> bool:
            return bool(service.client.get("/health").json()["warm"]["waiting"])

        wait_until(waits, 30)
        service.kill()
        wait_until(lambda: not service.live_agent_pids(), NEVER_KEPT_SECONDS)
        service.restart()
        wait_until(waits, 30)
        job_id = submit(service, STREAM, "warm")
        wait_until_running(service, job_id)
        service.kill()
        wait_until(lambda: not service.live_agent_pids(), NEVER_KEPT_SECONDS)
        service.restart()
        assert service.wait_until_ended(job_id)["outcome"]["type"] == "interrupted"


def test_a_parked_job_waits_on_over_a_kill(service: Service) -> None:
    job_id = submit(service, "rate-limited-midway", "parked")
    wait_until(lambda: service.get_job(job_id)["state"] == "parked", 60)
    until = service.get_job(job_id)["parked_until"]
    service.kill()
    wait_until(lambda: not service.live_agent_pids(), NEVER_KEPT_SECONDS)
    service.restart()
    job = service.get_job(job_id)
    assert (job["state"], job["parked_until"]) == ("parked", until)


def test_a_deadline_counts_on_over_a_kill(service: Service) -> None:
    job_id = submit(service, "silent-tool", "late", timeout_seconds=6)
    wait_for_event(service, job_id, "tool.started")
    service.kill()
    time.sleep(1)  # it counts against the deadline
    service.restart()
    job = service.wait_until_ended(job_id)
    assert (job["state"], [run["number"] for run in job["runs"]]) == ("timeout", [1])
    assert not service.live_agent_pids()


def test_a_budget_counts_on_over_a_kill(service: Service, scripted_model: ScriptedModel) -> None:
    job_id = submit(service, "costly-tool", "dear", budget_usd=2)
    wait_for_event(service, job_id, "tool.started")
    service.kill()
    service.restart()
    job = service.wait_until_ended(job_id)
    assert job["outcome"]["type"] == "budget", job
    assert sum("dear" in request.prompt for request in scripted_model.requests) == 1
    assert float(job["cost"]["usd"]) > 1.5


def test_a_run_that_was_taken_up_can_be_cancelled_and_steered(service: Service) -> None:
    cancelled, steered = submit(service, STREAM, "stop"), submit(service, "silent-tool", "steer")
    wait_for_event(service, steered, "tool.started")
    service.kill()
    service.restart()

    def steer() -> bool:  # it is refused until the run is taken up
        body = {"text": "Look at the log as well."}
        return service.client.post(f"/v1/jobs/{steered}/steer", json=body).status_code == 202

    wait_until(steer, 5)
    assert service.client.post(f"/v1/jobs/{cancelled}/cancel").status_code in (200, 202)
    assert service.wait_until_ended(cancelled)["state"] == "cancelled"
    assert service.wait_until_ended(steered)["state"] == "completed"
    assert [e["type"] for e in service.events(steered) if e["type"].startswith("steer.")] == [
        "steer.accepted",
        "steer.used",
    ]


def test_the_files_of_a_run_are_the_services_alone(service: Service) -> None:
    job_id = submit(service, STREAM, "files")
    wait_until_running(service, job_id)
    folder = service.data_dir / "run" / "held" / f"{job_id}-1"
    assert (folder.parent.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o700, 0o700)
    modes = {each.name: each.stat().st_mode & 0o777 for each in folder.iterdir()}
    assert modes == dict.fromkeys(("record", "control", "stdout", "stderr", "exit"), 0o600)
    service.client.post(f"/v1/jobs/{job_id}/cancel")
    service.wait_until_ended(job_id)
    wait_until(lambda: not folder.exists(), 5)


@pytest.mark.parametrize("level", list(LEVELS), indirect=True)
def test_a_stop_leaves_the_runs_to_the_next_service(service: Service, scripted_model: ScriptedModel) -> None:
    kinds = ["eight-steps", "silent-tool", "background"]
    jobs = {kind: submit(service, kind, f"{kind}-stop") for kind in kinds}
    wait_until_running(service, *jobs.values())
    before = {kind: service.events(job_id) for kind, job_id in jobs.items()}
    assert service.terminate() == 0
    assert service.live_agent_pids() != []
    service.restart()
    for kind, job_id in jobs.items():
        check_whole(service, scripted_model, job_id, f"{kind}-stop", before[kind])
        assert messages(service, job_id) == ANSWERS[kind]


def test_a_run_that_a_stop_left_for_too_long_is_resumed(
    service: Service, scripted_model: ScriptedModel
) -> None:
    job_id = submit(service, "silent-tool", "later")
    wait_for_event(service, job_id, "tool.started")
    assert service.terminate() == 0
    wait_until(lambda: not service.live_agent_pids(), REATTACH_SECONDS + 5)
    service.restart()
    wait_until(lambda: service.get_job(job_id)["state"] == "completed", 60)
    job = service.get_job(job_id)
    assert [run["state"] for run in job["runs"]] == ["interrupted", "completed"]
    assert sum("later" in request.prompt for request in scripted_model.requests) >= 2
