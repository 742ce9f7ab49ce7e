"""One run of an agent, from its first byte to its report. An `AgentProtocol` speaks to the agent's command line."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Protocol

from steadyhand import json_schema
from steadyhand.errors import SpawnError
from steadyhand.job import JobWarning
from steadyhand.job_warnings import WarningCode
from steadyhand.outcome import AgentResult, RunEvidence, StopReason
from steadyhand.ports import Emit, RunReport, RunSpec, StopSignal
from steadyhand.retry import continues_parent
from steadyhand.runner.process.agent_process import AgentProcess, ExitStatus
from steadyhand.runner.process.output import OutputCapture
from steadyhand.text_lines import split_lines

CONTINUE_PROMPT = "Continue from where you left off."
"""The prompt of a run that continues after an interruption."""
LINGER_SECONDS = 5.0
"""Seconds for an agent to end after its result, unless it reports that it still works."""
_MAX_NAMED_TASKS = 5
_MAX_TASK_NAME = 100
END_SECONDS = 60.0
"""Seconds for an agent to end once a stop is requested. The steps of a stop take less; this bounds them together."""
DRAIN_SECONDS = 30.0
"""Seconds to read and record the rest in the pipes once no process is alive."""
_BWRAP_PREFIX = "bwrap: "
_CHUNK = 1 << 16
_LINES_PER_YIELD = 128  # so that a flood of short lines leaves the event loop time for others


def prompt_for(spec: RunSpec, *, resumed: bool) -> str:
    """Return the prompt: the job's, or one to continue its work."""
    job = spec.job
    if not resumed:
        return job.spec.prompt
    is_first = spec.number == 1 or continues_parent(job)
    return job.continue_prompt or (job.spec.prompt if is_first else CONTINUE_PROMPT)


class AgentProtocol(Protocol):
    """The protocol of one kind of command line.

    `streams_output` is True if it prints while it works: only then does silence mean that it stalled.
    """

    streams_output: bool

    async def handle_line(self, line: bytes) -> None:
        """Handle a whole line of stdout that may be a message."""
        ...

    async def send_input(self) -> None:
        """Send the agent its input; cancelled when the agent has ended."""
        ...

    async def interrupt(self) -> None:
        """Ask the agent to end by itself, within a time limit."""
        ...


