"""Small commands in the agent's sandbox: a workspace's setup, and the harvest of an agent's files."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import SupportsIndex

from steadyhand.agents import Agent
from steadyhand.events import EventBody, TextDelta
from steadyhand.ports import Checkout, Command, Egress, ExecResult, OnListening, Sandbox
from steadyhand.runner.process.agent_process import AgentProcess, ExitStatus, LaunchSpec

_CHUNK = 1 << 16
_HOST_NETWORK_ONLY = ("host",)


class ProcessSandboxExec:
    """Runs commands in a sandbox, with access to the hosts of the agent; implements `ports.SandboxExec`."""

    def __init__(self, sandbox: Sandbox, egress: Egress | None = None) -> None:
        self.sandbox = sandbox
        self._egress = egress

    async def run(
        self,
        argv: Sequence[str],
        checkout: Checkout,
        agent: Agent,
        *,
        env: Mapping[str, str],
        stdin: bytes = b"",
        timeout_seconds: float,
        max_output: int,
        on_stdout: Callable[[bytes], float] | None = None,
        on_stderr: Callable[[bytes], None] | None = None,
    ) -> ExecResult:
        """Run a command; see the port. No process of it is alive afterwards, however it ended."""
        inner = Command(argv, dict(env), self.sandbox.agent_paths(checkout).directory, checkout.uid)
        launch = LaunchSpec(self.sandbox.wrap(inner, checkout, agent))
        output = _Output(max_output)
        async with (
            self._open_egress(agent) as listening,
            AgentProcess.start(launch, None, listening) as process,
        ):
            exit_status = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds) as bound:
                    if on_stdout is not None:
                        output.stdout = PassedOn(on_stdout, bound)
                    exit_status = await _communicate(process, stdin, output, on_stderr)
            if exit_status is None or output.overflowed:
                await process.kill()
                return ExecResult(None, bytes(output.stdout), bytes(output.stderr))
        return ExecResult(exit_status.code, bytes(output.stdout), bytes(output.stderr))

    @contextlib.asynccontextmanager
    async def _open_egress(self, agent: Agent) -> AsyncIterator[OnListening | None]:
        if self._egress is None or not agent.egress or agent.egress == _HOST_NETWORK_ONLY:
            yield None
            return
        async with self._egress.open_egress(agent.egress, _discard_event) as listening:
            yield listening


async def _discard_event(event: EventBody | TextDelta) -> None:
    """Ignore an event; a command has no record."""


class PassedOn(bytearray):
    """Passes what is appended on to a function that returns seconds for the time limit, and keeps none of it."""

    def __init__(self, on_output: Callable[[bytes], float], bound: asyncio.Timeout) -> None:
        super().__init__()
        self._on_output = on_output
        self._bound = bound

    def extend(self, chunk: Iterable[SupportsIndex]) -> None:
        """Pass a chunk on."""
        seconds = self._on_output(bytes(chunk))
        when = self._bound.when()
        if seconds and when is not None:
            self._bound.reschedule(when + seconds)


class _Output:
    """The output of a command, up to a limit of bytes in total."""

    def __init__(self, limit: int) -> None:
        self.stdout: bytearray = bytearray()
        self.stderr = bytearray()
        self._bytes_left = limit
        self.overflowed = False

    def append(self, buffer: bytearray, chunk: bytes) -> bool:
        """Append a piece; return False if it went over the limit."""
        buffer.extend(chunk[: self._bytes_left])
        self.overflowed = self.overflowed or len(chunk) > self._bytes_left
        self._bytes_left -= min(self._bytes_left, len(chunk))
        return not self.overflowed


async def _communicate(
    process: AgentProcess, stdin: bytes, output: _Output, on_stderr: Callable[[bytes], None] | None
) -> ExitStatus | None:
    """Write to a command and read its output to the end; return None if it printed too much."""
    async with asyncio.TaskGroup() as group:
        stdin_task = group.create_task(_write_stdin(process, stdin))
        readers = [
            group.create_task(_read(process.stdout, output.stdout, output)),
            group.create_task(_read(process.stderr, output.stderr, output, on_stderr)),
        ]
        exit_task = group.create_task(process.wait())
        while not exit_task.done() and not output.overflowed:
            # A reader that ends early may have reached the limit; else only the end of the command counts.
            waiting = [exit_task, *(task for task in readers if not task.done())]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        stdin_task.cancel()
        if output.overflowed:
            for task in (exit_task, *readers):
                task.cancel()
            return None
    return exit_task.result()


async def _write_stdin(process: AgentProcess, stdin: bytes) -> None:
    await process.write(stdin)
    process.end_input()


async def _read(
    reader: asyncio.StreamReader,
    buffer: bytearray,
    output: _Output,
    on_chunk: Callable[[bytes], None] | None = None,
) -> None:
    while (chunk := await reader.read(_CHUNK)) and output.append(buffer, chunk):
        if on_chunk is not None:
            on_chunk(chunk)
