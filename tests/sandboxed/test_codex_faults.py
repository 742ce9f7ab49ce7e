"""Codex, real and sealed, in what goes wrong: its ends, refusals of the model, another slot, and odd prompts."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.sandboxed.codex_services import codex_config, counted, next_turn, run, usage
from tests.sandboxed.host_inspection import cgroup_folders, live_agent_processes, live_agent_users
from tests.sandboxed.test_kill_matrix import reclaimed

from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.scenario import ModelToolCall, ModelTurn, Scenario
from steadyhand.testing.service import MakeService, Service, wait_until

LEAVING = Scenario(
    "leaving",
    "A command that leaves a child in a session of its own, which would run for a minute, and the answer.",
    (
        ModelTurn(
            tool=(ModelToolCall("Bash", {"command": "setsid sleep 60 > /dev/null 2>&1 < /dev/null &"}),)
        ),
        ModelTurn(text="Done.", delay_seconds=1),
    ),
)
DEAF = "[[scenario:deaf-tool]]"
DEAF_PROCESSES = 3
CANCEL_SECONDS = 3
MAX_PROMPT = 1 << 20
"""The longest prompt that Codex takes, in characters; of which one may have several bytes."""


@dataclass(frozen=True, slots=True)
class World:
    service: Service
    model: ScriptedModel

    def started(self, name: str, count: int) -> set[Any]:
        """Wait until so many processes of this name are alive in runs, and give the control groups."""

        def look() -> dict[int, str] | None:
            found = live_agent_processes(self.service)
            return found if sum(each == name for each in found.values()) >= count else None

        return cgroup_folders(wait_until(look, 60))


# Without a sandbox test_codex.py has the sessions and a cancel, and test_kill_matrix.py each kind of child.
@pytest.fixture(scope="module", params=["bwrap", pytest.param("none", marks=pytest.mark.long)])
def world(make_service_in: MakeService, request: pytest.FixtureRequest) -> Iterator[World]:
    with ScriptedModel(LEAVING) as model:
        made = make_service_in(env={"STEADYHAND_ISOLATION": request.param, "STEADYHAND_CONCURRENCY": "3"})
        key = made.root / "openai.key"
        key.write_text("sk-of-codex")
        made.config_path.write_text(codex_config(model.url, key))
        with made:
            yield World(made, model)


def test_a_cancel_ends_a_deaf_command_its_session_and_its_daemon_within_three_seconds(world: World) -> None:
    service = world.service
    job_id = service.submit(DEAF)["id"]
    groups = world.started("python3", DEAF_PROCESSES)
    assert service.client.post(f"/v1/jobs/{job_id}/cancel").status_code == 202
    assert service.wait_until_ended(job_id, CANCEL_SECONDS)["state"] == "cancelled"
    reclaimed(service, job_id, groups)


def test_a_timeout_ends_them_too(world: World) -> None:
    # Long enough for Codex to start its command on a busy machine; the command goes on for some ten seconds.
    job_id = world.service.submit(DEAF, timeout_seconds=9)["id"]
    groups = world.started("python3", DEAF_PROCESSES)
    assert reclaimed(world.service, job_id, groups)["state"] == "timeout"


def test_a_good_end_leaves_no_child_in_a_session_of_its_own(world: World) -> None:
    job_id = world.service.submit("Leave a child.")["id"]
    groups = world.started("sleep", 1)
    job = reclaimed(world.service, job_id, groups)
    assert (job["state"], job["answer"]) == ("completed", "Done.")


def test_a_short_rate_limit_is_waited_for_by_the_gateway(world: World) -> None:
    world.model.clear()
    job = run(world.service, "[[scenario:rate-limited-once]]")
    assert job["state"] == "completed", job
    assert world.model.calls == 2
    assert usage(job) == counted(world.model)


def test_the_next_turn_goes_on_in_the_thread_as_another_user_of_the_machine(world: World) -> None:
    service, model = world.service, world.model
    job_id = service.submit("[[scenario:silent-tool]] Remember the word heron.", workspace="scratch")["id"]
    users = wait_until(lambda: live_agent_users(service), 60)
    first = service.wait_until_ended(job_id, 60)
    assert first["state"] == "completed"
    wait_until(lambda: not live_agent_users(service), 60)
    blocker = service.submit("[[scenario:silent]]")["id"]
    assert wait_until(lambda: live_agent_users(service), 60) == users
    wait_until(lambda: any("scenario:silent]]" in request.prompt for request in model.requests), 60)
    model.clear()
    second = next_turn(service, first, "[[scenario:echo]] And again.")
    assert second["state"] == "completed", second["outcome"]
    assert second["session_id"] == first["session_id"]
    assert "heron" in json.dumps(model.requests[-1].body)
    assert usage(second) == counted(model)
    service.client.post(f"/v1/jobs/{blocker}/cancel")
    service.wait_until_ended(blocker)


@pytest.mark.parametrize("prompt", ["", " \n\t "])
def test_an_empty_prompt_is_refused_before_codex_would_ask_the_model(world: World, prompt: str) -> None:
    world.model.clear()
    answer = world.service.client.post("/v1/jobs", json={"prompt": prompt, "agent": "codex"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/prompt")
    assert world.model.calls == 0


@pytest.mark.parametrize(
    "prompt",
    [
        "-",
        "--help",
        "--dangerously-bypass-approvals-and-sandbox",
        "resume --last",
        "/quit",
    ],
)
def test_a_prompt_that_looks_like_another_thing_is_text(world: World, prompt: str) -> None:
    world.model.clear()
    job = run(world.service, f"{prompt}\n[[scenario:ok]]")
    assert job["state"] == "completed", (job, world.service.log)
    assert world.model.requests[-1].prompt.startswith(f"{prompt}\n")


def test_the_longest_prompt_that_codex_takes_reaches_the_model_whole(world: World) -> None:
    world.model.clear()
    prompt = "begin é [[scenario:ok]] " + "x" * MAX_PROMPT
    job = run(world.service, prompt[: MAX_PROMPT - 4] + " end")
    assert job["state"] == "completed", (job["outcome"], job["error"])
    sent = world.model.requests[-1].prompt
    assert (len(sent), sent[-5:]) == (MAX_PROMPT, "x end")
    assert usage(job) == counted(world.model)


@pytest.mark.parametrize("length", [MAX_PROMPT + 1, 2_000_000])
def test_a_longer_prompt_is_refused_before_codex_starts(world: World, length: int) -> None:
    world.model.clear()
    job = run(world.service, "x" * length)
    assert (job["state"], job["outcome"]["type"], job["error"]["retryable"]) == (
        "error",
        "not_started",
        False,
    )
    assert "1048576 characters" in job["error"]["message"]
    assert world.model.calls == 0
