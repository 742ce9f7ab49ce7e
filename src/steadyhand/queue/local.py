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

from steadyhand.errors import RetryLater
from steadyhand.events import EventDraft
from steadyhand.job import Job
from steadyhand.outcome import StopReason
from steadyhand.ports import AddResult, Claim, IdempotencyKey, KeyBacklog, QueueLoad, StopSignal, Store

RETRY_AFTER_RANGE = (1, 600)
"""The least and the most seconds that a refused caller is asked to wait."""

_DEFAULT_RUN_SECONDS = 30.0
_DURATION_SAMPLES = 32

_SortKey = tuple[int, int, str]
"""What jobs are sorted by: the higher priority, then the earlier acceptance; the id makes it unique."""


def _sort_key(job: Job) -> _SortKey:
    return (-job.priority, job.sequence, job.id)


@dataclass(frozen=True, slots=True)
class _ActiveClaim:
    claim: Claim
    claimed_at: float


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
        can_start: Callable[[Job], bool] = lambda _: True,
        running_limit: Callable[[str], int | None] = lambda _: None,
    ) -> None:
        self._store = store
        self._capacity = capacity
        self._max_queued = max_queued
        self._clock = clock
        self._claiming = not paused
        self._draining = False
        self._can_start = can_start
        self._running_limit = running_limit
        # A line for each key that has jobs waiting, so that one at its limit is passed over by one look.
        self._waiting_by_key: dict[str, list[_SortKey]] = {}
        self._waiting: dict[str, Job] = {}
        self._free_slots = list(range(capacity))
        self._active_claims: dict[int, _ActiveClaim] = {}
        self._ending_slots: set[int] = set()
        self._adding_by_key: defaultdict[str, int] = defaultdict(int)
        self._adding = 0
        self._durations: deque[float] = deque(maxlen=_DURATION_SAMPLES)
        self._changed = asyncio.Event()

    async def enqueue(
        self, job: Job, drafts: Sequence[EventDraft], idempotency: IdempotencyKey | None = None
    ) -> AddResult:
        """Store a new job and enqueue it, or raise `TryLater` (`queue_full`, `draining`)."""
        refusal = self._refusal()
        if refusal is not None:
            # Full or not, a repeated request gets the job that it already made.
            replayed = None
            if idempotency is not None:
                replayed = await self._store.get_replayed(job.api_key_id, idempotency)
            if replayed is None:
                raise refusal
            return AddResult(replayed, replayed=True)
        add_task = asyncio.ensure_future(self._store.add(job, drafts, idempotency))
        self._adding_by_key[job.api_key_id] += 1  # holds the place until the store has answered
        self._adding += 1
        # Told by the store and not by the caller, who may be gone by then: a stored job must not be forgotten.
        add_task.add_done_callback(partial(self._on_added, job.api_key_id))
        return await asyncio.shield(add_task)

    def _on_added(self, key_id: str, add_task: asyncio.Future[AddResult]) -> None:
        self._adding -= 1
        self._adding_by_key[key_id] -= 1
        if not self._adding_by_key[key_id]:
            del self._adding_by_key[key_id]
        if not (add_task.cancelled() or add_task.exception() or add_task.result().replayed):
            self._enqueue(add_task.result().job)

    def _refusal(self) -> RetryLater | None:
        if self._draining:
            return RetryLater(
                "The service is shutting down. Try again soon.", code="draining", retry_after=10
            )
        if self._active + len(self._waiting) + self._adding < self._capacity + self._max_queued:
            return None
        seconds = self._estimate_retry_after()
        reason = f"The queue is full ({_count_jobs(self._max_queued)})"
        if self._max_queued == 0:
            reason = f"Every slot is taken ({_count_jobs(self._capacity)})"
        return RetryLater(f"{reason}. Try again in {seconds} s.", retry_after=seconds)

    def _estimate_retry_after(self) -> int:
        """Guess when the next running job ends: by the mean of recent runs, less how long the oldest has run."""
        mean = sum(self._durations) / len(self._durations) if self._durations else _DEFAULT_RUN_SECONDS
        now = self._clock()
        oldest = max((now - claim.claimed_at for claim in self._active_claims.values()), default=0.0)
        minimum, maximum = RETRY_AFTER_RANGE
        return max(minimum, min(maximum, math.ceil(mean - oldest)))

    async def requeue(self, job: Job) -> None:
        """Enqueue a stored job in the place that its priority and acceptance give it."""
        self._enqueue(job)

    def _enqueue(self, job: Job) -> None:
        self._remove(job.id)
        self._waiting[job.id] = job
        insort(self._waiting_by_key.setdefault(job.api_key_id, []), _sort_key(job))
        self._wake_claimers()

    def _remove(self, job_id: str) -> Job | None:
        job = self._waiting.pop(job_id, None)
        if job is not None:
            waiting = self._waiting_by_key[job.api_key_id]
            del waiting[bisect_left(waiting, _sort_key(job))]
            if not waiting:
                del self._waiting_by_key[job.api_key_id]
        return job

    async def claim(self) -> Claim:
        """Wait for the next job and a free slot, and take both, the lowest slot first."""
        while True:
            # Taking needs no await, so a cancelled caller has either nothing or all of it.
            claim = self._try_claim()
            if claim is not None:
                return claim
            await self._changed.wait()

    def _try_claim(self) -> Claim | None:
        if not self._claiming or self._draining or not self._free_slots:
            return None
        sort_key = self._next_startable()
        job = None if sort_key is None else self._remove(sort_key[2])
        if job is None:
            return None
        claim = Claim(job, heapq.heappop(self._free_slots), StopSignal())
        self._active_claims[claim.slot] = _ActiveClaim(claim, self._clock())
        return claim

    def _next_startable(self) -> _SortKey | None:
        """Give the first place whose job may run now."""
        # A job that was retried while its old run is being put away waits until that run is done.
        active_job_ids = {held.claim.job.id for held in self._active_claims.values()}
        running = self._running_by_key()
        candidates = (
            next(
                (
                    entry
                    for entry in waiting
                    if entry[2] not in active_job_ids and self._is_startable(entry, active_job_ids)
                ),
                None,
            )
            for key_id, waiting in self._waiting_by_key.items()
            if (limit := self._running_limit(key_id)) is None or running[key_id] < limit
        )
        return min((sort_key for sort_key in candidates if sort_key is not None), default=None)

    def _is_startable(self, sort_key: _SortKey, active_job_ids: set[str]) -> bool:
        """Say whether nothing but a slot is missing; the job that this one goes on with has to have ended."""
        job = self._waiting[sort_key[2]]
        parent = None if job.run else job.parent_job_id
        parent_ended = parent is None or (parent not in self._waiting and parent not in active_job_ids)
        return parent_ended and self._can_start(job)

    def _running_by_key(self) -> Counter[str]:
        return Counter(held.claim.job.api_key_id for held in self._active_claims.values())

    def mark_ending(self, job_id: str) -> None:
        """Count the slot of a held job as free from here on; it is claimed anew only when it is given back."""
        self._ending_slots.update(
            slot for slot, held in self._active_claims.items() if held.claim.job.id == job_id
        )

    @property
    def _active(self) -> int:
        return len(self._active_claims) - len(self._ending_slots)

    async def release(self, claim: Claim) -> None:
        """Give the slot back; harmless when it was given back already."""
        active = self._active_claims.get(claim.slot)
        if active is None or active.claim is not claim:
            return
        del self._active_claims[claim.slot]
        self._ending_slots.discard(claim.slot)
        self._durations.append(self._clock() - active.claimed_at)
        heapq.heappush(self._free_slots, claim.slot)
        self._wake_claimers()

    async def cancel(
        self, job_id: str, reason: StopReason = StopReason.CANCEL
    ) -> Literal["withdrawn", "stopping", "unknown"]:
        """Take a job out of the queue, or ask its run to stop."""
        if self._remove(job_id) is not None:
            return "withdrawn"
        for active in self._active_claims.values():
            if active.claim.job.id == job_id:
                active.claim.stop.request(reason)
                return "stopping"
        return "unknown"

    async def list_expired(self, now: datetime) -> Sequence[str]:
        """Give ids of queued jobs that have waited longer than they are good for, next first."""
        sort_keys = heapq.merge(*self._waiting_by_key.values())
        return [job_id for _, _, job_id in sort_keys if _is_expired(self._waiting[job_id], now)]

    def position(self, job_id: str) -> int | None:
        """Give a queued job's place, 1 being next."""
        job = self._waiting.get(job_id)
        if job is None:
            return None
        sort_key = _sort_key(job)
        return sum(bisect_left(waiting, sort_key) for waiting in self._waiting_by_key.values()) + 1

    def load(self) -> QueueLoad:
        """Say how full it is; a job on its way into the store counts as queued."""
        return QueueLoad(self._active, len(self._waiting) + self._adding, self._capacity)

    def backlog(self, key_id: str) -> KeyBacklog:
        """Say what a key has in it; a slot whose job's end is told counts as free."""
        waiting = len(self._waiting_by_key.get(key_id, ())) + self._adding_by_key.get(key_id, 0)
        startable = self._capacity - self._active
        limit = self._running_limit(key_id)
        if limit is not None:
            ending = (self._active_claims[slot].claim.job.api_key_id == key_id for slot in self._ending_slots)
            startable = min(startable, limit - self._running_by_key()[key_id] + sum(ending))
        return KeyBacklog(waiting, max(0, startable), self._estimate_retry_after())

    def recheck(self) -> None:
        """Ask anew which of the waiting jobs may start."""
        self._wake_claimers()

    def drain(self) -> None:
        """Admit and claim nothing more; what waits stays queued in the store."""
        self._draining = True

    def stop_all(self, reason: StopReason) -> None:
        """Ask every run that is held here to stop."""
        for active in self._active_claims.values():
            active.claim.stop.request(reason)

    def _wake_claimers(self) -> None:
        """Wake every claimer to look again; each looks before it waits, so none misses this."""
        self._changed.set()
        self._changed = asyncio.Event()


def _count_jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"


def _is_expired(job: Job, now: datetime) -> bool:
    if job.expires_in_seconds is None:
        return False
    return (now - (job.queued_at or job.created_at)).total_seconds() > job.expires_in_seconds
