"""Hooks that keep the real CLI from its work: the outcome says so."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steadyhand.outcome import StopReason, decide_outcome
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.runner import ClaudeRunner
from steadyhand.sandbox.sandbox import NoSandbox
from steadyhand.testing.cli import DUMMY_API_KEY
from steadyhand.testing.contracts.runner_harness import RunnerHarness
from steadyhand.testing.model import ScriptedModel

DEFER = {"hookSpecificOutput": {"hookEventName": "PreToolUse", "permissionDecision": "defer"}}
STOP = {"continue": False, "stopReason": "halt"}


def _stage(
    cli: Path, world: Path, model: ScriptedModel, event: str, command: str, **fields: Any
) -> RunnerHarness:
    runner = ClaudeRunner(cli, NoSandbox(), NO_REDACTION)
    stage = RunnerHarness.make(runner, world, "[[scenario:bash]] go", **fields)
    checkout = stage.spec.checkout
    folder = checkout.directory / ".claude"
    folder.mkdir()
    hook = {"matcher": "", "hooks": [{"type": "command", "command": command}]}
    (folder / "settings.json").write_text(json.dumps({"hooks": {event: [hook]}}), "utf-8")
    granted = {"ANTHROPIC_API_KEY": DUMMY_API_KEY, "ANTHROPIC_BASE_URL": model.url}
    environment = {**stage.spec.environment, **granted}
    stage.spec = replace(stage.spec, environment=environment, checkout=replace(checkout, full_trust=True))
    return stage


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        (("UserPromptSubmit", "echo too long >&2; exit 2"), ("It blocked the prompt: too long", 0)),
        pytest.param(
            ("UserPromptSubmit", f"echo '{json.dumps(STOP)}'"),
            ("It blocked the prompt: halt", 0),
            marks=pytest.mark.long,
        ),
        (
            ("Stop", 'echo \'{"decision": "block", "reason": "go on"}\''),
            ("It refused the end of the turn", 10),
        ),
        (("PreToolUse", f"echo '{json.dumps(DEFER)}'"), ("A hook deferred a call of a tool", 1)),
        (("PostToolUse", f"echo '{json.dumps(STOP)}'"), ("A hook stopped the agent.", 1)),
    ],
)
def test_a_hook_that_ends_the_work_is_the_outcome(
    real_cli: Path,
    world_dir: Path,
    scripted_model: ScriptedModel,
    hook: tuple[str, str],
    expected: tuple[str, int],
) -> None:
    ran = asyncio.run(_stage(real_cli, world_dir, scripted_model, *hook).run())
    outcome, (detail, calls) = decide_outcome(ran.report.evidence), expected
    assert (outcome.type, scripted_model.calls) == ("hook", calls)
    assert (outcome.detail or "").startswith(detail)


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        (StopReason.DEADLINE, "timeout"),
        pytest.param(StopReason.IDLE, "stalled", marks=pytest.mark.long),
    ],
)
def test_a_session_start_hook_that_hangs_is_named_when_a_limit_passes(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel, reason: StopReason, outcome: str
) -> None:
    stage = _stage(real_cli, world_dir, scripted_model, "SessionStart", "touch begun; exec sleep 60")
    begun = stage.spec.checkout.directory / "begun"

    async def limit() -> None:
        await stage.wait_until(begun.exists)
        stage.stop.request(reason)

    ran = asyncio.run(stage.run_with(limit))
    decided = decide_outcome(ran.report.evidence)
    assert (decided.type, decided.detail) == (outcome, "The hook SessionStart:startup has not ended.")
    assert scripted_model.calls == 0
