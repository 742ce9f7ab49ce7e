"""Writes calls into the ledger in the background, so that the first token does not wait for a disk.

A new call is handed to the writer a moment later, when it is on its way: the writing thread would otherwise take the
interpreter from it. A call that has ended by then is written once.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from steadyhand.errors import StoreError
from steadyhand.ports import Ledger, ModelCall

MAX_ATTEMPTS = 3
WRITE_DELAY_SECONDS = 0.05


class LedgerWriter:
    """Keeps calls, each in the order in which it was handed in."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._open = False
        self._last_write: dict[str, asyncio.Task[None]] = {}
        self._delayed: dict[str, tuple[asyncio.TimerHandle, ModelCall]] = {}
        self._log = structlog.get_logger("steadyhand.gateway")

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Accept calls for the length of the block; all are stored when it ends, also after an error."""
        self._open = True
        try:
            yield
        finally:
            for timer, call in list(self._delayed.values()):
                timer.cancel()
                self._enqueue(call)
            self._open = False
            if self._last_write:
                await asyncio.wait(list(self._last_write.values()))  # each is bounded by the store

    def write(self, call: ModelCall) -> None:
        """Hand a call in."""
        if not self._open:
            self._log.error("ledger.closed", call=call.id)
        elif call.settled:
            self._enqueue(call)
        else:
            timer = asyncio.get_running_loop().call_later(WRITE_DELAY_SECONDS, self._enqueue, call)
            self._delayed[call.id] = (timer, call)

    def _enqueue(self, call: ModelCall) -> None:
        delayed = self._delayed.pop(call.id, None)
        if delayed is not None:
            delayed[0].cancel()
        previous = self._last_write.get(call.id)
        # Not in a task group: that would wrap what is raised in the block.
        task = asyncio.ensure_future(self._write(call, previous))
        self._last_write[call.id] = task
        task.add_done_callback(lambda done: self._drop_task(call.id, done))

    def _drop_task(self, call_id: str, task: asyncio.Task[None]) -> None:
        if self._last_write.get(call_id) is task:
            del self._last_write[call_id]

    async def _write(self, call: ModelCall, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            await asyncio.wait({previous})
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                await self._ledger.save_call(call)
            except StoreError as error:  # what it cost is still counted here, until the service ends
                self._log.error("ledger.failed", call=call.id, trial=attempt, error=error.detail)
            else:
                return

    async def flush(self, call_ids: set[str]) -> None:
        """Wait until these calls are in the ledger; the caller bounds the wait."""
        tasks = [task for call_id, task in self._last_write.items() if call_id in call_ids]
        if tasks:
            await asyncio.wait(tasks)