class RunLoop:
    """One active run: reads the agent's output, watches its time limits, and builds the report at its end."""

    def __init__(
        self,
        spec: RunSpec,
        emit: Emit,
        stop: StopSignal,
        process: AgentProcess,
        capture: OutputCapture,
        *,
        resumed: bool = False,
    ) -> None:
        self.spec = spec
        self.resumed = resumed
        """True if the agent continues the session of an earlier run."""
        self.emit = emit
        self.stop = stop
        self.process = process
        self.capture = capture
        self.result: AgentResult | None = None
        self.result_line: bytes | None = None
        self.session_id: str | None = None
        self.unknown_agent: str | None = None
        """The text for stderr if the agent is not defined."""
        self.unknown_command: str | None = None
        """The reason why the job's command cannot run."""
        self.hook: str | None = None
        """The sentence about a hook that keeps the agent from its work."""
        self.last_structured_output: Any = None
        """The last object that the agent tried as its structured output."""
        self.result_received = asyncio.Event()
        self._busy = False
        self.turn_ended = asyncio.Event()
        """Set if the agent has ended its work well, waits for more, and is to be kept."""
        self.process_kept = False
        self.background: Mapping[str, str] = {}
        """The work in the background that the agent reports: names by ids."""
        self._background_changed = asyncio.Event()
        self._settled = asyncio.Event()
        self._wakes_after_result = False
        self._idle_holds = 0
        self._result_at = 0.0
        self._last_output_at = _now()
        self._stopped_after_result = False
        self._left_running: tuple[str, ...] = ()

    def keep(self) -> None:
        """Let the run outlive the service from now on, if it is to be held: the agent has its prompt."""
        self.process.hold.keep()
        if self.process.hold.is_kept:
            self.spec.on_kept(self.process.leave)

    @property
    def busy(self) -> bool:
        """True if the agent reports that it still works after its result."""
        return self._busy

    @busy.setter
    def busy(self, busy: bool) -> None:
        self._busy = busy
        self._settled.set()

    def set_result(self, result: AgentResult, line: bytes | None) -> None:
        """Set the result; a later one replaces it."""
        if self.result_line is not None:
            self.capture.add_printed(self.result_line)
        self.result, self.result_line = result, line
        self.session_id = result.session_id or self.session_id
        self._result_at = _now()
        # The end of its background wakes the agent for another turn, whose result replaces this one.
        self._wakes_after_result = bool(self.background)
        self._background_changed.set()
        self.result_received.set()
        self._settled.set()

    def set_background(self, tasks: Mapping[str, str]) -> None:
        """Set the work in the background that the agent reports.

        When the last of it ends after a result, the agent begins a turn by itself.
        """
        if self.background and not tasks:
            self._result_at = _now()
        self.background = tasks
        self._background_changed.set()
        self._settled.set()

    @contextlib.contextmanager
    def idle_paused(self) -> Iterator[None]:
        """Stop the idle clock inside the block: the agent waits for somebody else."""
        self._idle_holds += 1
        try:
            yield
        finally:
            self._idle_holds -= 1
            self._last_output_at = _now()

    async def run(self, protocol: AgentProtocol) -> RunReport:
        """Run until the agent has ended and return the report. No process of the run is alive then."""
        try:
            async with asyncio.TaskGroup() as group:
                readers = [
                    group.create_task(self._read_stdout(protocol)),
                    group.create_task(self._read(self.process.stderr, self.capture.feed_stderr)),
                ]
                helpers = [
                    group.create_task(protocol.send_input()),
                    group.create_task(self._watch_lingering()),
                    group.create_task(self._handle_stop(protocol)),
                ]
                if self.spec.on_answer is not None:
                    helpers.append(group.create_task(self._report_answer(self.spec.on_answer)))
                if protocol.streams_output:
                    helpers.append(group.create_task(self._watch_idle()))
                exit_status = await self._wait_for_end()
                for helper in helpers:
                    helper.cancel()
                if not self.process_kept:
                    await wait_bounded(asyncio.wait(readers), DRAIN_SECONDS)
                for reader in readers:
                    reader.cancel()
        except BaseExceptionGroup as errors:
            # The caller handles the first cause by its type; the others followed from it.
            raise _first_cause(errors) from errors
        return self._build_report(exit_status, await self._schema_error())

    async def _wait_for_end(self) -> ExitStatus:
        """Wait for the end of the agent: once a stop is requested, for at most `END_SECONDS`, then kill it."""
        async with asyncio.TaskGroup() as group:
            ending = group.create_task(self.process.wait())
            stop_request = group.create_task(self.stop.wait())
            turn_end = group.create_task(self.turn_ended.wait())
            await asyncio.wait({ending, stop_request, turn_end}, return_when=asyncio.FIRST_COMPLETED)
            stop_request.cancel()
            turn_end.cancel()
            if turn_end.done() and not ending.done() and self.stop.reason is None:
                self.process_kept = True
                ending.cancel()
                return ExitStatus(0, None)
            await asyncio.wait({ending}, timeout=END_SECONDS)
            if not ending.done():
                ending.cancel()
        return await self.process.kill() if ending.cancelled() else ending.result()

    async def _schema_error(self) -> str | None:
        """Return the error of the structured output against the schema, or None.

        An agent that gave up is judged by its last attempt.
        """
        schema = self.spec.job.spec.output_schema
        if schema is None or self.result is None:
            return None
        output = self.result.structured_output
        if output is None:
            output = self.last_structured_output
        return (
            None if output is None else await asyncio.to_thread(json_schema.validation_error, schema, output)
        )

    async def _read_stdout(self, protocol: AgentProtocol) -> None:
        count = 0
        while chunk := await self.process.stdout.read(_CHUNK):
            self._last_output_at = _now()
            for line in self.capture.feed_stdout(chunk):
                await protocol.handle_line(line)
                count += 1
                if count % _LINES_PER_YIELD == 0:
                    await asyncio.sleep(0)
            self._last_output_at = _now()  # again: a slow store is no silence of the agent
        for line in self.capture.finish():
            await protocol.handle_line(line)

    async def _read(self, reader: asyncio.StreamReader, consume: Callable[[bytes], None]) -> None:
        while chunk := await reader.read(_CHUNK):
            self._last_output_at = _now()
            consume(chunk)

    async def _watch_idle(self) -> None:
        limit = self.spec.job.idle_timeout_seconds
        while True:
            waits = self._idle_holds or self._waits_for_background
            remaining = limit if waits else self._last_output_at + limit - _now()
            if remaining <= 0:
                self.stop.request(StopReason.IDLE)
                return
            await asyncio.sleep(remaining)

    @property
    def _waits_for_background(self) -> bool:
        return bool(self.background) and self.result_received.is_set()

    async def _report_answer(self, on_answer: Callable[[RunEvidence], None]) -> None:
        """Report the result once nothing of the agent goes on. Another turn may replace it until then."""
        while not self.result_received.is_set() or self._wakes_after_result or self.background or self.busy:
            self._settled.clear()
            await self._settled.wait()
        evidence = RunEvidence(
            exit_code=0,
            result=self.result,
            unknown_command=self.unknown_command,
            schema_required=self.spec.job.spec.output_schema is not None,
            schema_error=await self._schema_error(),
        )
        if self.stop.reason is None and self.unknown_agent is None:
            on_answer(evidence)

    async def _watch_lingering(self) -> None:
        while True:
            await self.result_received.wait()
            self._background_changed.clear()
            limit = self.spec.background_seconds if self.background else LINGER_SECONDS
            remaining = self._result_at + limit - _now()
            if remaining <= 0 and (self.background or not self.busy):
                if self.process.input_open and not self.background:
                    # It was kept open for a turn that the agent would begin by itself.
                    self.process.end_input()
                    self._result_at = _now()
                    continue
                self._mark_stopped_after_result()
                await self.process.stop()
                return
            await wait_bounded(self._background_changed.wait(), max(remaining, 0.1))

    async def _handle_stop(self, protocol: AgentProtocol) -> None:
        await self.stop.wait()
        self.process.hold.drop()  # the service is about to stop it
        if self.stop.reason is StopReason.DEADLINE and self._waits_for_background:
            # The work is done: what the agent left running is stopped as it would be a little later.
            self._mark_stopped_after_result()
        await protocol.interrupt()
        await self.process.stop()

    def _stop_reason(self) -> StopReason | None:
        reason = self.stop.reason
        return None if reason is StopReason.DEADLINE and self._stopped_after_result else reason

    def _mark_stopped_after_result(self) -> None:
        self._stopped_after_result = True
        self._left_running = tuple(self.background.values())

    def _lingering_warning(self) -> JobWarning:
        if not self._left_running:
            return JobWarning(
                WarningCode.AGENT_LINGERED, "The agent did not end after its result and was stopped."
            )
        names = [" ".join(name.split())[:_MAX_TASK_NAME] for name in self._left_running]
        rest = len(names) - _MAX_NAMED_TASKS
        listed = ", ".join(names[:_MAX_NAMED_TASKS]) + (f" and {rest} more" if rest > 0 else "")
        return JobWarning(
            WarningCode.BACKGROUND_STOPPED, f"Work in the background was stopped after the result: {listed}."
        )

    def _build_report(self, exit_status: ExitStatus, schema_fault: str | None) -> RunReport:
        warnings = []
        if self.spec.job.begin == "resume" and not self.resumed:
            text = "The session of the previous run was missing; the agent started a new one."
            warnings.append(JobWarning(WarningCode.SESSION_LOST, text))
        code, signal = exit_status.code, exit_status.signal
        if self._stopped_after_result:
            # The service ended it, so neither of them describes the run.
            code = signal = None
            warnings.append(self._lingering_warning())
        stop_reason = self._stop_reason()
        if exit_status.lease_over:
            # This process was frozen. The end says nothing of a run that had its result; any other was interrupted.
            code = signal = None
            stop_reason = stop_reason or (StopReason.SHUTDOWN if self.result is None else None)
        warnings += exit_warnings(exit_status)
        output = self.capture.to_run_output(self.result_line)
        stderr = self.capture.stderr_text()
        if self.process.sandboxed and code == 1 and not output.output and stderr.startswith(_BWRAP_PREFIX):
            # An agent that prints the same text as bwrap harms only its own run.
            raise SpawnError(f"The sandbox could not be created: {split_lines(stderr)[0][:300]}.")
        if self.unknown_agent is not None:
            code, signal = 1, None
            stderr += self.unknown_agent
            output = type(output)(output.output, stderr)
        evidence = RunEvidence(
            stop_reason=stop_reason,
            exit_code=code,
            signal=signal,
            result=self.result,
            stderr=stderr,
            unknown_agent=self.unknown_agent is not None,
            unknown_command=self.unknown_command,
            hook=self.hook,
            schema_required=self.spec.job.spec.output_schema is not None,
            schema_error=schema_fault,
            out_of_memory=exit_status.out_of_memory,
            disk_full=exit_status.disk_full,
        )
        return RunReport(evidence, output, self.session_id, tuple(warnings), self.process_kept)


def exit_warnings(exit_status: ExitStatus) -> list[JobWarning]:
    """Return the warnings about the end of an agent's processes."""
    warnings = []
    if exit_status.unkillable:
        warnings.append(
            JobWarning(WarningCode.PROCESSES_STUCK, "A process of the agent could not be killed.")
        )
    if exit_status.forks_refused:
        text = f"{exit_status.forks_refused} processes above its limit were refused."
        warnings.append(JobWarning(WarningCode.PROCESS_LIMIT, text))
    return warnings


def _first_cause(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def wait_bounded(awaitable: Awaitable[object], seconds: float) -> bool:
    """Wait at most so many seconds; return False if the time is over."""
    try:
        async with asyncio.timeout(seconds):
            await awaitable
    except TimeoutError:
        return False
    return True


def _now() -> float:
    return asyncio.get_running_loop().time()
