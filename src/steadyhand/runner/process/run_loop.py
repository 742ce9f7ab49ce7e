"""What both modes share: the environment, and one run from its first byte to its report.

A mode says what to launch, what to make of a line, what to say to the agent, and how to interrupt it politely.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from steadyhand import json_schema
from steadyhand.claude_sessions import session_file
from steadyhand.errors import SpawnError
from steadyhand.job import MICROS, Notice
from steadyhand.job_warnings import WarningCode
from steadyhand.outcome import Evidence, Result, Stop
from steadyhand.ports import Emit, Report, RunSpec, Sandbox, StopSignal, View
from steadyhand.runner.output import Spool
from steadyhand.runner.process.agent_process import AgentProcess, Exit

GO_ON = "Continue from where you left off."
"""What an agent is told whose run goes on after an interruption."""
LINGER_SECONDS = 5.0
"""How long an agent may take to end after its result, unless it says itself that it is still at work."""
DRAIN_SECONDS = 30.0
"""How long what is left in the pipes may take to be read and recorded once nothing is alive."""
_OF_BWRAP = "bwrap: "
_CHUNK = 1 << 16
_YIELD_EVERY = 128  # lines; so that a flood of small ones leaves the loop to others
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_QUIET = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
}


def budget_text(micros: int) -> str:
    """Give a budget as the earlier service wrote it on the command line: `5.0`, `0.5`."""
    text = f"{micros // MICROS}.{micros % MICROS:06d}".rstrip("0")
    return f"{text}0" if text.endswith(".") else text


def environment(granted: Mapping[str, str], view: View) -> dict[str, str]:
    """Give the agent's whole environment: what the service grants it, and where it lives.

    With a config directory of its own it also gets a folder for temporary files of its own, and keeps its traffic
    to the model; without one (in place in the classic profile) the environment stays as it was granted.
    """
    env = {"PATH": _PATH, **granted, "HOME": str(view.home), "PWD": str(view.directory)}
    env.pop("OLDPWD", None)
    if view.config is not None:
        env |= {"CLAUDE_CONFIG_DIR": str(view.config), "TMPDIR": str(scratch(view.home)), **_QUIET}
        env |= {"USER": "agent", "LOGNAME": "agent"}
    return env


def scratch(home: Path) -> Path:
    """Give the folder for temporary files of a job with a home of its own."""
    return home / "tmp"


def session_of(spec: RunSpec) -> str:
    """Give the session's id: the job's when that is a UUID, as the CLI takes no other, else a new one."""
    try:
        return str(uuid.UUID(spec.job.session_id or ""))
    except ValueError:
        return str(uuid.uuid4())


def where(view: View, sandbox: Sandbox) -> str:
    """Give the directory by which the CLI names a session's folder: without links, of which a sandbox has none."""
    return str(view.directory.resolve() if sandbox.level == "none" else view.directory)


def goes_on(spec: RunSpec, sandbox: Sandbox, session: str) -> bool:
    """Say whether the run goes on in a session that an earlier one left; one that left none begins anew."""
    if spec.job.begin != "resume":
        return False
    config = spec.place.config or spec.place.home / ".claude"
    return session_file(config, where(sandbox.view(spec.place), sandbox), session).is_file()


def said(spec: RunSpec, *, going_on: bool) -> str:
    """Give what the agent is told: its job, or to go on with it."""
    job = spec.job
    if not going_on:
        return job.prompt
    return job.continue_prompt or (job.prompt if spec.number == 1 else GO_ON)


class Mode(Protocol):
    """How one kind of command line is spoken to.

    `tells` says whether it prints while it works: only then does silence mean that it stalled.
    """

    tells: bool

    async def line(self, line: bytes) -> None:
        """Take a whole line of stdout that may be a message."""
        ...

    async def talk(self) -> None:
        """Say what is to be said; cancelled when the agent has ended."""
        ...

    async def interrupt(self) -> None:
        """Ask the agent to come to an end by itself; bounded."""
        ...


