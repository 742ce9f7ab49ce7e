"""Setup of the suites of runners: a job in a directory of its own, and the record of its run."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steadyhand.agents import Agent, Workspace
from steadyhand.events import (
    EventBody,
    TextDelta,
    event_data,
)
from steadyhand.job import Job, JobSpec
from steadyhand.outcome import decide_outcome
from steadyhand.ports import (
    AgentPaths,
    Checkout,
    JobPaths,
    Runner,
    RunReport,
    RunSpec,
    StopSignal,
)
from steadyhand.testing.cli import SYSTEM_PATH
from steadyhand.testing.contracts.samples import change_job
from steadyhand.testing.processes import new_process_mark, pids_with_mark

AGENT_UID = 64400 if os.geteuid() == 0 else None
TIMEOUT_SECONDS = 60.0
_JOB = Job(
    "0123456789ab",
    JobSpec("hello"),
    "claude",
    "k_test",
    datetime(2026, 1, 1, tzinfo=UTC),
    budget_micros=5_000_000,
    timeout_seconds=60,
    idle_timeout_seconds=60,
)


@dataclass(slots=True)
class RecordedRun:
    """The report of a run, its events and its processes."""

    report: RunReport
    events: list[EventBody | TextDelta]
    mark: str
    supervisors: list[tuple[int, int]]

    @property
    def outcome(self) -> str:
        """Return its judged outcome."""
        return decide_outcome(self.report.evidence).type

    @property
    def result(self) -> Mapping[str, Any]:
        """The result object as it stands on the last line of the output."""
        loaded: Mapping[str, Any] = json.loads(self.report.output.output[-1])
        return loaded

    def events_of(self, kind: type[Any]) -> list[Any]:
        """Return the events of one kind."""
        return [each for each in self.events if isinstance(each, kind)]


@dataclass(slots=True)
class RunnerHarness:
    """One job in a place of its own, ready to run."""

    runner: Runner
    spec: RunSpec
    mark: str
    stop: StopSignal = field(default_factory=StopSignal)
    events: list[EventBody | TextDelta] = field(default_factory=list)
    supervisors: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def make(cls, runner: Runner, world: Path, prompt: str, **fields: Any) -> "RunnerHarness":
        """Set a job with this prompt and these fields; `definition` is its agent's."""
        root = world / f"job-{new_process_mark()}"
        files = JobPaths(root)
        for folder in (root, files.checkout, files.home, files.config_dir):
            folder.mkdir()
            if AGENT_UID is not None and folder != root:
                os.chown(folder, AGENT_UID, AGENT_UID)
        place = Checkout(
            Workspace("scratch"), files, files.checkout, files.home, files.config_dir, AGENT_UID, commit=None
        )
        definition = fields.pop("definition", None)
        job = change_job(_JOB, prompt=prompt, **fields)
        mark = new_process_mark()
        environment = {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", "SH_MARK": mark}
        stage = cls(
            runner,
            RunSpec(job, 1, Agent(job.agent, definition=definition), place, environment, _ignore),
            mark,
        )
        stage.spec = replace(stage.spec, on_spawned=lambda pid, ticks: stage.supervisors.append((pid, ticks)))
        return stage

    async def emit(self, body: EventBody | TextDelta) -> None:
        """Hear an event; whatever comes must be fit for the store."""
        json.dumps(event_data(body)).encode()
        self.events.append(body)

    async def run(self) -> RecordedRun:
        """Run to the end; nothing may be alive when the runner returns."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            report = await self.runner.run(self.spec, self.emit, self.stop)
        assert pids_with_mark(self.mark) == []
        return RecordedRun(report, self.events, self.mark, self.supervisors)

    async def run_with(self, action: Callable[[], Awaitable[None]]) -> RecordedRun:
        """Run, and do something beside it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(_await(action()))
            return await self.run()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so, within a bound."""
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110  # what is waited for is another process's doing
                await asyncio.sleep(0.005)


def resident_bytes() -> int:
    """Return the bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


class RunnerFactory:
    """Makes the runner under test; the tests of each adapter subclass it."""

    def runner(self, cli: Path) -> Runner:
        """Return a runner of this program."""
        raise NotImplementedError

    def agent_paths(self, place: Checkout) -> AgentPaths:
        """Return the directories as the agent sees them."""
        return place.host_paths

    def uid(self, place: Checkout) -> int:
        """Return the uid of the agent as it sees it."""
        return os.geteuid() if place.uid is None else place.uid

    def run_prompt(self, cli: Path, world: Path, prompt: str, **fields: Any) -> RecordedRun:
        """Run a prompt to its end."""
        return asyncio.run(RunnerHarness.make(self.runner(cli), world, prompt, **fields).run())


def _ignore(_pid: int, _ticks: int) -> None:
    return


async def _await(work: Awaitable[None]) -> None:
    await work
