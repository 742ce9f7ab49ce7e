"""Writes calls into the ledger beside the calls themselves: nobody's first token waits for a disk.

A call that begins is handed in a moment later, when it is on its way: the thread that writes would else take the
interpreter from it. One that has ended by then is written once.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from steadyhand.errors import StoreError
from steadyhand.ports import Call, Ledger

TRIES = 3
LATER_SECONDS = 0.05


class Books:
    """Keeps calls, each in the order in which it was handed in."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._open = False
        self._last: dict[str, asyncio.Task[None]] = {}
        self._later: dict[str, tuple[asyncio.TimerHandle, Call]] = {}
        self._log = structlog.get_logger("steadyhand.gateway")

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Take calls for the length of the block; all are kept when it ends, however it does."""
        self._open = True
        try:
            yield
        finally:
            for timer, call in list(self._later.values()):
                timer.cancel()
                self._hand_in(call)
            self._open = False
            if self._last:
                await asyncio.wait(list(self._last.values()))  # each is bounded by the store

    def keep(self, call: Call) -> None:
        """Hand a call in."""
        if not self._open:
            self._log.error("ledger.closed", call=call.id)
        elif call.settled:
            self._hand_in(call)
        else:
            timer = asyncio.get_running_loop().call_later(LATER_SECONDS, self._hand_in, call)
            self._later[call.id] = (timer, call)

    def _hand_in(self, call: Call) -> None:
        later = self._later.pop(call.id, None)
        if later is not None:
            later[0].cancel()
        before = self._last.get(call.id)
        # Not in a task group: that would wrap what is raised in the block.
        task = asyncio.ensure_future(self._keep(call, before))
        self._last[call.id] = task
        task.add_done_callback(lambda done: self._forget(call.id, done))

    def _forget(self, call_id: str, task: asyncio.Task[None]) -> None:
        if self._last.get(call_id) is task:
            del self._last[call_id]

    async def _keep(self, call: Call, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        for trial in range(1, TRIES + 1):
            try:
                await self._ledger.keep_call(call)
            except StoreError as error:  # what it cost is still counted here, until the service ends
                self._log.error("ledger.failed", call=call.id, trial=trial, error=error.detail)
            else:
                return

    async def kept(self, call_ids: set[str]) -> None:
        """Wait until what was handed in of these calls is in the ledger; the caller bounds the wait."""
        tasks = [task for call_id, task in self._last.items() if call_id in call_ids]
        if tasks:
            await asyncio.wait(tasks)
