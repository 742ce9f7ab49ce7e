"""Turns that go on in the process, and so in the checkout, of the turn before: what they see, leave and cannot keep."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.sandboxed.warm_services import PATIENCE, cli, cli_below, events_of, wait_for_slot
from tests.service_fixtures import make_repository, make_service_root

from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.scenario import ModelToolCall, ModelTurn, Scenario
from steadyhand.testing.service import Service, run_git, wait_until

__all__ = ["cli"]  # a fixture, taken in
CONFIG = """\
[agents.claude]
warm = 1
live_seconds = 60

[agents.plain]
live_seconds = 0

[agents.later]
live_seconds = 60
"""
DO = Scenario(
    "do",
    "",
    (
        ModelTurn(tool=(ModelToolCall("Bash", {"command": "{prompt}", "description": "Do it"}),)),
        ModelTurn(text="{last_result}"),
    ),
)
WORK = (
    "printf 'one\\n' > a.txt; git add a.txt; git commit -qm first; printf 'two\\n' >> greeting.txt;"
    " printf 'new\\n' > left.txt; git tag mine; git checkout -q -b side; printf 'x\\n' > ignored.log"
)
LOOK = (
    "git status --porcelain; git log --format=%s; git symbolic-ref HEAD; git tag; git for-each-ref refs/remotes;"
    " cat a.txt greeting.txt left.txt; printf 'more\\n' > b.txt; rm a.txt"
)


LONG_IMAGE = pytest.param("image", marks=pytest.mark.long)


@pytest.fixture(scope="module", params=["overlay", LONG_IMAGE])
def service(request: pytest.FixtureRequest, reachable_tmp: Path, cli: Path) -> Iterator[Service]:
    """A sealed service whose processes of `claude` stay for their conversations; those of `plain` do not."""
    root = make_service_root(reachable_tmp)
    make_repository(root / "workspace", {"greeting.txt": "hello\n", ".gitignore": "*.log\n"})
    env = {
        "STEADYHAND_ISOLATION": "bwrap",
        "STEADYHAND_SERVICE__LOG_LEVEL": "debug",
        "WORKSPACE_DIR": str(root / "workspace"),
    }
    if request.param == "image":
        env["STEADYHAND_DEFAULTS__DISK"] = "64M"
    with (
        ScriptedModel(DO) as model,
        Service(root, cli, model=model.url, env=env, config=CONFIG, constants=PATIENCE) as made,
    ):
        yield made
    shutil.rmtree(root, ignore_errors=True)


def _start(service: Service, command: str, agent: str = "claude") -> dict[str, Any]:
    if agent == "claude":
        wait_for_slot(service)
    return _ended(service, service.submit(command, agent=agent, workspace="default")["id"])


def _go_on(service: Service, job: dict[str, Any], command: str) -> dict[str, Any]:
    answer = service.client.post(f"/v1/jobs/{job['id']}/turns", json={"prompt": command})
    assert answer.status_code == 202, answer.text
    return _ended(service, answer.json()["id"])


def _ended(service: Service, job_id: str) -> dict[str, Any]:
    job = service.wait_until_ended(job_id)
    assert job["state"] == "completed", (job, service.log)
    assert job["warnings"] == []
    return dict(job)


def _slot_of(service: Service, job: dict[str, Any]) -> tuple[str, bool] | None:
    """Return the slot of a job and True if its process held the conversation; None if it had a process of its own."""
    taken = (each for each in events_of(service, "warm.taken") if each["job"] == job["id"])
    return next(((each["slot_id"], each["is_live"]) for each in taken), None)


def _wait_until_kept(service: Service, job: dict[str, Any]) -> int:
    """Wait until the process of a job waits for its next turn; return its supervisor."""
    kept = wait_until(lambda: [each for each in events_of(service, "warm.kept") if each["job"] == job["id"]])
    return int(kept[0]["supervisor"])


def _answers(jobs: list[dict[str, Any]]) -> list[str]:
    """Return the answers of jobs without the ids of the jobs."""
    answers = [str(job["answer"]) for job in jobs]
    for job in jobs:
        answers = [each.replace(job["id"], "ID") for each in answers]
    return answers


def _diff(service: Service, job: dict[str, Any]) -> str:
    answer = service.client.get(f"/v1/jobs/{job['id']}/diff")
    assert answer.status_code == 200, answer.text
    return answer.text


def test_a_turn_sees_and_leaves_in_a_live_checkout_what_it_would_in_a_new_one(service: Service) -> None:
    turns = {}
    for agent in ("claude", "plain"):
        first = _start(service, WORK, agent)
        turns[agent] = [first]
        for command in (LOOK, "git log --format=%s; git status --porcelain; cat b.txt; rm b.txt"):
            turns[agent].append(_go_on(service, turns[agent][-1], command))
    live, cold = turns["claude"], turns["plain"]
    slots = [_slot_of(service, job) for job in live]
    assert [slot is not None and slot[1] for slot in slots] == [False, True, True]
    assert len({slot[0] for slot in slots if slot is not None}) == 1
    assert [_slot_of(service, job) for job in cold] == [None, None, None]
    assert _answers(live) == _answers(cold)
    assert "refs/heads/steadyhand/work" in live[1]["answer"]
    for one, other in zip(live, cold, strict=True):
        assert (one["commit"], one["changes"]["base"]) == (other["commit"], other["changes"]["base"])
        assert _diff(service, one) == _diff(service, other)
        names = ("files", "insertions", "deletions")
        assert [one["changes"][name] for name in names] == [other["changes"][name] for name in names]


def test_nothing_that_a_turn_has_started_goes_on_after_it(service: Service) -> None:
    first = _start(
        service, "setsid sleep 3210 > /dev/null 2>&1 & nohup sleep 3210 > /dev/null 2>&1 & echo ok"
    )
    _wait_until_kept(service, first)
    assert not _sleepers()
    second = _go_on(service, first, "cat /proc/[0-9]*/comm")
    assert (_slot_of(service, second) or ("", False))[1]
    assert "sleep" not in second["answer"]


# The next one ends with a process that died.
@pytest.mark.long
def test_a_live_process_that_died_costs_a_resume_and_none_of_its_work(service: Service) -> None:
    supervisor = wait_for_slot(service)
    first = _start(service, "printf 'kept\\n' > kept.txt; git stash list")
    assert _slot_of(service, first) is not None
    _wait_until_kept(service, first)
    os.kill(cli_below(supervisor), signal.SIGKILL)
    second = _go_on(service, first, "cat kept.txt")
    assert second["answer"].strip() == "kept"
    assert not (_slot_of(service, second) or ("", False))[1] or len(events_of(service, "warm.lost")) > 0
    assert second["changes"]["files"] == 1


@pytest.mark.parametrize("workspace", ["default", pytest.param("scratch", marks=pytest.mark.long)])
def test_a_process_that_a_job_has_started_stays_for_the_next_turn(service: Service, workspace: str) -> None:
    first = _ended(
        service,
        service.submit("printf 'a\\n' > a.txt; id -u", agent="later", workspace=workspace)["id"],
    )
    assert _slot_of(service, first) is None
    _wait_until_kept(service, first)
    second = _go_on(service, first, "cat a.txt; id -u; printf 'b\\n' > b.txt")
    third = _go_on(service, second, "cat a.txt b.txt")
    slots = [_slot_of(service, job) for job in (second, third)]
    assert [slot is not None and slot[1] for slot in slots] == [True, True]
    assert second["answer"].split() == ["a", first["answer"].strip()]
    assert third["answer"].split() == ["a", "b"]
    assert second["session_id"] == first["session_id"]
    if workspace == "default":
        assert [job["changes"]["files"] for job in (first, second, third)] == [1, 2, 2]
    supervisor = _wait_until_kept(service, third)
    os.kill(cli_below(supervisor), signal.SIGKILL)
    fourth = _go_on(service, third, "cat a.txt")
    assert (fourth["answer"].strip() == "a") == (workspace == "default")  # no harvest without a repository


def test_an_unfinished_command_of_git_costs_the_process(service: Service) -> None:
    first = _start(
        service, "printf 'a\\n' > a.txt; git add .; git commit -qm a; mkdir .git/rebase-merge; echo ok"
    )
    second = _go_on(service, first, "git status; cat a.txt")
    assert _slot_of(service, second) is None or not (_slot_of(service, second) or ("", True))[1]
    assert "rebase" not in second["answer"]
    assert second["answer"].strip().endswith("a")


# The last one: it moves the base, and no waiting process is for another one.
def test_a_turn_in_a_live_checkout_sees_the_branches_of_now_and_keeps_its_base(service: Service) -> None:
    repository = service.root / "workspace"
    first = _start(service, "git pack-refs --all; git rev-parse HEAD")
    run_git(repository, "branch", f"for-{first['id']}")
    (repository / "greeting.txt").write_text(f"hello {first['id']}\n")
    run_git(repository, "commit", "-qam", "Move on")
    time.sleep(2.1)  # the debounce of fetches
    second = _go_on(service, first, "git for-each-ref; git rev-parse HEAD")
    assert _slot_of(service, second) == ((_slot_of(service, first) or ("", False))[0], True)
    assert f"refs/remotes/origin/for-{first['id']}" in second["answer"]
    assert f"{run_git(repository, 'rev-parse', 'HEAD')} commit\trefs/remotes/origin/" in second["answer"]
    assert second["answer"].strip().splitlines()[-1] == first["answer"].strip().splitlines()[-1]
    assert (second["commit"], second["changes"]) == (first["commit"], None)


def _sleepers() -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and b"sleep\x003210\x00" in (folder / "cmdline").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found
