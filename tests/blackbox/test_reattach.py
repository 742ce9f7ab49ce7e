"""Runs that outlive their service: it is killed at any moment, started again in time, and they go on as before."""

import json
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from tests.blackbox.conftest import FILES, UNSANDBOXED
from tests.service_fixtures import make_repository

from steadyhand.testing.cli import cli_path
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import MakeService, Service, wait_until

REATTACH_SECONDS = 3
"""The time of a run in the tests in which no service comes."""
CONFIG = "[service]\nreattach_seconds = 30\nconcurrency = 6\n"
NEVER_KEPT_SECONDS = 10.0  # far below the 30 s for which a run is held
LEVELS = {"bwrap": {}, "none": UNSANDBOXED}
STEPS = [f"Step {n} of eight, in a few words that come one after the other." for n in range(1, 9)]
ANSWERS = {
    "eight-steps": [*STEPS, "All eight steps are done."],
    "silent-tool": ["I'll wait for it.", "The command said: it is there"],
    "background": ["I start it.", "I will be told when it is done.", "The build is done."],
}
"""The messages of each scenario, once each."""
WARM_CONFIG = CONFIG + '[agents.claude]\nworkspace = "default"\nwarm = 1\n'
PARKED_CONFIG = """
[agents.parked]
workspace = "default"
provider = "other"
[providers.other]
base_url = "{url}"
api_key_file = "{key}"
"""
SLOW_SETUP = """
[workspaces.slow]
repository = "{repository}"
setup = ["sleep 2; echo made > made-by-setup.txt"]
"""
KINDS_CONFIG = f"""
[service]
reattach_seconds = 30
concurrency = 12
[agents.claude]
workspace = "default"
[agents.warm]
workspace = "default"
warm = 1
{PARKED_CONFIG}{SLOW_SETUP}"""
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


@pytest.fixture
def impatient(make_service: MakeService, level: str, scripted_model: ScriptedModel) -> Iterator[Service]:
    """A service whose runs wait for the next one for a short time."""
    config = f"[service]\nreattach_seconds = {REATTACH_SECONDS}\n"
    with make_service(
        claude=cli_path(), model=scripted_model.url, env=LEVELS[level], config=config
    ) as started:
        yield started


def submit(service: Service, scenario: str, mark: str, **fields: Any) -> str:
    prompt = f"[[scenario:{scenario}]] {mark}"
    return str(service.submit(prompt, **{"workspace": "default", "agent": "claude", **fields})["id"])


def wait_until_running(service: Service, *job_ids: str) -> None:
    def all_run() -> bool:
        return all(
            any(e["type"] == "phase" and e["data"]["phase"] == "running" for e in service.events(job_id))
            for job_id in job_ids
        )

    wait_until(all_run, 60)


def wait_for_event(service: Service, job_id: str, event_type: str, **data: str) -> None:
    def is_there() -> bool:
        return any(
            event["type"] == event_type and data.items() <= event["data"].items()
            for event in service.events(job_id)
        )

    wait_until(is_there, 60, interval=0.005)


def stored_calls(service: Service, job_id: str) -> list[tuple[int, int, int]]:
    """Return the calls of a job in the ledger: (settled, complete, micro-dollars)."""
    with closing(sqlite3.connect(f"file:{service.data_dir}/steadyhand.db?mode=ro", uri=True)) as database:
        return database.execute(
            "SELECT settled, complete, micros FROM calls WHERE job_id = ?", (job_id,)
        ).fetchall()


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
    check_calls(stored_calls(service, job_id), [each for each in model.requests if mark in each.prompt])
    return job


def check_calls(calls: list[tuple[int, int, int]], requests: list[Any]) -> None:
    """Hold that each request of an agent is counted once, however often it was made because it was cut."""
    distinct = len({json.dumps(request.body, sort_keys=True) for request in requests})
    assert [settled for settled, _, _ in calls] == [1] * len(calls)
    whole = sum(complete for _, complete, _ in calls)
    # One that ended just before a kill may not have been stored as ended.
    assert distinct - 1 <= whole <= distinct, (calls, len(requests))
    # One that had just begun at a kill may not have been stored at all.
    assert len(requests) - 1 <= len(calls) <= len(requests), (calls, len(requests))


