"""The end of a run in a process that waited for it: it is killed, and nothing that it would do is lost."""

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from steadyhand.agents import AgentDefinition
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.runner import ClaudeRunner
from steadyhand.runner.process.agent_process import AgentProcess, ExitStatus
from steadyhand.sandbox.sandbox import NoSandbox
from steadyhand.testing.cli import DUMMY_API_KEY
from steadyhand.testing.contracts.runner_harness import RecordedRun, RunnerHarness
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.processes import pids_with_mark

ANSWER = "ok: the scripted model has read the prompt."
HOOK = "hooks:\n  Stop:\n    - hooks:\n        - type: command\n          command: 'true'\n"


@dataclass
class _Ends:
    """The ends of processes: if each kill met a living agent, and how often an input was closed."""

    killed_alive: list[bool] = field(default_factory=list)
    closed_inputs: int = 0


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> _Ends:
    seen = _Ends()
    kill, end_input = AgentProcess.kill, AgentProcess.end_input

    async def killed(self: AgentProcess, *, has_answered: bool = False) -> ExitStatus:
        seen.killed_alive.append(self.running)
        return await kill(self, has_answered=has_answered)

    def closed(self: AgentProcess) -> None:
        seen.closed_inputs += self.input_open and self.running
        end_input(self)

    monkeypatch.setattr(AgentProcess, "kill", killed)
    monkeypatch.setattr(AgentProcess, "end_input", closed)
    return seen


def _run(
    cli: Path, world: Path, model: ScriptedModel, definition: str | None = None, *, is_new: bool = False
) -> tuple[RecordedRun, RunnerHarness]:
    runner = ClaudeRunner(cli, NoSandbox(), NO_REDACTION, enforce_budget=False)
    agent = {} if definition is None else {"definition": "triage"}
    stage = RunnerHarness.make(runner, world, "Say that all is well.", **agent)
    granted = {"ANTHROPIC_API_KEY": DUMMY_API_KEY, "ANTHROPIC_BASE_URL": model.url}
    place = stage.spec.checkout
    if definition is not None:
        assert place.config_dir is not None
        (place.config_dir / "agents").mkdir()
        (place.config_dir / "agents" / "triage.md").write_text(definition, encoding="utf-8")
        place = replace(
            place, definitions={"triage": AgentDefinition("triage", "Sorts.", definition, "data_dir")}
        )
    stage.spec = replace(stage.spec, checkout=place, environment={**stage.spec.environment, **granted})
    if is_new:
        return asyncio.run(stage.run()), stage

    async def run_waiting() -> RecordedRun:
        async with asyncio.timeout(60), runner.prepare(stage.spec, None, initialise=True) as waiting:
            report = await waiting.run(stage.spec, stage.emit, stage.stop)
            assert _processes(stage) == []
        return RecordedRun(report, stage.events, stage.mark, stage.supervisors)

    return asyncio.run(run_waiting()), stage


def _processes(stage: RunnerHarness) -> list[int]:
    return list(pids_with_mark(stage.mark))


def _session(stage: RunnerHarness) -> str:
    assert stage.spec.checkout.config_dir is not None
    (file,) = stage.spec.checkout.config_dir.glob("projects/*/*.jsonl")
    return file.read_text("utf-8")


def test_an_agent_that_waits_for_more_is_killed_with_its_session_on_disk(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel, ends: _Ends
) -> None:
    run, stage = _run(real_cli, world_dir, scripted_model)
    assert run.outcome == "success"
    assert run.report.warnings == ()
    assert not run.report.process_kept
    assert ends.killed_alive[0]
    assert ends.closed_inputs == 0
    assert ANSWER in _session(stage)


def test_an_agent_that_was_started_for_its_job_ends_by_itself(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel, ends: _Ends
) -> None:
    run, _ = _run(real_cli, world_dir, scripted_model, is_new=True)
    assert run.outcome == "success"
    assert True not in ends.killed_alive
    assert ends.closed_inputs == 1


def test_an_agent_with_hooks_ends_by_itself(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel, ends: _Ends
) -> None:
    definition = f"---\nname: triage\ndescription: Sorts.\n{HOOK}---\nSort.\n"
    run, _ = _run(real_cli, world_dir, scripted_model, definition)
    assert run.outcome == "success"
    assert True not in ends.killed_alive
    assert ends.closed_inputs == 1


def test_an_agent_that_does_not_write_its_session_ends_by_itself(
    real_cli: Path,
    world_dir: Path,
    scripted_model: ScriptedModel,
    ends: _Ends,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never(*_: Any) -> bool:
        return False

    monkeypatch.setattr(ClaudeRunner, "_is_written", never)
    run, stage = _run(real_cli, world_dir, scripted_model)
    assert run.outcome == "success"
    assert run.report.warnings == ()
    assert ends.closed_inputs == 1
    assert True not in ends.killed_alive
    assert ANSWER in _session(stage)
