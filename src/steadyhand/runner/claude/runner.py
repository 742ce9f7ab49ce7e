"""The `stream` mode: a process of the CLI for one run, or one that waits for jobs and stays for their next turns.

`stream_protocol.py` speaks with the process while a run is under way.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from steadyhand.agents import Agent
from steadyhand.errors import SpawnError
from steadyhand.job import Job
from steadyhand.ports import Checkout, Emit, OrphanedRun, RunReport, RunSpec, Sandbox, StopSignal, WarmKey
from steadyhand.redact import Redactor
from steadyhand.runner.claude.attachments import attachment_dirs
from steadyhand.runner.claude.home_snapshot import HomeSnapshot
from steadyhand.runner.claude.launch import build_launch
from steadyhand.runner.claude.session import (
    config_dir_of,
    resumes_session,
    session_directory,
    session_id_for,
)
from steadyhand.runner.claude.stream_protocol import StreamProtocol
from steadyhand.runner.claude.transcript import session_holds
from steadyhand.runner.claude.warm import (
    WarmUp,
    answers,
    initialize_fields,
    may_initialise,
    may_kill,
    starts_commands,
    turn_key,
    wait_for_line,
    warm_key,
)
from steadyhand.runner.process.agent_process import AgentProcess
from steadyhand.runner.process.output import OutputCapture
from steadyhand.runner.process.paused_processes import lower_priority, restore_priority
from steadyhand.runner.process.run_loop import (
    LINGER_SECONDS,
    RunLoop,
    exit_warnings,
    wait_bounded,
)

KILL_SECONDS = 0.2
"""How long an agent that is to be killed may take to write its session; then it is let to end by itself."""


class ClaudeRunner:
    """Runs agents by the CLI's streaming protocol; implements `ports.Runner`."""

    def __init__(
        self, cli: Path, sandbox: Sandbox, redactor: Redactor, *, enforce_budget: bool = True
    ) -> None:
        """Create a runner with the CLI, the sandbox and the redactor of its output.

        `budgeted` is False where the gateway enforces the budget.
        """
        self._cli = cli
        self._sandbox = sandbox
        self._redactor = redactor
        self._enforce_budget = enforce_budget

    async def run(self, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        """See `ports.Runner.run`."""
        session = session_id_for(spec)
        if spec.orphan is not None:
            return await self._take_up(spec, spec.orphan, session, emit, stop)
        resumed = resumes_session(spec, self._sandbox, session)
        spec = _held_as(spec, resumed=resumed)
        launch = build_launch(self._cli, spec, session, self._sandbox, enforce_budget=self._enforce_budget)
        with self._capture(spec) as capture:
            async with AgentProcess.start(launch, spec.on_spawned, spec.on_listening, stop) as process:
                run_loop = RunLoop(spec, emit, stop, process, capture, resumed=resumed)
                # How it ends by itself is evidence: an exit code other than 0 makes a failure of a good answer.
                return (await self._drive(run_loop, session, may_kill=False))[0]

    async def _take_up(
        self, spec: RunSpec, orphan: OrphanedRun, session: str, emit: Emit, stop: StopSignal
    ) -> RunReport:
        """Go on with a run that an earlier service left."""
        if orphan.sandboxed != self.is_sandboxed:
            raise SpawnError("The level of isolation is another one.")
        resumed = orphan.facts.get("resumed") is True
        with self._capture(spec) as capture:
            async with AgentProcess.attach(orphan, spec.on_listening) as process:
                if orphan.facts.get("waited"):
                    # The earlier service may have paused it, for a harvest beside it.
                    process.pause()
                    process.resume()
                run_loop = RunLoop(spec, emit, stop, process, capture, resumed=resumed)
                return (await self._drive(run_loop, session, may_kill=False))[0]

    def _capture(self, spec: RunSpec) -> AbstractContextManager[OutputCapture]:
        return closing(OutputCapture(spec.checkout.paths.run_output(spec.number), self._redactor))

    async def _drive(
        self,
        run_loop: RunLoop,
        session: str,
        *,
        may_kill: bool,
        initialize_fields: Mapping[str, Any] | None = None,
        is_initialised: bool = False,
    ) -> tuple[RunReport, StreamProtocol]:
        checkout = run_loop.spec.checkout
        protocol = StreamProtocol(
            run_loop,
            attachment_dirs(checkout, self._sandbox)[1],
            partial(
                session_holds,
                config_dir_of(checkout),
                session_directory(self._sandbox.agent_paths(checkout), self._sandbox),
                session,
            ),
            may_kill=may_kill,
            initialize_fields=initialize_fields,
            is_initialised=is_initialised,
        )
        report = await run_loop.run(protocol)
        return await protocol.report_unused_steers(report), protocol

    async def _kill_kept(
        self, process: AgentProcess, report: RunReport, checkout: Checkout, protocol: StreamProtocol
    ) -> RunReport:
        """End a process that waits for more after its answer, once its session is on disk. Its exit takes longer."""
        if not report.process_kept:
            return report
        session, message_id = report.session_id, protocol.last_message_id
        if session is not None and await self._is_written(checkout, session, message_id, KILL_SECONDS):
            exit_status = await process.kill(has_answered=True)
        else:
            process.end_input()
            await wait_bounded(process.exited(), LINGER_SECONDS)
            exit_status = await process.stop()
        warnings = (*report.warnings, *exit_warnings(exit_status))
        return replace(report, process_kept=False, warnings=warnings)

    # --- processes that wait for a job -------------------------------------------------------

    def warm_key(self, job: Job, agent: Agent) -> WarmKey | None:
        """See `ports.WarmRunner.warm_key`."""
        return None if self._enforce_budget else warm_key(self._cli, job, agent)

    @property
    def is_sandboxed(self) -> bool:
        """See `ports.WarmRunner.is_sandboxed`."""
        return self._sandbox.level != "none"

    def may_initialise(self, agent: Agent, checkout: Checkout) -> bool:
        """See `ports.WarmRunner.may_initialise`."""
        return may_initialise(agent, checkout)

    def set_background(self, supervisor: int, *, is_background: bool) -> None:
        """See `ports.WarmRunner.set_background`."""
        if is_background:
            lower_priority(supervisor)
        else:
            restore_priority(supervisor)

    @asynccontextmanager
    async def prepare(
        self,
        spec: RunSpec,
        rehearsing: Callable[[], AbstractContextManager[None]] | None,
        *,
        initialise: bool,
    ) -> AsyncIterator["WarmClaude"]:
        """See `ports.WarmRunner.prepare`."""
        session = str(uuid.uuid4())
        launch = build_launch(
            self._cli, spec, session, self._sandbox, enforce_budget=self._enforce_budget, details_later=True
        )
        async with AgentProcess.start(launch, spec.on_spawned, spec.on_listening) as process:
            checkout = spec.checkout
            warm_up = WarmUp(process, spec.job.spec.tools)
            if initialise:
                await warm_up.initialise(initialize_fields(spec.job, spec.agent), spec.agent)
                if rehearsing is not None:
                    with rehearsing():
                        await warm_up.rehearse()
                    directory = session_directory(self._sandbox.agent_paths(checkout), self._sandbox)
                    await warm_up.forget_session(config_dir_of(checkout), directory, session)
            else:
                await warm_up.wait_until_started()
            snapshot = await asyncio.to_thread(HomeSnapshot.of, (checkout.home, config_dir_of(checkout)))
            warm = WarmClaude(self, process, session, snapshot, is_initialised=initialise)
            if checkout.workspace.repository is not None and warm.root is None:  # found now, not at a claim
                raise SpawnError("The waiting process ended.")
            yield warm

    @asynccontextmanager
    async def start(self, spec: RunSpec, stop: StopSignal) -> AsyncIterator["WarmClaude"]:
        """See `ports.WarmRunner.start`."""
        session = session_id_for(spec)
        resumed = resumes_session(spec, self._sandbox, session)
        spec = _held_as(spec, resumed=resumed)
        launch = build_launch(self._cli, spec, session, self._sandbox, enforce_budget=self._enforce_budget)
        async with AgentProcess.start(launch, spec.on_spawned, spec.on_listening, stop) as process:
            warm = WarmClaude(self, process, session, None, is_initialised=False)
            warm.has_run = resumed
            yield warm

    def turn_key(self, job: Job, agent: Agent) -> WarmKey | None:
        """See `ports.WarmRunner.turn_key`."""
        return None if self._enforce_budget else turn_key(self._cli, job, agent)

    async def run_warm(
        self, warm: "WarmClaude", process: AgentProcess, spec: RunSpec, emit: Emit, stop: StopSignal
    ) -> RunReport:
        """Run a job in a process that waited for it."""
        if starts_commands(spec.checkout):
            spec = replace(spec, keep_process=False)  # what they started would have to live on
        fields: Mapping[str, Any] | None = {}
        if not warm.is_initialised:  # without a snapshot they are on its command line
            fields = None if warm.snapshot is None else initialize_fields(spec.job, spec.agent)
        resumed = spec.job.begin == "resume" and warm.has_run
        spec = _held_as(spec, resumed=resumed)
        if spec.hold is not None:
            process.hold.begin(spec.hold, (process.stdout, process.stderr))
        with self._capture(spec) as capture:
            run_loop = RunLoop(spec, emit, stop, process, capture, resumed=resumed)
            report, protocol = await self._drive(
                run_loop,
                warm.session_id,
                may_kill=may_kill(spec.checkout),
                initialize_fields=fields,
                is_initialised=warm.is_initialised,
            )
        if not spec.keep_process:
            return await self._kill_kept(process, report, spec.checkout, protocol)
        if report.process_kept:
            warm.is_initialised = warm.has_run = True
            is_written = await self._is_written(spec.checkout, warm.session_id, protocol.last_message_id)
            # Nothing that the agent has started goes on after its turn.
            if not is_written or not await process.kill_others():
                await process.stop()
                return replace(report, process_kept=False)
        return report

    async def _is_written(
        self, checkout: Checkout, session: str, message_id: str | None, seconds: float | None = None
    ) -> bool:
        """Wait until the session's file holds the newest message; return False if it does not in time."""
        directory = session_directory(self._sandbox.agent_paths(checkout), self._sandbox)
        return message_id is not None and await wait_for_line(
            config_dir_of(checkout), directory, session, message_id.encode(), seconds
        )

    async def reset(self, warm: "WarmClaude", process: AgentProcess, checkout: Checkout) -> bool:
        """Make a kept process as new; see `ports.WarmAgent.reset`."""
        if warm.snapshot is None:
            return False
        config, view = config_dir_of(checkout), self._sandbox.agent_paths(checkout)
        directory = session_directory(view, self._sandbox)
        try:
            warm.session_id = await WarmUp(process, ()).forget_conversation(config, directory)
        except SpawnError:
            return False
        warm.has_run = False
        process.pause()
        return await asyncio.to_thread(warm.snapshot.restore, (checkout.home, config))


def _held_as(spec: RunSpec, *, resumed: bool) -> RunSpec:
    """Return the spec with a record that says if the run continues a session."""
    if spec.hold is None:
        return spec
    return replace(spec, hold=replace(spec.hold, facts={**spec.hold.facts, "resumed": resumed}))


class WarmClaude:
    """A process of the CLI that waits for a job; see `ports.WarmAgent`."""

    def __init__(
        self,
        runner: ClaudeRunner,
        process: AgentProcess,
        session: str,
        snapshot: HomeSnapshot | None,
        *,
        is_initialised: bool,
    ) -> None:
        """Keep the process. Without a snapshot it was started for its first job, and cannot be reset."""
        self.session_id = session
        self.is_initialised = is_initialised
        self.has_run = False
        """True if its session has turns."""
        self.snapshot = snapshot
        self._runner = runner
        self._process = process

    @property
    def supervisor(self) -> tuple[int, int]:
        """Return the supervisor's pid and start time."""
        return self._process.pid, self._process.started_ticks

    @property
    def root(self) -> Path | None:
        """Return the path of the root directory of the CLI's process."""
        return self._process.root

    def pause(self) -> None:
        """Stop the processes until `wake`."""
        self._process.pause()

    async def wake(self) -> bool:
        """Let the processes go on; return True if the agent answers within `warm.ANSWER_SECONDS`."""
        self._process.resume()
        return await answers(self._process)

    async def exited(self) -> None:
        """Wait for the end of the agent."""
        await self._process.exited()

    async def run(self, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        """See `ports.WarmAgent.run`."""
        if self.snapshot is not None or self.is_initialised:
            spec.on_spawned(*self.supervisor)
        return await self._runner.run_warm(self, self._process, spec, emit, stop)

    def end_hold(self) -> None:
        """See `ports.WarmAgent.end_hold`."""
        self._process.hold.end()

    async def reset(self, checkout: Checkout) -> bool:
        """See `ports.WarmAgent.reset`."""
        return await self._runner.reset(self, self._process, checkout)