def messages(service: Service, job_id: str) -> list[str]:
    return [event["data"]["text"] for event in service.events(job_id) if event["type"] == "message"]


def held_folders(service: Service) -> list[str]:
    """Return the folders of held runs, without those of processes that wait for their run."""
    folders = (service.data_dir / "run" / "held").iterdir()
    return [each.name for each in folders if not each.name.startswith("waiting-")]


def start_kinds(service: Service, seed: int, *, with_steps: bool) -> dict[str, str]:
    """Start a run of each kind; return their jobs.

    The steps are those of the waiting process, too: `with_steps` has them in a process of their own as well.
    """
    kinds = [kind for kind in (*ANSWERS, STREAM) if with_steps or kind != "eight-steps"]
    jobs = {kind: submit(service, kind, f"{kind}-{seed}") for kind in kinds}
    jobs["harvest"] = submit(service, "many-files", f"harvest-{seed}")
    jobs["warm"] = submit(service, "eight-steps", f"warm-{seed}", agent="warm")
    jobs["parked"] = submit(service, "rate-limited-midway", f"parked-{seed}", agent="parked")
    jobs["setup"] = submit(service, "bash", f"setup-{seed}", workspace="slow")
    return jobs


def check_kinds(
    service: Service,
    model: ScriptedModel,
    seed: int,
    jobs: dict[str, str],
    before: dict[str, list[dict[str, Any]]],
) -> None:
    """Hold that each run has ended as if nothing had been."""
    parked = jobs.pop("parked")
    wait_until(lambda: service.get_job(parked)["state"] == "parked", 60)
    with ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(lambda job_id: service.wait_until_ended(job_id, 90), jobs.values()))
    for kind, job_id in jobs.items():
        job = check_whole(service, model, job_id, f"{kind}-{seed}", before[kind])
        if kind in ANSWERS:
            assert messages(service, job_id) == ANSWERS[kind]
        elif kind == "setup":
            assert "hello from bash" in job["answer"]
    assert messages(service, jobs["warm"]) == ANSWERS["eight-steps"]
    for kind in {"eight-steps", "warm"} & jobs.keys():
        assert "\n+8\n" in service.client.get(f"/v1/jobs/{jobs[kind]}/diff").text
    assert "file-600.txt" in service.client.get(f"/v1/jobs/{jobs['harvest']}/diff").text
    events = service.events(parked)
    assert events[: len(before["parked"])] == before["parked"]
    assert (service.get_job(parked)["run"], sum(e["type"] == "tool.finished" for e in events)) == (1, 1)
    service.client.post(f"/v1/jobs/{parked}/cancel")
    wait_until(lambda: held_folders(service) == [], 20)


def run_through_an_end(
    service: Service, model: ScriptedModel, seed: int, *, is_hand_over: bool, with_steps: bool = True
) -> None:
    """End the service at a random moment of runs of eight kinds, by a kill or a hand-over, and go on."""
    generator = random.Random(seed)  # noqa: S311  # for a test's variety
    talk = [{"role": "user", "content": f"[[scenario:client-tools]] client-{seed}"}]
    said = ask(service, talk)
    jobs = start_kinds(service, seed, with_steps=with_steps)
    client_job = said["tool_calls"][0]["id"].split("_")[1]
    wait_until_running(service, *(job_id for kind, job_id in jobs.items() if kind != "setup"))
    time.sleep(generator.uniform(0.0, 4.0))  # the random moment is what this is about
    before = {kind: service.events(job_id) for kind, job_id in jobs.items()}
    client_before = service.events(client_job)
    if is_hand_over:
        assert service.replace() == 0
    else:
        service.kill()
        time.sleep(generator.uniform(0.0, 0.5))  # the same
        service.restart()
    for text in ("sun", "snow"):
        talk += [said, *results_of(said, text)]
        said = ask(service, talk)
    assert said["content"] == "The last one said: snow"
    check_whole(service, model, client_job, f"client-{seed}", client_before)
    assert calls_of_client(service, client_job) == ["calls.waiting", "calls.answered"] * 2
    check_kinds(service, model, seed, jobs, before)


