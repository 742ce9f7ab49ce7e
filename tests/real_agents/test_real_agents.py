"""Real agents against the scripted model: what the service relies on, so that a change in one is noticed."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.real_agents.real_agents import COMMANDS, AgentRun, run_agent

from steadyhand.testing.model import ScriptedModel

# The others come into `make test` with their runners: to install them takes 474 MB.
agents = pytest.mark.parametrize(
    "name", [name if name == "codex" else pytest.param(name, marks=pytest.mark.long) for name in COMMANDS]
)


class AgentWorld:
    """A home and a repository of an agent's own, and the model that it asks."""

    def __init__(self, root: Path, model: ScriptedModel) -> None:
        self.home, self.checkout = root / "home", root / "checkout"
        self.home.mkdir()
        self.model = model
        subprocess.run(["git", "init", "-q", self.checkout], check=True, timeout=60)

    def run(self, name: str, prompt: str) -> AgentRun:
        return run_agent(name, self.home, self.checkout, self.model.url, prompt)


@pytest.fixture
def world(world_dir: Path, scripted_model: ScriptedModel) -> AgentWorld:
    return AgentWorld(world_dir, scripted_model)


def told_usage(name: str, run: AgentRun) -> dict[str, int] | None:
    """Return the tokens that the agent told, by the model's names; Kimi Code tells none."""
    if name == "codex":
        [usage] = [line["usage"] for line in run.lines if line["type"] == "turn.completed"]
        assert isinstance(usage, dict)
        return {
            "input_tokens": usage["input_tokens"] - usage["cached_input_tokens"],
            "cache_creation_input_tokens": usage["cache_write_input_tokens"],
            "cache_read_input_tokens": usage["cached_input_tokens"],
            "output_tokens": usage["output_tokens"],
        }
    if name == "opencode":
        parts: list[Any] = [line["part"] for line in run.lines if line["type"] == "step_finish"]
        tokens = [part["tokens"] for part in parts]
        return {
            "input_tokens": sum(one["input"] for one in tokens),
            "cache_creation_input_tokens": sum(one["cache"]["write"] for one in tokens),
            "cache_read_input_tokens": sum(one["cache"]["read"] for one in tokens),
            "output_tokens": sum(one["output"] for one in tokens),
        }
    return None


def told_texts(name: str, run: AgentRun) -> list[object]:
    """Return the texts of the answers that the agent told."""
    if name == "kimi":
        return [line["content"] for line in run.lines if line["role"] == "assistant" and "content" in line]
    parts: list[Any] = [line.get("item") or line.get("part") or {} for line in run.lines]
    return [part["text"] for part in parts if part.get("type") in ("agent_message", "text")]


@agents
def test_an_agent_edits_a_file_says_what_it_did_and_tells_the_models_count(
    world: AgentWorld, name: str
) -> None:
    run = world.run(name, "[[scenario:edit]] please")
    assert run.code == 0, run.stderr
    assert "Refusing to create helper binaries" not in run.stderr
    assert (world.checkout / "notes.txt").read_text() == "colour: green\n"
    first, *_, last = told_texts(name, run)
    assert first == "I'll write a note."
    assert str(last).startswith("Done. The tool said:")
    assert [request.turn_index for request in world.model.requests] == [0, 1, 2, 3]
    assert {request.cwd for request in world.model.requests} == {str(world.checkout)}
    assert told_usage(name, run) in (None, world.model.conversation_totals)
    titles = {"opencode": 1}
    assert len(world.model.side_requests) == titles.get(name, 0)


@agents
def test_an_agent_whose_key_is_refused_ends_with_1(world: AgentWorld, name: str) -> None:
    run = world.run(name, "[[scenario:unauthorized]]")
    assert run.code == 1
    assert world.model.calls >= 1
    assert world.model.conversation_totals == {}


@pytest.mark.long
@pytest.mark.parametrize("scenario", ["rate-limited", "server-error", "no-such-model", "no-credit"])
def test_codex_without_retries_asks_once_and_ends_with_1(world: AgentWorld, scenario: str) -> None:
    assert world.run("codex", f"[[scenario:{scenario}]]").code == 1
    assert world.model.calls == 1


@pytest.mark.long
@pytest.mark.parametrize("prompt", ["", " \n"])
def test_codex_refuses_an_empty_prompt_on_stdin(world: AgentWorld, prompt: str) -> None:
    run = world.run("codex", prompt)
    assert (run.code, world.model.calls) == (1, 0)
    assert "No prompt provided via stdin" in run.stderr


@agents
@pytest.mark.long
def test_a_prompt_that_looks_like_an_option_is_a_prompt(world: AgentWorld, name: str) -> None:
    run = world.run(name, "--version [[scenario:echo]]")
    assert run.code == 0, run.stderr
    assert told_texts(name, run)[-1] == "You said: --version [[scenario:echo]]"
