"""A process that waits for a job: its environment, with the real CLI."""

import asyncio
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path

from tests.async_tests import in_loop

from steadyhand.agents import Agent
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.environment import WAITING_ENV
from steadyhand.runner.claude.launch import build_launch
from steadyhand.runner.claude.runner import ClaudeRunner
from steadyhand.runner.process.process_tree import descendants
from steadyhand.sandbox.sandbox import NoSandbox
from steadyhand.testing.cli import DUMMY_API_KEY
from steadyhand.testing.contracts.runner_harness import RunnerHarness
from steadyhand.testing.live_folders import paths_in
from steadyhand.testing.model import ScriptedModel

SECONDS = 60.0
SEEN = 6
"""The wake-ups of a collector that show that its timer goes."""


def _collections(supervisor: int) -> int:
    """Return how often the threads that collect garbage for the processes below a supervisor have slept."""
    count = 0
    for pid in descendants(supervisor):
        for thread in paths_in(Path(f"/proc/{pid}/task")):
            with suppress(OSError):
                status = (thread / "status").read_text()
                if status.startswith("Name:\tHeapHelper"):
                    count += int(status.partition("\nvoluntary_ctxt_switches:\t")[2].split()[0])
    return count


@in_loop
async def test_a_waiting_process_collects_no_garbage_by_a_timer_unless_its_agent_wants_it(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel
) -> None:
    runner = ClaudeRunner(real_cli, NoSandbox(), NO_REDACTION, enforce_budget=False)
    async with asyncio.timeout(SECONDS), AsyncExitStack() as stack:
        supervisors = []
        for env in ({}, dict.fromkeys(WAITING_ENV, "0")):
            spec = RunnerHarness.make(runner, world_dir, "").spec
            granted = {"ANTHROPIC_API_KEY": DUMMY_API_KEY, "ANTHROPIC_BASE_URL": scripted_model.url}
            spec = replace(spec, agent=Agent("claude", env=env), environment={**spec.environment, **granted})
            waiting = await stack.enter_async_context(runner.prepare(spec, None, initialise=True))
            supervisors.append(waiting.supervisor[0])
        without, with_timer = supervisors
        # What the start and `initialize` have begun is over once the other one's timer has gone for a while.
        await _more_than(with_timer, SEEN)
        before = _collections(without)
        await _more_than(with_timer, SEEN)
        assert _collections(without) == before


async def _more_than(supervisor: int, count: int) -> None:
    """Wait until the collector has woken so often from now on."""
    before = _collections(supervisor)
    while _collections(supervisor) < before + count:  # noqa: ASYNC110  # another process's doing
        await asyncio.sleep(0.05)


def test_a_process_with_a_job_of_its_own_collects_as_usual(world_dir: Path, real_cli: Path) -> None:
    spec = RunnerHarness.make(ClaudeRunner(real_cli, NoSandbox(), NO_REDACTION), world_dir, "").spec
    for details_later in (False, True):
        launch = build_launch(real_cli, spec, "session", NoSandbox(), details_later=details_later)
        assert (WAITING_ENV.items() <= dict(launch.command.env).items()) is details_later