@pytest.fixture
def all_kinds(make_service: MakeService, level: str, scripted_model: ScriptedModel) -> Iterator[Service]:
    """A service with an agent that has a waiting process, one with a provider of its own, and a slow setup."""
    service = make_service(claude=cli_path(), model=scripted_model.url, env=LEVELS[level])
    (service.root / "key").write_text("sk-ant-another")
    service.config_path.write_text(
        KINDS_CONFIG.format(
            repository=service.root / "workspace", key=service.root / "key", url=scripted_model.url
        )
    )
    with service:
        yield service


def wait_for_warm(service: Service) -> None:
    wait_until(lambda: bool(service.client.get("/health").json()["warm"]["waiting"]), 60)


@pytest.mark.parametrize(
    ("seed", "is_hand_over"), [(1, False), (2, True), pytest.param(3, False, marks=pytest.mark.long)]
)
def test_runs_go_on_after_the_end_of_the_service_at_any_moment(
    all_kinds: Service, scripted_model: ScriptedModel, seed: int, *, is_hand_over: bool
) -> None:
    wait_for_warm(all_kinds)
    run_through_an_end(all_kinds, scripted_model, seed, is_hand_over=is_hand_over, with_steps=False)


@pytest.mark.parametrize(("level", "seed"), [("none", 4)], indirect=["level"])
def test_runs_without_a_sandbox_go_on_after_a_kill_at_any_moment(
    service: Service, scripted_model: ScriptedModel, seed: int
) -> None:
    jobs = {kind: submit(service, kind, f"{kind}-{seed}") for kind in (*ANSWERS, STREAM)}
    wait_until_running(service, *jobs.values())
    time.sleep(random.Random(seed).uniform(0.0, 4.0))  # noqa: S311  # the random moment is what this is about
    before = {kind: service.events(job_id) for kind, job_id in jobs.items()}
    service.kill()
    service.restart()
    for kind, job_id in jobs.items():
        check_whole(service, scripted_model, job_id, f"{kind}-{seed}", before[kind])


@pytest.mark.long
@pytest.mark.parametrize("is_hand_over", [False, True])
def test_runs_go_on_after_the_end_of_the_service_at_thirty_moments(
    all_kinds: Service, scripted_model: ScriptedModel, *, is_hand_over: bool
) -> None:
    for seed in range(100, 130):
        wait_for_warm(all_kinds)
        run_through_an_end(all_kinds, scripted_model, seed, is_hand_over=is_hand_over)


@pytest.mark.long  # two in a row are seen below: `test_a_run_that_waits_for_its_clients_tools_waits_on`
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


@pytest.mark.parametrize(
    "level", [pytest.param("bwrap", marks=pytest.mark.long), "none"], indirect=True
)  # with a sandbox it is seen below: `test_a_run_that_a_stop_left_for_too_long_is_resumed`
def test_without_a_service_in_time_nothing_is_alive(impatient: Service) -> None:
    job_ids = [submit(impatient, kind, "alone") for kind in ("eight-steps", "silent-tool")]
    wait_until_running(impatient, *job_ids)
    impatient.kill()
    assert impatient.live_agent_pids() != []
    wait_until(lambda: not impatient.live_agent_pids(), REATTACH_SECONDS + 5)
    impatient.restart()
    for job_id in job_ids:
        job = impatient.wait_until_ended(job_id)
        assert (job["state"], job["outcome"]["type"], job["error"]["retryable"]) == (
            "interrupted",
            "interrupted",
            True,
        )
    assert held_folders(impatient) == []


