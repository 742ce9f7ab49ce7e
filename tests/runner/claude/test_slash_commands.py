"""Prompts that begin with a slash, with the real CLI: its own names are text, the repository's are commands."""

import asyncio
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steadyhand.job import SlashCommand
from steadyhand.outcome import decide_outcome
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.launch import encode_prompt
from steadyhand.runner.claude.plain import PlainRunner
from steadyhand.runner.claude.runner import ClaudeRunner
from steadyhand.runner.claude.slash_commands import UNLISTED, SlashCommands, is_built_in, parse_commands
from steadyhand.sandbox.sandbox import NoSandbox
from steadyhand.testing.cli import DUMMY_API_KEY, isolated_env
from steadyhand.testing.contracts.runner_harness import RunnerHarness
from steadyhand.testing.model import ScriptedModel

COMMANDS = SlashCommands(built_in=frozenset({"clear", "new"}), defined=frozenset({"mine", "front:part"}))


@pytest.mark.parametrize(
    "prompt",
    [
        "say it",
        "/mine",
        "/mine a b",
        "/mine\na",
        "/front:part x",
        "/mcp__x__y z",
        "/",
        "/ new",
        "/etc/hosts",
        "/Mine",
    ],
)
def test_a_defined_command_and_what_can_be_no_name_are_left_to_the_cli(prompt: str) -> None:
    assert not is_built_in(prompt, COMMANDS)


@pytest.mark.parametrize(
    "prompt", ["/clear", "/new x @note.txt", "/status page", "/status\npage @x", "/later-name x"]
)
def test_the_clis_own_names_listed_or_not_are_built_in(prompt: str) -> None:
    assert is_built_in(prompt, COMMANDS)


def test_a_path_is_read_in_a_prompt_with_a_name_that_nobody_has() -> None:
    assert not is_built_in("/later-name see @note.txt", COMMANDS)


def test_a_list_of_commands_of_a_wrong_shape_is_passed_over() -> None:
    raw = {
        "commands": [1, {"name": 2}, {"name": "a", "aliases": "b"}, {"name": "c", "aliases": ["d", 3]}, {}]
    }
    assert parse_commands(raw).defined == {"a", "c", "d"}
    shapes: tuple[Any, ...] = (None, {}, {"commands": {}})
    for broken in shapes:
        assert parse_commands(broken) == SlashCommands(frozenset(), frozenset())


def _stage(
    cli: Path, world: Path, model: ScriptedModel, prompt: str, mode: str = "stream", **fields: Any
) -> RunnerHarness:
    kind = PlainRunner if mode == "plain" else ClaudeRunner
    stage = RunnerHarness.make(kind(cli, NoSandbox(), NO_REDACTION), world, prompt, **fields)
    checkout = stage.spec.checkout
    folder = checkout.directory / ".claude" / "commands"
    folder.mkdir(parents=True)
    (checkout.directory / "note.txt").write_text("a quetzal\n", "utf-8")
    (folder / "mine.md").write_text("Do my thing with $ARGUMENTS.\n", "utf-8")
    granted = {"ANTHROPIC_API_KEY": DUMMY_API_KEY, "ANTHROPIC_BASE_URL": model.url}
    environment = {**stage.spec.environment, **granted}
    stage.spec = replace(stage.spec, environment=environment, checkout=replace(checkout, full_trust=True))
    return stage


@pytest.mark.parametrize(
    "prompt",
    [
        "/status page is down",
        pytest.param("/cost of the last deploy went up", marks=pytest.mark.long),
        pytest.param("/plan a refactoring", marks=pytest.mark.long),
    ],
)
def test_the_name_of_a_command_of_the_clis_own_is_text(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel, prompt: str
) -> None:
    ran = asyncio.run(_stage(real_cli, world_dir, scripted_model, prompt).run())
    assert ran.outcome == "success"
    (request,) = scripted_model.requests
    assert request.prompt.strip() == prompt


def test_a_name_that_nobody_has_is_text_and_a_path_beside_it_is_read(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel
) -> None:
    ran = asyncio.run(_stage(real_cli, world_dir, scripted_model, "/nowhere see @note.txt").run())
    assert ran.outcome == "success"
    assert "a quetzal" in str(scripted_model.requests[0].body["messages"])


@pytest.mark.long
def test_each_name_that_is_not_listed_is_one_that_the_cli_takes(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel
) -> None:
    lines = [encode_prompt(f"/{name} of it", verbatim=False) for name in sorted(UNLISTED)]
    argv = ["-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"]
    done = subprocess.run(
        [real_cli, *argv],
        input=b"".join(lines),
        env=isolated_env(world_dir, scripted_model.url),
        cwd=world_dir,
        capture_output=True,
        timeout=120,
        check=True,
    )
    results = [json.loads(line) for line in done.stdout.splitlines() if b'"type":"result"' in line]
    assert len(results) == len(UNLISTED)
    assert scripted_model.calls == 0


@pytest.mark.parametrize(
    ("prompt", "command"),
    [
        pytest.param("/mine a and b", None, marks=pytest.mark.long),
        ("/mine a and b", SlashCommand("mine", "a and b")),
    ],
)
def test_a_command_of_the_repository_runs_by_its_prompt_and_by_the_field(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel, prompt: str, command: SlashCommand | None
) -> None:
    ran = asyncio.run(_stage(real_cli, world_dir, scripted_model, prompt, command=command).run())
    assert ran.outcome == "success"
    assert "Do my thing with a and b." in str(scripted_model.requests[0].body["messages"])


def test_a_command_that_nobody_defines_is_an_outcome_of_its_own(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel
) -> None:
    command = SlashCommand("nowhere")
    ran = asyncio.run(_stage(real_cli, world_dir, scripted_model, command.prompt, command=command).run())
    outcome = decide_outcome(ran.report.evidence)
    assert (outcome.type, outcome.detail) == ("unknown_command", "Nobody defines the command 'nowhere'.")
    assert scripted_model.calls == 0


@pytest.mark.parametrize("mode", [pytest.param("plain", marks=pytest.mark.long), "stream"])
def test_a_command_that_only_prints_has_not_asked_the_model(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel, mode: str
) -> None:
    command = SlashCommand("usage")
    fields = {"command": command} if mode == "stream" else {}
    ran = asyncio.run(
        _stage(real_cli, world_dir, scripted_model, command.prompt, mode, agent="claude", **fields).run()
    )
    assert (ran.outcome, scripted_model.calls) == ("not_asked", 0)
    assert ran.report.evidence.exit_code == 0


def test_a_skill_that_forks_has_asked_the_model_and_its_cost_counts(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel
) -> None:
    stage = _stage(real_cli, world_dir, scripted_model, "/forked x")
    folder = stage.spec.checkout.directory / ".claude" / "skills" / "forked"
    folder.mkdir(parents=True)
    (folder / "SKILL.md").write_text(
        "---\nname: forked\ndescription: d\ncontext: fork\n---\nDo it.\n", "utf-8"
    )
    ran = asyncio.run(stage.run())
    result = ran.report.evidence.result
    assert (ran.outcome, scripted_model.calls) == ("success", 1)
    assert result is not None
    assert result.usage is not None
    assert (result.usage.turns, bool(result.cost_micros)) == (0, True)
