"""Writes calls into the ledger in the background, so that the first token does not wait for a disk.

A new call is handed to the writer a moment later, when it is on its way: the writing thread would otherwise take the
interpreter from it. A call that has ended by then is written once.

A call that has ended is in a journal until it is stored (`call_journal.py`), so that a kill loses none.

During an outage of the store calls are held here. They count against budgets, which have their own account. At
`max_held` calls a new call waits.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import structlog

from steadyhand.errors import StoreError
from steadyhand.gateway.money.call_journal import CallJournal
from steadyhand.ports import Ledger, ModelCall

WRITE_DELAY_SECONDS = 0.05
MAX_HELD_CALLS = 1_000
"""The number of calls that may wait for the store."""
CLOSE_SECONDS = 30.0
"""The time for the last writes when the service stops."""


class LedgerWriter:
    """Keeps calls, each in the order in which it was handed in."""

    def __init__(
        self, ledger: Ledger, *, max_held: int = MAX_HELD_CALLS, journal: CallJournal | None = None
    ) -> None:
        self._ledger = ledger
        self._journal = journal
        self._has_failed = False
        self._max_held = max_held
        self._open = False
        self._last_write: dict[str, tuple[asyncio.Task[None], ModelCall]] = {}
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._delayed: dict[str, tuple[asyncio.TimerHandle, ModelCall]] = {}
        self._log = structlog.get_logger("steadyhand.gateway")

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Accept calls for the length of the block; all are stored when it ends, also after an error."""
        if self._journal is not None:
            self._journal.open()
        self._open = True
        try:
            yield
        finally:
            for timer, call in list(self._delayed.values()):
                timer.cancel()
                self._enqueue(call)
            self._open = False
            await self._wait_for(task for task, _ in self._last_write.values())
            if self._last_write:
                self._log.error("ledger.lost", calls=len(self._last_write))
            if self._journal is not None:
                self._journal.close()

    async def recover(self) -> int:
        """Store the calls that an earlier process settled and did not store; return their number."""
        if self._journal is None:
            return 0
        calls = await asyncio.to_thread(self._journal.read)
        stored = set()
        for job_id in {call.job_id for call in calls}:
            newest = await self._ledger.list_calls(job_id, MAX_HELD_CALLS)
            stored |= {each.id for each in newest if each.settled}
        missing = [call for call in calls if call.id not in stored]
        await asyncio.gather(*(self._ledger.save_call(call) for call in missing))
        self._journal.open()
        self._journal.clear()
        self._journal.close()
        return len(missing)

    async def wait_for_room(self) -> None:
        """Wait until one more call can be held; the caller bounds the wait."""
        await self._has_room.wait()

    def write(self, call: ModelCall, on_stored: Callable[[], None] | None = None) -> None:
        """Hand a call in. `on_stored` is called once the ledger has a settled one."""
        if not self._open:
            self._log.error("ledger.closed", call=call.id)
        elif call.settled:
            if self._journal is not None:
                self._journal.add(call)
            self._enqueue(call, on_stored)
            # In the same commit, which costs more than their rows.
            for _, other in list(self._delayed.values()):
                self._enqueue(other)
        else:
            timer = asyncio.get_running_loop().call_later(WRITE_DELAY_SECONDS, self._enqueue, call)
            self._delayed[call.id] = (timer, call)

    def _enqueue(self, call: ModelCall, on_stored: Callable[[], None] | None = None) -> None:
        delayed = self._delayed.pop(call.id, None)
        if delayed is not None:
            delayed[0].cancel()
        previous, _ = self._last_write.get(call.id, (None, None))
        # Not in a task group: that would wrap what is raised in the block. `open` waits for the tasks at its end.
        # What the store holds longer ends with the store, which tries once more when it is closed.
        task = asyncio.create_task(self._write(call, previous, on_stored), name=f"ledger {call.id}")
        self._last_write[call.id] = task, call
        if len(self._last_write) >= self._max_held:
            self._has_room.clear()
        task.add_done_callback(lambda done: self._drop_task(call.id, done))

    def _drop_task(self, call_id: str, task: asyncio.Task[None]) -> None:
        newest, _ = self._last_write.get(call_id, (None, None))
        if newest is task:
            del self._last_write[call_id]
            self._clear_journal()
            if len(self._last_write) < self._max_held:
                self._has_room.set()

    def _clear_journal(self) -> None:
        if self._journal is not None and not self._last_write and not self._has_failed:
            self._journal.clear()

    async def _write(
        self,
        call: ModelCall,
        previous: asyncio.Task[None] | None,
        on_stored: Callable[[], None] | None,
    ) -> None:
        if previous is not None:
            await asyncio.wait({previous})
        try:
            await self._ledger.save_call(call)
        except StoreError as error:  # what it cost is still counted here, until the service ends
            self._has_failed = True
            self._log.error("ledger.failed", call=call.id, error=error.detail)
            return
        if on_stored is not None:
            on_stored()

    async def flush(self, call_ids: set[str]) -> None:
        """Wait until these calls are in the ledger; the caller bounds the wait."""
        await self._wait_for(task for task, call in self._last_write.values() if call.id in call_ids)

    async def flush_job(self, job_id: str) -> None:
        """Wait until the calls of a job are in the ledger; the caller bounds the wait."""
        await self._wait_for(task for task, call in self._last_write.values() if call.job_id == job_id)

    async def _wait_for(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        pending = list(tasks)
        if pending:
            await asyncio.sleep(0)  # a new task has not passed its call to the ledger yet
            self._ledger.hasten()
            await asyncio.wait(pending, timeout=CLOSE_SECONDS)