class Drive:
    """One run under way: what was heard, what it answered, and how it came to its end."""

    def __init__(
        self,
        spec: RunSpec,
        emit: Emit,
        stop: StopSignal,
        process: AgentProcess,
        spool: Spool,
        *,
        going_on: bool = False,
    ) -> None:
        self.spec = spec
        self.going_on = going_on
        """Whether the agent goes on in a session of an earlier run."""
        self.emit = emit
        self.stop = stop
        self.process = process
        self.spool = spool
        self.result: Result | None = None
        self.result_line: bytes | None = None
        self.session_id: str | None = None
        self.unknown_agent: str | None = None
        """What there is to say when nobody defined the agent."""
        self.tried: Any = None
        """The object that the agent tried last as its structured output."""
        self.answered = asyncio.Event()
        self.busy = False
        """Whether the agent says that it is still at work after its result."""
        self._held = 0
        self._answered_at = 0.0
        self._heard = _now()
        self._lingered = False

    def answer(self, result: Result, line: bytes | None) -> None:
        """Take a result; a later one takes its place."""
        if self.result_line is not None:
            self.spool.printed(self.result_line)
        self.result, self.result_line = result, line
        self.session_id = result.session_id or self.session_id
        self._answered_at = _now()
        self.answered.set()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Wait for somebody else for the length of the block: the agent's silence is not its own."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            self._heard = _now()

    async def attend(self, mode: Mode) -> Report:
        """See the run to its end; nothing of it is alive when this returns."""
        try:
            async with asyncio.TaskGroup() as group:
                readers = [
                    group.create_task(self._read_stdout(mode)),
                    group.create_task(self._read(self.process.stderr, self.spool.stderr)),
                ]
                helpers = [
                    group.create_task(mode.talk()),
                    group.create_task(self._watch_lingering()),
                    group.create_task(self._obey(mode)),
                ]
                if mode.tells:
                    helpers.append(group.create_task(self._watch_silence()))
                ended = await self.process.wait()
                for helper in helpers:
                    helper.cancel()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(DRAIN_SECONDS):
                        await asyncio.wait(readers)
                for reader in readers:
                    reader.cancel()
        except BaseExceptionGroup as errors:
            # The first cause is what the caller knows by its type; the others followed from it.
            raise _first(errors) from errors
        return self._report(ended, await self._schema_fault())

    async def _schema_fault(self) -> str | None:
        """Check what the agent gave against the schema once more; an agent that gave up is judged by its last try."""
        schema = self.spec.job.output_schema
        if schema is None or self.result is None:
            return None
        given = self.result.structured_output
        if given is None:
            given = self.tried
        return None if given is None else await asyncio.to_thread(json_schema.fault, schema, given)

    async def _read_stdout(self, mode: Mode) -> None:
        count = 0
        while chunk := await self.process.stdout.read(_CHUNK):
            self._heard = _now()
            for line in self.spool.stdout(chunk):
                await mode.line(line)
                count += 1
                if count % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
            self._heard = _now()  # again: a store that was slow to take it is no silence of the agent
        for line in self.spool.end():
            await mode.line(line)

    async def _read(self, reader: asyncio.StreamReader, take: Callable[[bytes], None]) -> None:
        while chunk := await reader.read(_CHUNK):
            self._heard = _now()
            take(chunk)

    async def _watch_silence(self) -> None:
        limit = self.spec.job.idle_timeout_seconds
        while True:
            left = limit if self._held else self._heard + limit - _now()
            if left <= 0:
                self.stop.request(Stop.IDLE)
                return
            await asyncio.sleep(left)

    async def _watch_lingering(self) -> None:
        while True:
            await self.answered.wait()
            left = self._answered_at + LINGER_SECONDS - _now()
            if left <= 0 and not self.busy:
                self._lingered = True
                await self.process.stop()
                return
            await asyncio.sleep(max(left, 0.1))

    async def _obey(self, mode: Mode) -> None:
        await self.stop.wait()
        await mode.interrupt()
        await self.process.stop()

    def _report(self, ended: Exit, schema_fault: str | None) -> Report:
        notices = []
        if self.spec.job.begin == "resume" and not self.going_on:
            text = "The session of the run before was not there any more; the agent began anew."
            notices.append(Notice(WarningCode.SESSION_LOST, text))
        code, signal = ended.code, ended.signal
        if self._lingered:
            # It was ours that ended it, so neither says anything about the run.
            code = signal = None
            notices.append(
                Notice(WarningCode.AGENT_LINGERED, "The agent did not end after its result and was stopped.")
            )
        if ended.stuck:
            notices.append(Notice(WarningCode.PROCESSES_STUCK, "A process of the agent could not be killed."))
        if ended.forks_refused:
            notices.append(
                Notice(
                    WarningCode.PROCESS_LIMIT,
                    f"{ended.forks_refused} processes more than its limit were refused.",
                )
            )
        output = self.spool.output(self.result_line)
        stderr = self.spool.stderr_text()
        if self.process.sealed and code == 1 and not output.output and stderr.startswith(_OF_BWRAP):
            # An agent that says the same in bwrap's place harms its own run alone.
            raise SpawnError(f"The sandbox could not be made: {stderr.splitlines()[0][:300]}.")
        if self.unknown_agent is not None:
            code, signal = 1, None
            stderr += self.unknown_agent
            output = type(output)(output.output, stderr)
        evidence = Evidence(
            stop=self.stop.reason,
            exit_code=code,
            signal=signal,
            result=self.result,
            stderr=stderr,
            unknown_agent=self.unknown_agent is not None,
            wants_schema=self.spec.job.output_schema is not None,
            schema_fault=schema_fault,
            memory=ended.memory,
            disk=ended.disk,
        )
        return Report(evidence, output, self.session_id, tuple(notices))


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def bounded(work: Awaitable[object], seconds: float) -> bool:
    """Wait for something at most so long; False when it did not come."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return False
    return True


def _now() -> float:
    return asyncio.get_running_loop().time()
