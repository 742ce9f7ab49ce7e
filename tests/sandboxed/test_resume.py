"""A run that goes on where another one stopped: the same job, session and checkout, whoever's slot it gets."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.sandboxed.conftest import CONFIG
from tests.sandboxed.host_inspection import host_mounts, leftover_job_files

from steadyhand.testing.service import MakeService, Service, wait_until

LEFT = "write=left.txt:tracked-not run='echo of the home > ~/note; git rev-parse HEAD'"
LOOK = "[[standin: run='cat left.txt ~/note greeting.txt; git log --oneline | wc -l' text='{last}']]"
SEEN = "tracked-notof the home\nhello\n1"
SPENT = f"[[standin: {LEFT} result=max_budget]]"


CONCURRENCY = 3
LEVELS = ("sealed", "limited", "none")


def levels(*now: str) -> pytest.MarkDecorator:
    """Return the levels as parameters of a test: these, and the others in the long run."""
    marks = {level: [] if level in now else [pytest.mark.long] for level in LEVELS}
    return pytest.mark.parametrize(
        "service", [pytest.param(level, marks=marks[level]) for level in LEVELS], indirect=True
    )


@pytest.fixture(scope="module")
def service(request: pytest.FixtureRequest, make_service_in: MakeService) -> Iterator[Service]:
    """Sealed with layers in folders, sealed with layers in a disk image, and not sealed at all.

    Shared, so a test leaves no job in it that runs, nor one's checkout.
    """
    env = {"STEADYHAND_CONCURRENCY": str(CONCURRENCY), "STEADYHAND_SERVICE__DRAIN_SECONDS": "0.2"}
    if request.param == "limited":
        env["STEADYHAND_DEFAULTS__DISK"] = "64M"
    if request.param == "none":
        env["STEADYHAND_ISOLATION"] = "none"
    with make_service_in(env=env, config=CONFIG) as service:
        yield service


def workspace_of(service: Service) -> str:
    return str(service.root / "workspace")


def resume(service: Service, job_id: str, status: int = 202, **fields: Any) -> dict[str, Any]:
    answer = service.client.post(f"/v1/jobs/{job_id}/resume", json=fields)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


def started(service: Service, job_id: str, text: str = "here") -> None:
    """Wait until the agent has said this."""

    def look() -> bool:
        events = service.events(job_id)
        return any(event["type"] == "message" and event["data"]["text"] == text for event in events)

    wait_until(look)


@levels("limited")
def test_a_job_whose_budget_is_spent_goes_on_in_the_same_session_and_checkout(service: Service) -> None:
    blocker = service.submit("[[standin: say=here sleep=20]]", workspace="scratch")["id"]
    started(service, blocker)
    job = service.run_job(SPENT, workspace=workspace_of(service))
    assert (job["state"], job["outcome"]["type"]) == ("failed", "budget")
    assert job["changes"]["files"] == 1
    # Another slot, so another user of this machine.
    service.client.post(f"/v1/jobs/{blocker}/cancel")
    service.wait_until_ended(blocker)
    resumed = resume(service, job["id"], budget_usd=9, prompt=LOOK, after_run=1)
    assert (resumed["state"], resumed["budget_usd"]) == ("queued", "9.000000")
    assert resume(service, job["id"], budget_usd=9, prompt=LOOK, after_run=1)["id"] == job["id"]
    done = service.wait_until_ended(job["id"])
    assert (done["state"], done["answer"]) == ("completed", SEEN), (done["error"], service.log[-2000:])
    assert done["session_id"] == job["session_id"]
    assert [run["number"] for run in done["runs"]] == [1, 2]
    assert done["changes"]["files"] == 1
    wait_until(lambda: not leftover_job_files(service), 10)
    assert host_mounts(service) == []
    again = service.wait_until_ended(resume(service, job["id"], prompt="[[standin: history]]")["id"])
    told = [text for role, text in json.loads(again["answer"]) if role == "user"]
    assert told == [SPENT, LOOK, "[[standin: history]]"]


@levels("sealed")
def test_a_planned_stop_goes_on_by_itself_at_the_next_start(service: Service) -> None:
    script = f"[[standin: {LEFT} say=here sleep=30]]"
    job_id = service.submit(script, workspace=workspace_of(service))["id"]
    started(service, job_id)
    assert service.terminate(20) == 0
    service.restart()
    done = service.wait_until_ended(job_id)
    assert [run["state"] for run in done["runs"]] == ["interrupted", "completed"]
    assert done["changes"]["files"] == 1
    numbers = [event["seq"] for event in service.events(job_id)]
    assert numbers == list(range(1, done["last_event"] + 1))
    assert "Continue from where you left off" in done["answer"]


ONCE, AGAIN = ["interrupted"], ["interrupted", "completed"]
AFTER_A_CRASH = {"auto": ONCE, "fail": ONCE, "resume": AGAIN, "restart": AGAIN}
AFTER_A_PLANNED_STOP = {"auto": AGAIN, "fail": ONCE, "resume": AGAIN, "restart": AGAIN}


# After a planned stop only `auto` differs, which is above.
@pytest.mark.parametrize("planned", [False, pytest.param(True, marks=pytest.mark.long)])
def test_after_a_stop_or_a_crash_what_was_asked_for_is_done_with_each_job(
    make_service: MakeService, *, planned: bool
) -> None:
    env = {"STEADYHAND_SERVICE__DRAIN_SECONDS": "0.2", "STEADYHAND_CONCURRENCY": "4"}
    service = make_service(config=CONFIG, env=env).start()
    runs_by_wish = AFTER_A_PLANNED_STOP if planned else AFTER_A_CRASH
    jobs = {wish: _start_job(service, wish) for wish in runs_by_wish}
    if planned:
        service.terminate(20)
    else:
        service.kill()
    service.restart()
    for wish, runs in runs_by_wish.items():
        _check_after_restart(service, jobs[wish], wish, runs)


def _start_job(service: Service, wish: str) -> dict[str, Any]:
    """Start a job and wait until it has done its work and sleeps; the one that restarts sleeps for a shorter time."""
    sleep = 3 if wish == "restart" else 30
    script = f"[[standin: run='ls left.txt' {LEFT} say=here sleep={sleep} text=whole]]"
    job_id = service.submit(script, workspace=workspace_of(service), on_interrupt=wish)["id"]
    started(service, job_id)
    return service.get_job(job_id)


def _check_after_restart(service: Service, job: dict[str, Any], wish: str, runs: list[str]) -> None:
    job_id, session = job["id"], job["session_id"]
    done = service.wait_until_ended(job_id)
    assert [run["state"] for run in done["runs"]] == runs, wish
    looks = [e["data"]["is_error"] for e in service.events(job_id) if e["type"] == "tool.finished"][::3]
    if wish == "restart":
        assert done["answer"] == "whole"
        assert done["session_id"] != session
        assert looks == [True, True]  # the checkout was made anew
    elif runs == AGAIN:
        assert done["session_id"] == session
        assert "Continue from where you left off" in done["answer"]
        assert len(looks) == 1  # what was done is not done again, and is there
        assert "+tracked-not" in service.client.get(f"/v1/jobs/{job_id}/diff").text
    elif wish == "auto":
        resume(service, job_id, prompt=LOOK)
        assert service.wait_until_ended(job_id)["answer"] == SEEN
    else:
        assert not [name for name in leftover_job_files(service) if name.startswith(job_id)]


@levels("sealed")
def test_a_completed_job_goes_on_in_a_checkout_made_anew_from_its_work(service: Service) -> None:
    script = "[[standin: write=a.txt:one commit=first write=left.txt:more text=done]]"
    job = service.run_job(script, workspace=workspace_of(service))
    assert job["state"] == "completed"
    wait_until(lambda: not leftover_job_files(service), 10)
    look = "[[standin: run='cat a.txt left.txt; git status --porcelain; git log --format=%s' text='{last}']]"
    done = service.wait_until_ended(resume(service, job["id"], prompt=look)["id"])
    head = f"Uncommitted work of job {job['id']}"
    assert done["answer"] == f"onemore{head}\nfirst\nfirst"
    assert done["changes"]["files"] == 2
    assert done["session_id"] == job["session_id"]


def test_a_checkout_is_kept_for_as_long_as_it_is_said(make_service: MakeService) -> None:
    service = make_service(config=CONFIG, env={"STEADYHAND_RETENTION__KEPT_CHECKOUTS": "5s"}).start()
    job = service.run_job(SPENT, workspace=workspace_of(service))
    assert leftover_job_files(service)
    service.terminate()
    service.restart()
    wait_until(lambda: not leftover_job_files(service), 15)  # 5 s of them it is kept
    # What was harvested is put back in its place; what was in the home is gone.
    done = service.wait_until_ended(resume(service, job["id"], budget_usd=9, prompt=LOOK)["id"])
    assert "tracked-not" in done["answer"]
    assert "of the home" not in done["answer"]


@levels("sealed")
def test_what_cannot_go_on_is_refused_with_the_reason(service: Service) -> None:
    running = service.submit("[[standin: say=here sleep=20]]")["id"]
    started(service, running)
    assert resume(service, running, 409)["code"] == "invalid_state"
    assert resume(service, running, 422, budget=3)["code"] == "unknown_field"
    assert resume(service, running, 422, budget_usd=-1)["code"] == "invalid_field"
    assert resume(service, "0" * 12, 404)["code"] == "not_found"
    service.client.post(f"/v1/jobs/{running}/cancel")
    service.wait_until_ended(running)


@pytest.mark.parametrize("service", ["sealed"], indirect=True)
def test_cancelling_what_was_to_go_on_lets_go_of_its_checkout(service: Service) -> None:
    job = service.run_job(SPENT, workspace=workspace_of(service))
    blockers = [
        service.submit("[[standin: say=here sleep=60]]", workspace="scratch")["id"]
        for _ in range(CONCURRENCY)
    ]
    for blocker in blockers:
        started(service, blocker)
    resume(service, job["id"], budget_usd=9)
    assert service.client.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200
    assert not [name for name in leftover_job_files(service) if name.startswith(job["id"])]
    for blocker in blockers:
        service.client.post(f"/v1/jobs/{blocker}/cancel")
    for blocker in blockers:
        service.wait_until_ended(blocker)