@dataclass(frozen=True)
class Restarted:
    """A service that was ended and started again, with its jobs by name and their events before that."""

    service: Service
    model: ScriptedModel
    jobs: dict[str, str]
    before: dict[str, list[dict[str, Any]]]
    modes: dict[str, int]
    """Those of the files and folders of one held run."""

    def check_whole(self, name: str) -> dict[str, Any]:
        """Hold that nothing of a job is lost or doubled; its mark is its name."""
        return check_whole(self.service, self.model, self.jobs[name], name, self.before[name])


def events_of(service: Service, jobs: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    return {name: service.events(job_id) for name, job_id in jobs.items()}


@pytest.fixture(scope="module")
def after_a_pause(make_service_in: MakeService) -> Iterator[Restarted]:
    """A service that was killed while its agents used tools or waited, and came back after their tools had ended."""
    config = CONFIG + "[openai]\ntool_result_seconds = 8\n"
    with (
        ScriptedModel() as model,
        make_service_in(claude=cli_path(), model=model.url, config=config) as service,
    ):
        # Alone on a busy machine the deadline leaves its agent time enough to begin.
        jobs = {"late": submit(service, "deaf-tool", "late", timeout_seconds=20)}
        wait_for_event(service, jobs["late"], "tool.started")
        jobs["alone"] = submit(service, "silent-tool", "alone")
        jobs["dear"] = submit(service, "costly-tool", "dear", budget_usd=2)
        said = ask(service, [{"role": "user", "content": "[[scenario:client-tools]] weather-late"}])
        for name in ("alone", "dear"):
            wait_for_event(service, jobs[name], "tool.started")
        jobs["client"] = said["tool_calls"][0]["id"].split("_")[1]
        before, modes = events_of(service, jobs), modes_of_held(service, jobs["alone"])
        service.kill()
        time.sleep(4.5)  # the silent command takes four seconds; they count against every limit
        service.restart()
        yield Restarted(service, model, jobs, before, modes)


def modes_of_held(service: Service, job_id: str) -> dict[str, int]:
    folder = service.data_dir / "run" / "held" / f"{job_id}-1"
    wait_until((folder / "record").exists)
    return {each.name: each.stat().st_mode & 0o777 for each in (folder.parent, folder, *folder.iterdir())}


def test_a_run_that_ended_without_a_service_is_whole(after_a_pause: Restarted) -> None:
    # The tool ends meanwhile, and the call after it waits for the next service.
    assert after_a_pause.check_whole("alone")["answer"] == "The command said: it is there"


def test_the_files_of_a_run_are_the_services_alone(after_a_pause: Restarted) -> None:
    service, job_id = after_a_pause.service, after_a_pause.jobs["alone"]
    files = dict.fromkeys(("record", "control", "stdout", "stderr", "exit"), 0o600)
    assert after_a_pause.modes == {"held": 0o700, f"{job_id}-1": 0o700, **files}
    service.wait_until_ended(job_id)
    wait_until(lambda: not (service.data_dir / "run" / "held" / f"{job_id}-1").exists(), 20)


def test_a_budget_counts_on_over_a_kill(after_a_pause: Restarted) -> None:
    job = after_a_pause.service.wait_until_ended(after_a_pause.jobs["dear"])
    assert job["outcome"]["type"] == "budget", job
    assert sum("dear" in request.prompt for request in after_a_pause.model.requests) == 1
    assert float(job["cost"]["usd"]) > 1.5


def test_the_wait_for_a_client_counts_on_over_a_kill(after_a_pause: Restarted) -> None:
    job = after_a_pause.service.wait_until_ended(after_a_pause.jobs["client"])
    assert (job["outcome"]["type"], job["run"]) == ("unanswered", 1)


def test_a_deadline_counts_on_over_a_kill(after_a_pause: Restarted) -> None:
    ended = {name: after_a_pause.service.wait_until_ended(each) for name, each in after_a_pause.jobs.items()}
    job = ended["late"]
    assert (job["state"], [run["number"] for run in job["runs"]]) == ("timeout", [1])
    wait_until(lambda: not after_a_pause.service.live_agent_pids(), 5)


@pytest.mark.long  # of a process that had waited it is seen below
def test_a_kill_during_the_harvest_loses_nothing(service: Service, scripted_model: ScriptedModel) -> None:
    job_id = submit(service, "many-files", "harvest")
    wait_for_event(service, job_id, "phase", phase="harvesting")
    before = service.events(job_id)
    service.kill()
    wait_until(lambda: not service.live_agent_pids(), NEVER_KEPT_SECONDS)
    service.restart()
    check_whole(service, scripted_model, job_id, "harvest", before)
    assert "file-600.txt" in service.client.get(f"/v1/jobs/{job_id}/diff").text


@pytest.fixture(scope="module")
def without_processes(make_service_in: MakeService) -> Iterator[Restarted]:
    """A service that was killed when no agent ran: one job is parked, and the files of one are harvested."""
    with ScriptedModel() as model:
        service = make_service_in(claude=cli_path(), model=model.url)
        (service.root / "key").write_text("sk-ant-another")
        service.config_path.write_text(
            WARM_CONFIG + PARKED_CONFIG.format(key=service.root / "key", url=model.url)
        )
        with service:
            wait_for_warm(service)
            jobs = {"parked": submit(service, "rate-limited-midway", "parked", agent="parked")}
            wait_until(lambda: service.get_job(jobs["parked"])["state"] == "parked", 60)
            jobs["harvest"] = submit(service, "many-files", "harvest")
            wait_for_event(service, jobs["harvest"], "phase", phase="harvesting")
            before = events_of(service, jobs)
            service.kill()
            wait_until(lambda: not service.live_agent_pids(), NEVER_KEPT_SECONDS)
            service.restart()
            yield Restarted(service, model, jobs, before, {})


def test_a_kill_during_the_harvest_of_a_process_that_had_waited_loses_nothing(
    without_processes: Restarted,
) -> None:
    """The service kills such a process once it has answered: its end is a good one to the next service, too."""
    without_processes.check_whole("harvest")
    service = without_processes.service
    assert "file-600.txt" in service.client.get(f"/v1/jobs/{without_processes.jobs['harvest']}/diff").text
    wait_for_warm(service)


def test_a_parked_job_waits_on_over_a_kill(without_processes: Restarted) -> None:
    job = without_processes.service.get_job(without_processes.jobs["parked"])
    (parked,) = [event for event in without_processes.before["parked"] if event["data"].get("to") == "parked"]
    assert (job["state"], job["parked_until"]) == ("parked", parked["data"]["parked_until"])


@pytest.fixture(scope="module")
def before_the_work(make_service_in: MakeService) -> Iterator[Restarted]:
    """A service that was killed during the setup of one run, while another one worked in a directory in place."""
    with ScriptedModel() as model:
        service = make_service_in(claude=cli_path(), model=model.url)
        folder = service.root / "here"
        make_repository(folder, FILES)
        service.give_to_agent(folder)
        service.config_path.write_text(
            CONFIG
            + SLOW_SETUP.format(repository=service.root / "workspace")
            + f'[workspaces.here]\nrepository = "{folder}"\nmode = "in_place"\n'
        )
        with service:
            jobs = {"here-1": submit(service, "silent-tool", "here-1", workspace="here")}
            wait_for_event(service, jobs["here-1"], "tool.started")
            jobs["setup"] = submit(service, "bash", "setup", workspace="slow")
            wait_for_event(service, jobs["setup"], "phase", phase="setup")
            before = events_of(service, jobs)
            service.kill()
            service.restart()
            jobs["here-2"] = submit(service, "ok", "here-2", workspace="here")
            yield Restarted(service, model, jobs, before, {})


def test_a_run_whose_agent_had_not_started_begins_with_its_checkout(before_the_work: Restarted) -> None:
    assert "hello from bash" in before_the_work.check_whole("setup")["answer"]


def test_a_run_in_a_directory_in_place_goes_on_and_no_other_enters_it(before_the_work: Restarted) -> None:
    job, service = before_the_work.check_whole("here-1"), before_the_work.service
    assert (service.root / "here" / "found.txt").read_text() == "it is there\n"
    behind = service.wait_until_ended(before_the_work.jobs["here-2"])
    assert behind["started_at"] >= job["finished_at"]


TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def ask(service: Service, messages: list[dict[str, Any]]) -> dict[str, Any]:
    body = {"model": "claude", "messages": messages, "tools": [TOOL]}
    answer = service.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["choices"][0]["message"])


