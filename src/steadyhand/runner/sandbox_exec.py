"""Small commands run where the agent ran: a workspace's setup, the look at what an agent left."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

from steadyhand.agents import Agent
from steadyhand.events import Body, TextDelta
from steadyhand.ports import Command, Done, Gateway, Listening, Place, Sandbox
from steadyhand.runner.process.agent_process import AgentProcess, Exit, Launch

_CHUNK = 1 << 16
_SHARED_NETWORK = ("host",)


class SandboxErrands:
    """`ports.Errands` in a sandbox, with the hosts that the errand's agent may reach."""

    def __init__(self, sandbox: Sandbox, gateway: Gateway | None = None) -> None:
        self.sandbox = sandbox
        self._gateway = gateway

    async def run(
        self,
        argv: Sequence[str],
        place: Place,
        agent: Agent,
        *,
        env: Mapping[str, str],
        stdin: bytes = b"",
        seconds: float,
        max_output: int,
    ) -> Done:
        """Run a command; see the port. Nothing of it is alive afterwards, however it ended."""
        plain = Command(argv, dict(env), self.sandbox.view(place).directory, place.user)
        launch = Launch(self.sandbox.wrap(plain, place, agent))
        output = _Output(max_output)
        async with self._doors(agent) as listening, AgentProcess.start(launch, None, listening) as process:
            ended = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    ended = await _attend(process, stdin, output)
            if ended is None or output.full:
                await process.kill()
                return Done(None, bytes(output.stdout), bytes(output.stderr))
        return Done(ended.code, bytes(output.stdout), bytes(output.stderr))

    @contextlib.asynccontextmanager
    async def _doors(self, agent: Agent) -> AsyncIterator[Listening | None]:
        if self._gateway is None or not agent.egress or agent.egress == _SHARED_NETWORK:
            yield None
            return
        async with self._gateway.doors(agent.egress, _nobody) as listening:
            yield listening


async def _nobody(event: Body | TextDelta) -> None:
    """Take what happened; an errand has no events."""


class _Output:
    """What a command printed, up to so many bytes in all."""

    def __init__(self, limit: int) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._left = limit
        self.full = False

    def take(self, kept: bytearray, chunk: bytes) -> bool:
        """Keep a piece; False when it was too much."""
        kept += chunk[: self._left]
        self.full = self.full or len(chunk) > self._left
        self._left -= min(self._left, len(chunk))
        return not self.full


async def _attend(process: AgentProcess, stdin: bytes, output: _Output) -> Exit | None:
    """Feed a command and read it to its end; null when it printed too much."""
    async with asyncio.TaskGroup() as group:
        feeding = group.create_task(_feed(process, stdin))
        reading = [
            group.create_task(_read(process.stdout, output.stdout, output)),
            group.create_task(_read(process.stderr, output.stderr, output)),
        ]
        ending = group.create_task(process.wait())
        while not ending.done() and not output.full:
            # A reader that ends early may have seen too much; else only the end of the command counts.
            waiting = [ending, *(task for task in reading if not task.done())]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        feeding.cancel()
        if output.full:
            for task in (ending, *reading):
                task.cancel()
            return None
    return ending.result()


async def _feed(process: AgentProcess, stdin: bytes) -> None:
    await process.write(stdin)
    process.end_input()


async def _read(reader: asyncio.StreamReader, kept: bytearray, output: _Output) -> None:
    while (chunk := await reader.read(_CHUNK)) and output.take(kept, chunk):
        pass
