"""One run of an agent, from its first byte to its report. An `AgentProtocol` speaks to the agent's command line."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol

from steadyhand import json_schema
from steadyhand.errors import SpawnError
from steadyhand.job import JobWarning
from steadyhand.job_warnings import WarningCode
from steadyhand.outcome import AgentResult, RunEvidence, StopReason
from steadyhand.ports import Emit, RunReport, RunSpec, StopSignal
from steadyhand.runner.process.agent_process import AgentProcess, ExitStatus
from steadyhand.runner.process.output import OutputCapture

CONTINUE_PROMPT = "Continue from where you left off."
"""What an agent is told whose run goes on after an interruption."""
LINGER_SECONDS = 5.0
"""How long an agent may take to end after its result, unless it says itself that it is still at work."""
DRAIN_SECONDS = 30.0
"""How long what is left in the pipes may take to be read and recorded once nothing is alive."""
_BWRAP_PREFIX = "bwrap: "
_CHUNK = 1 << 16
_LINES_PER_YIELD = 128  # lines; so that a flood of small ones leaves the loop to others


def prompt_for(spec: RunSpec, *, resumed: bool) -> str:
    """Give what the agent is told: its job, or to go on with it."""
    job = spec.job
    if not resumed:
        return job.prompt
    return job.continue_prompt or (job.prompt if spec.number == 1 else CONTINUE_PROMPT)


class AgentProtocol(Protocol):
    """How one kind of command line is spoken to.

    `tells` says whether it prints while it works: only then does silence mean that it stalled.
    """

    streams_output: bool

    async def handle_line(self, line: bytes) -> None:
        """Take a whole line of stdout that may be a message."""
        ...

    async def send_input(self) -> None:
        """Say what is to be said; cancelled when the agent has ended."""
        ...

    async def interrupt(self) -> None:
        """Ask the agent to come to an end by itself; bounded."""
        ...


class RunLoop:
    """One run under way: what was heard, what it answered, and how it came to its end."""

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
        """Whether the agent goes on in a session of an earlier run."""
        self.emit = emit
        self.stop = stop
        self.process = process
        self.capture = capture
        self.result: AgentResult | None = None
        self.result_line: bytes | None = None
        self.session_id: str | None = None
        self.unknown_agent: str | None = None
        """What there is to say when nobody defined the agent."""
        self.last_structured_output: Any = None
        """The object that the agent tried last as its structured output."""
        self.result_received = asyncio.Event()
        self.busy = False
        """Whether the agent says that it is still at work after its result."""
        self._idle_holds = 0
        self._result_at = 0.0
        self._last_output_at = _now()
        self._stopped_after_result = False

    def set_result(self, result: AgentResult, line: bytes | None) -> None:
        """Take a result; a later one takes its place."""
        if self.result_line is not None:
            self.capture.add_printed(self.result_line)
        self.result, self.result_line = result, line
        self.session_id = result.session_id or self.session_id
        self._result_at = _now()
        self.result_received.set()

    @contextlib.contextmanager
    def idle_paused(self) -> Iterator[None]:
        """Wait for somebody else for the length of the block: the agent's silence is not its own."""
        self._idle_holds += 1
        try:
            yield
        finally:
            self._idle_holds -= 1
            self._last_output_at = _now()

    async def run(self, protocol: AgentProtocol) -> RunReport:
        """See the run to its end; nothing of it is alive when this returns."""
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
                if protocol.streams_output:
                    helpers.append(group.create_task(self._watch_idle()))
                exit_status = await self.process.wait()
                for helper in helpers:
                    helper.cancel()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(DRAIN_SECONDS):
                        await asyncio.wait(readers)
                for reader in readers:
                    reader.cancel()
        except BaseExceptionGroup as errors:
            # The first cause is what the caller knows by its type; the others followed from it.
            raise _first_cause(errors) from errors
        return self._build_report(exit_status, await self._schema_error())

    async def _schema_error(self) -> str | None:
        """Check what the agent gave against the schema once more; an agent that gave up is judged by its last try."""
        schema = self.spec.job.output_schema
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
            self._last_output_at = (
                _now()
            )  # again: a store that was slow to take it is no silence of the agent
        for line in self.capture.finish():
            await protocol.handle_line(line)

    async def _read(self, reader: asyncio.StreamReader, consume: Callable[[bytes], None]) -> None:
        while chunk := await reader.read(_CHUNK):
            self._last_output_at = _now()
            consume(chunk)

    async def _watch_idle(self) -> None:
        limit = self.spec.job.idle_timeout_seconds
        while True:
            remaining = limit if self._idle_holds else self._last_output_at + limit - _now()
            if remaining <= 0:
                self.stop.request(StopReason.IDLE)
                return
            await asyncio.sleep(remaining)

    async def _watch_lingering(self) -> None:
        while True:
            await self.result_received.wait()
            remaining = self._result_at + LINGER_SECONDS - _now()
            if remaining <= 0 and not self.busy:
                self._stopped_after_result = True
                await self.process.stop()
                return
            await asyncio.sleep(max(remaining, 0.1))

    async def _handle_stop(self, protocol: AgentProtocol) -> None:
        await self.stop.wait()
        await protocol.interrupt()
        await self.process.stop()

    def _build_report(self, exit_status: ExitStatus, schema_fault: str | None) -> RunReport:
        warnings = []
        if self.spec.job.begin == "resume" and not self.resumed:
            text = "The session of the run before was not there any more; the agent began anew."
            warnings.append(JobWarning(WarningCode.SESSION_LOST, text))
        code, signal = exit_status.code, exit_status.signal
        if self._stopped_after_result:
            # It was ours that ended it, so neither says anything about the run.
            code = signal = None
            warnings.append(
                JobWarning(
                    WarningCode.AGENT_LINGERED, "The agent did not end after its result and was stopped."
                )
            )
        if exit_status.unkillable:
            warnings.append(
                JobWarning(WarningCode.PROCESSES_STUCK, "A process of the agent could not be killed.")
            )
        if exit_status.forks_refused:
            warnings.append(
                JobWarning(
                    WarningCode.PROCESS_LIMIT,
                    f"{exit_status.forks_refused} processes more than its limit were refused.",
                )
            )
        output = self.capture.to_run_output(self.result_line)
        stderr = self.capture.stderr_text()
        if self.process.sandboxed and code == 1 and not output.output and stderr.startswith(_BWRAP_PREFIX):
            # An agent that says the same in bwrap's place harms its own run alone.
            raise SpawnError(f"The sandbox could not be made: {stderr.splitlines()[0][:300]}.")
        if self.unknown_agent is not None:
            code, signal = 1, None
            stderr += self.unknown_agent
            output = type(output)(output.output, stderr)
        evidence = RunEvidence(
            stop_reason=self.stop.reason,
            exit_code=code,
            signal=signal,
            result=self.result,
            stderr=stderr,
            unknown_agent=self.unknown_agent is not None,
            schema_required=self.spec.job.output_schema is not None,
            schema_error=schema_fault,
            out_of_memory=exit_status.out_of_memory,
            disk_full=exit_status.disk_full,
        )
        return RunReport(evidence, output, self.session_id, tuple(warnings))


def _first_cause(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def wait_bounded(awaitable: Awaitable[object], seconds: float) -> bool:
    """Wait for something at most so long; False when it did not come."""
    try:
        async with asyncio.timeout(seconds):
            await awaitable
    except TimeoutError:
        return False
    return True


def _now() -> float:
    return asyncio.get_running_loop().time()