def results_of(said: dict[str, Any], text: str) -> list[dict[str, Any]]:
    return [{"role": "tool", "tool_call_id": call["id"], "content": text} for call in said["tool_calls"]]


def test_a_run_that_waits_for_its_clients_tools_waits_on(
    service: Service, scripted_model: ScriptedModel
) -> None:
    """Each wait is cut by a kill, and each result comes at once after the start."""
    talk: list[dict[str, Any]] = [{"role": "user", "content": "[[scenario:client-tools]] weather-on"}]
    said = ask(service, talk)
    job_id = said["tool_calls"][0]["id"].split("_")[1]
    for text in ("sun", "snow"):
        before = service.events(job_id)
        service.kill()
        service.restart()
        talk += [said, *results_of(said, text)]
        said = ask(service, talk)
    assert said["content"] == "The last one said: snow"
    check_whole(service, scripted_model, job_id, "weather-on", before)
    assert calls_of_client(service, job_id) == ["calls.waiting", "calls.answered"] * 2


def calls_of_client(service: Service, job_id: str) -> list[str]:
    """Return the events of a job that are about the calls of its client's tools."""
    return [event["type"] for event in service.events(job_id) if event["type"].startswith("calls.")]


# Two in a row: the second one takes up a run that was taken up before. In `make test` such a process is one of the
# kinds at the random moments, and it is replaced in `test_a_kill_during_the_harvest_of_a_process_that_had_waited_..`.
@pytest.mark.long
@pytest.mark.parametrize("kills", [[2], [1, 2]], ids=str)
def test_a_run_in_a_process_that_waited_goes_on_and_new_ones_take_the_place_of_the_others(
    make_service: MakeService, scripted_model: ScriptedModel, kills: list[int]
) -> None:
    with make_service(claude=cli_path(), model=scripted_model.url, config=WARM_CONFIG) as service:
        wait_for_warm(service)
        service.kill()
        wait_until(lambda: not service.live_agent_pids(), NEVER_KEPT_SECONDS)
        service.restart()
        for count in kills:
            wait_for_warm(service)
            job_id = submit(service, "eight-steps", f"warm-{count}")
            wait_until_running(service, job_id)
            for _ in range(count):
                before = service.events(job_id)
                service.kill()
                service.restart()
            check_whole(service, scripted_model, job_id, f"warm-{count}", before)
            assert messages(service, job_id) == ANSWERS["eight-steps"]
            assert "\n+8\n" in service.client.get(f"/v1/jobs/{job_id}/diff").text


