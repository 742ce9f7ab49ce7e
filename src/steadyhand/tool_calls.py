"""Calls of a client's tools: those that wait in this process, and the state of a job's calls by its events."""

import asyncio
import hashlib
import json
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakValueDictionary

from steadyhand.events import Event, ToolCallsAnswered, ToolCallsRequested
from steadyhand.job import ToolOutput
from steadyhand.ports import ClientToolCall, KeyWaitingRuns, Store

EXPECTED_SECONDS = 30.0
"""Seconds for which results wait until a run of an earlier service is taken up."""
TOOL_RESULT_SECONDS = 600
"""Seconds that a client's tool calls wait for their results by default."""


def results_digest(results: Mapping[str, ToolOutput]) -> str:
    """Return a digest of the results of calls, by which a repeat is recognized."""
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()


@dataclass(slots=True)
class ToolCallState:
    """A job's client tool calls: those of the newest turn with any, and the event of each answer."""

    calls: Sequence[Mapping[str, Any]] = ()
    run: int = 0
    """The run that made `calls`."""
    is_open: bool = False
    answers: list[Event] = field(default_factory=list)

    @classmethod
    async def read(cls, store: Store, job_id: str) -> "ToolCallState":
        """Return the state after all stored events of a job."""
        state, after = cls(), 0
        while batch := await store.list_events(job_id, after):
            for event in batch:
                state.apply(event)
            after = batch[-1].seq
        return state

    def apply(self, event: Event) -> None:
        """Update the state by the next event of the job."""
        if event.type == ToolCallsRequested.type:
            self.calls, self.run, self.is_open = event.data["calls"], event.run, True
        elif event.type == ToolCallsAnswered.type:
            self.is_open = False
            self.answers.append(event)

    @property
    def ids(self) -> frozenset[str]:
        """The ids of `calls`."""
        return frozenset(call["id"] for call in self.calls)

    def open_ids(self, run: int) -> frozenset[str]:
        """Return the ids of the calls of this run, the job's newest, that have no result yet."""
        return self.ids if self.is_open and self.run == run else frozenset()


class RunSlot(Protocol):
    """The slot of a run that waits for results. The run has given it up, if there was room for its process."""

    def reclaim(self) -> bool:
        """Request the slot, before the queue; return True if the run has it now."""
        ...

    def release(self) -> None:
        """Release the slot again, since the run has to wait on."""
        ...


SaveResults = Callable[[Mapping[str, ToolOutput]], Awaitable[None]]


class PendingCalls:
    """The calls of one turn that wait for their results."""

    def __init__(self, calls: Sequence[ClientToolCall], key_id: str = "") -> None:
        self.ids = frozenset(call.id for call in calls)
        self.key_id = key_id
        self.slot: RunSlot | None = None
        """The slot of the run; None if it keeps its slot."""
        self.accepted = False
        """True once results have been accepted."""
        self.closed = False
        """True once the process that waits is being stopped: its session takes the results."""
        self.has_slot = True
        """False if the results have to wait until the run has its slot again."""
        self.save: SaveResults | None = None
        """Keeps the results for a later service, before they are stored as accepted."""
        self.kept_in_job = False
        """True if the job holds the results, because the process does not get them at once."""
        self._results: asyncio.Future[Mapping[str, ToolOutput]] = asyncio.get_running_loop().create_future()
        self._timeout: asyncio.Timeout | None = None

    def accept(self) -> bool:
        """Let the calls wait without a bound, since their results have arrived. Return False if it is too late.

        The run requests its slot; `has_slot` is True if it has it.
        """
        if self.closed or (self._timeout is not None and self._timeout.expired()):
            return False
        if self._timeout is not None:
            self._timeout.reschedule(None)
        self.accepted = True
        self.has_slot = self.slot is None or self.slot.reclaim()
        return True

    def reopen(self, timeout_seconds: float) -> None:
        """Let the calls wait for so many seconds from now, since their results could not be stored."""
        self.accepted = False
        if self._results.done():
            return
        if self._timeout is not None:
            self._timeout.reschedule(asyncio.get_running_loop().time() + timeout_seconds)
        if self.slot is not None:
            self.slot.release()

    def set_results(self, results: Mapping[str, ToolOutput]) -> None:
        """Set the results, after `accept`; the process that waited may have ended."""
        if not self._results.done():
            self._results.set_result(results)

    async def wait_for_results(self, timeout_seconds: float) -> Mapping[str, ToolOutput]:
        """Wait for the results and return them. Raise `TimeoutError`."""
        async with asyncio.timeout(None if self.accepted else timeout_seconds) as self._timeout:
            return await self._results

    def seconds_left(self) -> float:
        """Return the seconds until the wait ends without results; 0 if its end is not set."""
        ends_at = None if self._timeout is None else self._timeout.when()
        return 0.0 if ends_at is None else max(0.0, ends_at - asyncio.get_running_loop().time())


class ToolCallBroker:
    """Connects calls and their results. At most one turn's calls of a job wait at a time.

    An agent's process waits for `timeout_seconds`; then its run ends, and a later result resumes its session.
    """

    def __init__(self, timeout_seconds: float = TOOL_RESULT_SECONDS) -> None:
        self.timeout_seconds = timeout_seconds
        self._pending: dict[str, PendingCalls] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._expected: dict[str, asyncio.Event] = {}
        """The jobs whose runs an earlier service left and that may have calls: each until its calls wait here."""

    def lock_for(self, job_id: str) -> asyncio.Lock:
        """Return the lock to hold while results are passed to a job."""
        return self._locks.setdefault(job_id, asyncio.Lock())

    @contextmanager
    def pending(
        self, job_id: str, calls: Sequence[ClientToolCall], key_id: str = ""
    ) -> Iterator[PendingCalls]:
        """Let these calls of a job of a key wait for the length of the block."""
        pending = self._pending[job_id] = PendingCalls(calls, key_id)
        self.forget_expected(job_id)
        try:
            yield pending
        finally:
            del self._pending[job_id]

    def expect(self, job_id: str) -> None:
        """Let results for a job wait until the calls of its run, which an earlier service left, wait here again."""
        self._expected[job_id] = asyncio.Event()

    def forget_expected(self, job_id: str) -> None:
        """Let results for a job wait no longer: its calls wait, or will not."""
        expected = self._expected.pop(job_id, None)
        if expected is not None:
            expected.set()

    async def find(self, job_id: str) -> PendingCalls | None:
        """Return the calls of a job that wait, or None; wait, for a bounded time, for those of an earlier service."""
        expected = self._expected.get(job_id)
        if expected is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(EXPECTED_SECONDS):
                    await expected.wait()
        return self._pending.get(job_id)

    def get(self, job_id: str) -> PendingCalls | None:
        """Return the calls of a job that wait, or None."""
        return self._pending.get(job_id)

    def waiting_runs(self, key_id: str) -> KeyWaitingRuns:
        """Return the runs of a key whose processes wait for results."""
        waits = [each.seconds_left() for each in self._pending.values() if each.key_id == key_id]
        return KeyWaitingRuns(len(waits), math.ceil(min(waits, default=0.0)))
