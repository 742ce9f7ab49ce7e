"""The queue of one process, over the store.

The store knows which jobs are queued; this knows their order, the slots, and who holds what. It is rebuilt at start
by `readmit`. All of it lives on the event loop's thread: between two awaits nothing changes under a verb.
"""

import asyncio
import heapq
import math
import time
from bisect import bisect_left, insort
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Literal

from steadyhand.errors import TryLater
from steadyhand.events import Draft
from steadyhand.job import Job
from steadyhand.outcome import Stop
from steadyhand.ports import Added, Backlog, Claim, Idempotency, Load, StopSignal, Store

RETRY_BOUNDS = (1, 600)
"""The least and the most seconds that a refused caller is asked to wait."""

_UNKNOWN_RUN_SECONDS = 30.0
_REMEMBERED_RUNS = 32

_Place = tuple[int, int, str]
"""What jobs are sorted by: the higher priority, then the earlier acceptance; the id makes it unique."""


def _place(job: Job) -> _Place:
    return (-job.priority, job.sequence, job.id)


@dataclass(frozen=True, slots=True)
class _Held:
    claim: Claim
    since: float


class LocalQueue:
    """`ports.Queue` in memory. `capacity` jobs run at once; `max_queued` more may wait.

    `may_start` says whether a job would get anywhere now; `look_again` is to be called when that has changed.
    `most_running` gives how many jobs of a key may run at once, null for as many as there are slots. `paused` admits
    and never claims, for measuring; `clock` is a monotonic clock in seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        capacity: int,
        max_queued: int,
        clock: Callable[[], float] = time.monotonic,
        paused: bool = False,
        may_start: Callable[[Job], bool] = lambda _: True,
        most_running: Callable[[str], int | None] = lambda _: None,
    ) -> None:
        self._store = store
        self._capacity = capacity
        self._max_queued = max_queued
        self._clock = clock
        self._claiming = not paused
        self._draining = False
        self._may_start = may_start
        self._most_running = most_running
        # A line for each key that has jobs waiting, so that one at its limit is passed over by one look.
        self._lines: dict[str, list[_Place]] = {}
        self._waiting: dict[str, Job] = {}
        self._free = list(range(capacity))
        self._held: dict[int, _Held] = {}
        self._ending: set[int] = set()
        self._admitting: defaultdict[str, int] = defaultdict(int)
        self._on_their_way = 0
        self._durations: deque[float] = deque(maxlen=_REMEMBERED_RUNS)
        self._changed = asyncio.Event()

    async def admit(self, job: Job, drafts: Sequence[Draft], idempotency: Idempotency | None = None) -> Added:
        """Store a new job and enqueue it, or raise `TryLater` (`queue_full`, `draining`)."""
        refusal = self._refusal()
        if refusal is not None:
            # Full or not, a repeated request gets the job that it already made.
            known = None
            if idempotency is not None:
                known = await self._store.replay(job.api_key_id, idempotency)
            if known is None:
                raise refusal
            return Added(known, replayed=True)
        adding = asyncio.ensure_future(self._store.add(job, drafts, idempotency))
        self._admitting[job.api_key_id] += 1  # holds the place until the store has answered
        self._on_their_way += 1
        # Told by the store and not by the caller, who may be gone by then: a stored job must not be forgotten.
        adding.add_done_callback(partial(self._admitted, job.api_key_id))
        return await asyncio.shield(adding)

    def _admitted(self, key_id: str, adding: asyncio.Future[Added]) -> None:
        self._on_their_way -= 1
        self._admitting[key_id] -= 1
        if not self._admitting[key_id]:
            del self._admitting[key_id]
        if not (adding.cancelled() or adding.exception() or adding.result().replayed):
            self._enqueue(adding.result().job)

    def _refusal(self) -> TryLater | None:
        if self._draining:
            return TryLater("The service is shutting down. Try again soon.", code="draining", retry_after=10)
        if self._active + len(self._waiting) + self._on_their_way < self._capacity + self._max_queued:
            return None
        seconds = self._retry_after()
        what = f"The queue is full ({_jobs(self._max_queued)})"
        if self._max_queued == 0:
            what = f"Every slot is taken ({_jobs(self._capacity)})"
        return TryLater(f"{what}. Try again in {seconds} s.", retry_after=seconds)

    def _retry_after(self) -> int:
        """Guess when the next running job ends: by the mean of recent runs, less how long the oldest has run."""
        mean = sum(self._durations) / len(self._durations) if self._durations else _UNKNOWN_RUN_SECONDS
        now = self._clock()
        oldest = max((now - held.since for held in self._held.values()), default=0.0)
        least, most = RETRY_BOUNDS
        return max(least, min(most, math.ceil(mean - oldest)))

    async def readmit(self, job: Job) -> None:
        """Enqueue a stored job in the place that its priority and acceptance give it."""
        self._enqueue(job)

    def _enqueue(self, job: Job) -> None:
        self._withdraw(job.id)
        self._waiting[job.id] = job
        insort(self._lines.setdefault(job.api_key_id, []), _place(job))
        self._tell()

    def _withdraw(self, job_id: str) -> Job | None:
        job = self._waiting.pop(job_id, None)
        if job is not None:
            line = self._lines[job.api_key_id]
            del line[bisect_left(line, _place(job))]
            if not line:
                del self._lines[job.api_key_id]
        return job

    async def claim(self) -> Claim:
        """Wait for the next job and a free slot, and take both, the lowest slot first."""
        while True:
            # Taking needs no await, so a cancelled caller has either nothing or all of it.
            claim = self._take()
            if claim is not None:
                return claim
            await self._changed.wait()

    def _take(self) -> Claim | None:
        if not self._claiming or self._draining or not self._free:
            return None
        place = self._next()
        job = None if place is None else self._withdraw(place[2])
        if job is None:
            return None
        claim = Claim(job, heapq.heappop(self._free), StopSignal())
        self._held[claim.slot] = _Held(claim, self._clock())
        return claim

    def _next(self) -> _Place | None:
        """Give the first place whose job may run now."""
        # A job that was retried while its old run is being put away waits until that run is done.
        busy = {held.claim.job.id for held in self._held.values()}
        running = self._running()
        firsts = (
            next(
                (each for each in line if each[2] not in busy and self._may_run(each, busy)),
                None,
            )
            for key_id, line in self._lines.items()
            if (most := self._most_running(key_id)) is None or running[key_id] < most
        )
        return min((place for place in firsts if place is not None), default=None)

    def _may_run(self, place: _Place, busy: set[str]) -> bool:
        """Say whether nothing but a slot is missing; the job that this one goes on with has to have ended."""
        job = self._waiting[place[2]]
        parent = None if job.run else job.parent_job_id
        its_turn = parent is None or (parent not in self._waiting and parent not in busy)
        return its_turn and self._may_start(job)

    def _running(self) -> Counter[str]:
        return Counter(held.claim.job.api_key_id for held in self._held.values())

    def ending(self, job_id: str) -> None:
        """Count the slot of a held job as free from here on; it is claimed anew only when it is given back."""
        self._ending.update(slot for slot, held in self._held.items() if held.claim.job.id == job_id)

    @property
    def _active(self) -> int:
        return len(self._held) - len(self._ending)

    async def done(self, claim: Claim) -> None:
        """Give the slot back; harmless when it was given back already."""
        held = self._held.get(claim.slot)
        if held is None or held.claim is not claim:
            return
        del self._held[claim.slot]
        self._ending.discard(claim.slot)
        self._durations.append(self._clock() - held.since)
        heapq.heappush(self._free, claim.slot)
        self._tell()

    async def cancel(
        self, job_id: str, reason: Stop = Stop.CANCEL
    ) -> Literal["withdrawn", "stopping", "unknown"]:
        """Take a job out of the queue, or ask its run to stop."""
        if self._withdraw(job_id) is not None:
            return "withdrawn"
        for held in self._held.values():
            if held.claim.job.id == job_id:
                held.claim.stop.request(reason)
                return "stopping"
        return "unknown"

    async def overdue(self, now: datetime) -> Sequence[str]:
        """Give ids of queued jobs that have waited longer than they are good for, next first."""
        places = heapq.merge(*self._lines.values())
        return [job_id for _, _, job_id in places if _is_overdue(self._waiting[job_id], now)]

    def position(self, job_id: str) -> int | None:
        """Give a queued job's place, 1 being next."""
        job = self._waiting.get(job_id)
        if job is None:
            return None
        place = _place(job)
        return sum(bisect_left(line, place) for line in self._lines.values()) + 1

    def load(self) -> Load:
        """Say how full it is; a job on its way into the store counts as queued."""
        return Load(self._active, len(self._waiting) + self._on_their_way, self._capacity)

    def backlog(self, key_id: str) -> Backlog:
        """Say what a key has in it; a slot whose job's end is told counts as free."""
        waiting = len(self._lines.get(key_id, ())) + self._admitting.get(key_id, 0)
        startable = self._capacity - self._active
        most = self._most_running(key_id)
        if most is not None:
            told = (self._held[slot].claim.job.api_key_id == key_id for slot in self._ending)
            startable = min(startable, most - self._running()[key_id] + sum(told))
        return Backlog(waiting, max(0, startable), self._retry_after())

    def look_again(self) -> None:
        """Ask anew which of the waiting jobs may start."""
        self._tell()

    def drain(self) -> None:
        """Admit and claim nothing more; what waits stays queued in the store."""
        self._draining = True

    def stop_all(self, reason: Stop) -> None:
        """Ask every run that is held here to stop."""
        for held in self._held.values():
            held.claim.stop.request(reason)

    def _tell(self) -> None:
        """Wake every claimer to look again; each looks before it waits, so none misses this."""
        self._changed.set()
        self._changed = asyncio.Event()


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"


def _is_overdue(job: Job, now: datetime) -> bool:
    if job.expires_in_seconds is None:
        return False
    return (now - (job.queued_at or job.created_at)).total_seconds() > job.expires_in_seconds