def test_a_turn_in_a_live_process_goes_on_and_the_next_one_resumes_its_session(
    make_service: MakeService, scripted_model: ScriptedModel
) -> None:
    config = CONFIG + '[agents.claude]\nworkspace = "default"\nlive_seconds = 60\n'
    with make_service(claude=cli_path(), model=scripted_model.url, config=config) as service:
        first = submit(service, "bash", "live-1")
        service.wait_until_ended(first)
        second = str(take_turn(service, first, "[[scenario:silent-tool]] live-2")["id"])
        wait_for_event(service, second, "tool.started")
        before = service.events(second)
        service.kill()
        service.restart()
        check_whole(service, scripted_model, second, "live-2", before)
        third = take_turn(service, second, "[[scenario:ok]] live-3")
        assert service.wait_until_ended(str(third["id"]))["state"] == "completed"
        (request,) = [each for each in scripted_model.requests if "live-3" in each.prompt]
        assert "live-1" in str(request.body["messages"])


def take_turn(service: Service, job_id: str, prompt: str) -> dict[str, Any]:
    answer = service.client.post(f"/v1/jobs/{job_id}/turns", json={"prompt": prompt})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


@contextmanager
def runs_over_a_stop(make_service_in: MakeService, level: str) -> Iterator[Restarted]:
    """Stop a service with runs of several kinds, start it again, and cancel one of them and steer another."""
    with (
        ScriptedModel() as model,
        make_service_in(claude=cli_path(), model=model.url, env=LEVELS[level], config=CONFIG) as service,
    ):
        jobs = {f"{kind}-stop": submit(service, kind, f"{kind}-stop") for kind in ANSWERS}
        wait_until_running(service, *jobs.values())
        jobs["cancelled"] = submit(service, STREAM, "cancelled")
        jobs["steered"] = submit(service, "silent-tool", "steered")
        wait_for_event(service, jobs["steered"], "tool.started")
        before = events_of(service, jobs)
        assert service.terminate() == 0
        assert service.live_agent_pids() != []
        service.restart()

        def steer() -> bool:  # it is refused until the run is taken up
            body = {"text": "Look at the log as well."}
            return service.client.post(f"/v1/jobs/{jobs['steered']}/steer", json=body).status_code == 202

        wait_until(steer, 20)
        assert service.client.post(f"/v1/jobs/{jobs['cancelled']}/cancel").status_code in (200, 202)
        yield Restarted(service, model, jobs, before, {})


