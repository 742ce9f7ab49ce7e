"""The setup commands of a checkout as phases of the run; the program in the sandbox tells each on its stderr."""

import asyncio
from collections.abc import Sequence

from steadyhand.ports import report_phase

_MAX_DETAIL = 200
_MAX_TAIL = 64


class SetupPhases:
    """Reports each command as it begins. The commands come once and in their order, whatever else stderr has."""

    def __init__(self, commands: Sequence[str]) -> None:
        self._commands = commands
        self._tail = b""
        self._next = 0
        self._begun: asyncio.Queue[str | None] = asyncio.Queue(len(commands) + 1)

    def feed(self, chunk: bytes) -> None:
        """Read a piece of stderr, and queue the commands that it tells."""
        *lines, tail = (self._tail + chunk).split(b"\n")
        self._tail = tail[-_MAX_TAIL:]
        for line in lines:
            if line == b"setup %d" % self._next and self._next < len(self._commands):
                self._begun.put_nowait(self._commands[self._next])
                self._next += 1

    def close(self) -> None:
        """Let `report` end."""
        self._begun.put_nowait(None)

    async def report(self) -> None:
        """Report the commands that are queued until `close`."""
        while (command := await self._begun.get()) is not None:
            await report_phase("setup", command[:_MAX_DETAIL])
