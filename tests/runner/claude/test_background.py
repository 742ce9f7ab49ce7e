"""Work that the real CLI has in the background when its turn ends; the scripted model starts it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steadyhand.events import Message, UsageReported
from steadyhand.job import ClientTool
from steadyhand.outcome import RunEvidence, StopReason
from steadyhand.ports import ClientToolCall
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.runner import ClaudeRunner
from steadyhand.runner.process import run_loop
from steadyhand.sandbox.sandbox import NoSandbox
from steadyhand.testing import scenario
from steadyhand.testing.cli import DUMMY_API_KEY
from steadyhand.testing.contracts.runner_harness import RunnerHarness
from steadyhand.testing.model import ScriptedModel

FIRST, LAST = "I will be told when it is done.", "The build is done."
WITH_TOOL = """\
description = "As background, and the turn at its end calls a tool of the client."
[[turn]]
[[turn.tool]]
name = "Bash"
input = { command = "sleep 1; echo woke", run_in_background = true, description = "Build the site" }
[[turn]]
text = "I will be told when it is done."
[[turn]]
[[turn.tool]]
name = "mcp__client__look"
input = {}
[[turn]]
text = "It said: {last_result}"
"""


@pytest.fixture(autouse=True)
def _short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the wait without background work shorter than the work of the scenarios."""
    monkeypatch.setattr(run_loop, "LINGER_SECONDS", 4.0)


def _stage(
    cli: Path, world: Path, model: ScriptedModel, prompt: str, background: float = 60, **fields: Any
) -> RunnerHarness:
    stage = RunnerHarness.make(ClaudeRunner(cli, NoSandbox(), NO_REDACTION), world, prompt, **fields)
    granted = {"ANTHROPIC_API_KEY": DUMMY_API_KEY, "ANTHROPIC_BASE_URL": model.url}
    environment = {**stage.spec.environment, **granted}
    stage.spec = replace(stage.spec, environment=environment, background_seconds=background)
    return stage


def _texts(stage: RunnerHarness) -> list[str]:
    return [event.text for event in stage.events if isinstance(event, Message)]


def _codes(warnings: Any) -> list[str]:
    return [str(warning.code) for warning in warnings]


def test_a_run_waits_for_its_background_and_its_result_is_that_of_the_turn_that_it_wakes(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel
) -> None:
    # The idle limit is shorter than the work: an agent that waits for it is not silent.
    stage = _stage(real_cli, world_dir, scripted_model, "[[scenario:background]] go", idle_timeout_seconds=5)
    told: list[RunEvidence] = []
    stage.spec = replace(stage.spec, on_answer=told.append)
    ran = asyncio.run(stage.run())
    assert ran.outcome == "success"
    assert (stage.spec.checkout.directory / "woke.txt").read_text() == "woke\n"
    result = ran.report.evidence.result
    assert result is not None
    assert result.text == LAST
    # The answer is told of once nothing goes on: not the first result, and not when its background has ended.
    assert [each.result for each in told] == [result]
    assert _texts(stage) == ["I start it.", FIRST, LAST]
    assert ran.report.warnings == ()
    # Usage and cost are those of both results together.
    totals = scripted_model.conversation_totals
    assert result.usage is not None
    assert (result.usage.turns, result.usage.output_tokens) == (3, totals["output_tokens"])
    reported = ran.events_of(UsageReported)[-1]
    assert (reported.turns, reported.output_tokens) == (3, totals["output_tokens"])
    assert result.cost_micros is not None
    assert result.raw is not None
    assert result.cost_micros == round(result.raw["total_cost_usd"] * 1_000_000)


def test_what_still_runs_after_the_wait_is_stopped_and_named_and_the_run_keeps_its_result(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel
) -> None:
    prompt = "[[scenario:development-server]] go"
    ran = asyncio.run(_stage(real_cli, world_dir, scripted_model, prompt, background=0.5).run())
    assert (ran.outcome, ran.report.evidence.result and ran.report.evidence.result.text) == (
        "success",
        "The server runs.",
    )
    (warning,) = ran.report.warnings
    assert warning.code == "background_stopped"
    assert "Development server" in warning.message


def _after_result(stage: RunnerHarness, reason: StopReason) -> Callable[[], Awaitable[None]]:
    async def stop() -> None:
        await stage.wait_until(
            lambda: any(isinstance(each, UsageReported) and each.cost_usd for each in stage.events)
        )
        stage.stop.request(reason)

    return stop


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (StopReason.DEADLINE, ("success", ["background_stopped"])),
        pytest.param(StopReason.CANCEL, ("cancelled", []), marks=pytest.mark.long),
    ],
)
def test_a_deadline_ends_the_wait_with_the_result_and_a_cancel_ends_it_without(
    real_cli: Path,
    world_dir: Path,
    scripted_model: ScriptedModel,
    reason: StopReason,
    expected: tuple[str, list[str]],
) -> None:
    stage = _stage(real_cli, world_dir, scripted_model, "[[scenario:development-server]] go")
    ran = asyncio.run(stage.run_with(_after_result(stage, reason)))
    assert (ran.outcome, _codes(ran.report.warnings)) == expected


def test_the_turn_that_background_work_wakes_can_call_tools_of_the_client(
    real_cli: Path,
    world_dir: Path,
    scripted_model: ScriptedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "with-tool.toml").write_text(WITH_TOOL, "utf-8")
    monkeypatch.setattr(scenario, "FOLDER", tmp_path)
    tools = (ClientTool("look", "Look.", {"type": "object", "properties": {}}),)
    stage = _stage(real_cli, world_dir, scripted_model, "[[scenario:with-tool]] go", tools=tools)

    async def answer(calls: tuple[ClientToolCall, ...], _is_in_session: object) -> dict[str, str]:
        return {call.id: "a quetzal" for call in calls}

    stage.spec = replace(stage.spec, call_client_tools=answer)  # type: ignore[arg-type]  # a sequence, as it comes
    ran = asyncio.run(stage.run())
    assert ran.outcome == "success"
    assert _texts(stage)[-1] == "It said: a quetzal"
    assert ran.report.warnings == ()