@pytest.fixture(scope="module")
def after_a_stop(make_service_in: MakeService) -> Iterator[Restarted]:
    with runs_over_a_stop(make_service_in, "bwrap") as restarted:
        yield restarted


@pytest.mark.parametrize("level", ["bwrap", pytest.param("none", marks=pytest.mark.long)])
def test_a_stop_leaves_the_runs_to_the_next_service(
    request: pytest.FixtureRequest, make_service_in: MakeService, level: str
) -> None:
    with ExitStack() as stack:
        after: Restarted = (
            request.getfixturevalue("after_a_stop")
            if level == "bwrap"
            else stack.enter_context(runs_over_a_stop(make_service_in, level))
        )
        for kind, answers in ANSWERS.items():
            after.check_whole(f"{kind}-stop")
            assert messages(after.service, after.jobs[f"{kind}-stop"]) == answers


def test_a_run_that_was_taken_up_can_be_cancelled_and_steered(after_a_stop: Restarted) -> None:
    service, jobs = after_a_stop.service, after_a_stop.jobs
    assert service.wait_until_ended(jobs["cancelled"])["state"] == "cancelled"
    assert service.wait_until_ended(jobs["steered"])["state"] == "completed"
    assert [e["type"] for e in service.events(jobs["steered"]) if e["type"].startswith("steer.")] == [
        "steer.accepted",
        "steer.used",
    ]


def test_a_run_that_a_stop_left_for_too_long_is_resumed(
    impatient: Service, scripted_model: ScriptedModel
) -> None:
    job_id = submit(impatient, "silent-tool", "later")
    wait_for_event(impatient, job_id, "tool.started")
    assert impatient.terminate() == 0
    wait_until(lambda: not impatient.live_agent_pids(), REATTACH_SECONDS + 5)
    impatient.restart()
    wait_until(lambda: impatient.get_job(job_id)["state"] == "completed", 60)
    job = impatient.get_job(job_id)
    assert [run["state"] for run in job["runs"]] == ["interrupted", "completed"]
    assert sum("later" in request.prompt for request in scripted_model.requests) >= 2
