"""The queue of one process, over the store.

The store has the queued jobs; the queue has their order, the slots and the claims. The worker fills it at its start
with `requeue`. It is used on the event loop's thread only: between two awaits its state does not change.
"""

import asyncio
import heapq
import time
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from steadyhand.errors import RetryLater
from steadyhand.events import EventDraft
from steadyhand.job import Job
from steadyhand.outcome import StopReason
from steadyhand.ports import (
    AddResult,
    Claim,
    IdempotencyKey,
    KeyBacklog,
    QueueLoad,
    StopSignal,
    Store,
    TickClaim,
)
from steadyhand.queue.new_jobs import NewJobs, RunDurations, draining_refusal, full_refusal
from steadyhand.retry import continues_parent

_SortKey = tuple[int, int, int, str]
"""The order of jobs: those that go on, then the higher priority, then the earlier acceptance; the id is unique."""


@dataclass(frozen=True, slots=True)
class _WaitingJob:
    """A job that waits, and the directory that it needs for itself, if any."""

    job: Job
    sort_key: _SortKey
    directory: str | None


@dataclass(slots=True, eq=False)
class _ActiveClaim:
    """A claim that is held. A suspended one counts neither as running nor against the limit of its key."""

    claim: Claim
    directory: str | None
    running_since: float
    seconds_before: float = 0.0
    """The seconds that it ran before it was suspended."""
    suspended: bool = False

    def run_seconds(self, now: float) -> float:
        """Return the seconds that it has run so far, without those in which it was suspended."""
        return self.seconds_before + (0.0 if self.suspended else now - self.running_since)


class LocalQueue:
    """`ports.Queue` in memory. `capacity` jobs run at once; `max_queued` more may wait.

    There are slots for `max_suspended` suspended claims beside those that run. `can_start` returns True if a job may
    run now; call `recheck` when its answer changes. `running_limit` returns the number of jobs of a key that may run at
    once, None for no limit. `directory_of` returns the directory in which a job has to be alone, None for most jobs.
    `on_accepted` is called with each new job once it is stored.
    With `paused` jobs are accepted and never claimed, for benchmarks; `clock` is a monotonic clock in seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        capacity: int,
        max_queued: int,
        max_suspended: int = 0,
        clock: Callable[[], float] = time.monotonic,
        paused: bool = False,
        can_start: Callable[[Job], bool] = lambda _: True,
        running_limit: Callable[[str], int | None] = lambda _: None,
        directory_of: Callable[[Job], str | None] = lambda _: None,
        on_accepted: Callable[[Job], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._capacity = capacity
        self._max_queued = max_queued
        self._clock = clock
        self._claiming = not paused
        self._draining = False
        self._is_drained = False
        self._accepts_jobs = True
        self._can_start = can_start
        self._running_limit = running_limit
        self._directory_of = directory_of
        self._on_accepted = on_accepted
        # One sorted list for each key with waiting jobs, so that a key at its limit is skipped in one step.
        self._waiting_by_key: dict[str, list[_SortKey]] = {}
        self._waiting: dict[str, _WaitingJob] = {}
        self._expiring: dict[str, _WaitingJob] = {}
        """Those that may expire: the look for them comes every second, and most jobs have no such time."""
        self._free_slots = list(range(capacity + max_suspended))
        self._active_claims: dict[int, _ActiveClaim] = {}
        self._ending_slots: set[int] = set()
        self._resuming: list[_ActiveClaim] = []
        """Suspended claims that are to run again, in the order of their requests."""
        self._new_jobs = NewJobs(store, self._on_stored)
        self._durations = RunDurations()
        self._changed = asyncio.Event()

    async def enqueue(
        self,
        job: Job,
        drafts: Sequence[EventDraft],
        idempotency: IdempotencyKey | None = None,
        *,
        claim: TickClaim | None = None,
    ) -> AddResult:
        """Store a new job and enqueue it, or raise `RetryLater` (`queue_full`, `draining`)."""
        return await self._new_jobs.add(job, drafts, idempotency, claim, self._refusal())

    def _on_stored(self, job: Job) -> None:
        self._on_accepted(job)
        self._enqueue(job)

    def _refusal(self) -> RetryLater | None:
        if not self._accepts_jobs:
            return draining_refusal()
        if self._active + len(self._waiting) + len(self._new_jobs) < self._capacity + self._max_queued:
            return None
        return full_refusal(
            capacity=self._capacity, max_queued=self._max_queued, retry_after=self._estimate_retry_after()
        )

    def _estimate_retry_after(self) -> int:
        now = self._clock()
        oldest = max((claim.run_seconds(now) for claim in self._running_claims()), default=0.0)
        return self._durations.estimate_retry_after(oldest)

    async def requeue(self, job: Job, *, goes_on: bool = False) -> None:
        """Enqueue a stored job by its priority and its acceptance; one that goes on comes before all others."""
        self._enqueue(job, goes_on=goes_on)

    def _enqueue(self, job: Job, *, goes_on: bool = False) -> None:
        self._remove(job.id)
        sort_key = (0 if goes_on else 1, -job.spec.priority, job.sequence, job.id)
        self._waiting[job.id] = entry = _WaitingJob(job, sort_key, self._directory_of(job))
        if job.spec.expires_in_seconds is not None:
            self._expiring[job.id] = entry
        insort(self._waiting_by_key.setdefault(job.api_key_id, []), sort_key)
        self._wake_claimers()

    def _remove(self, job_id: str) -> _WaitingJob | None:
        entry = self._waiting.pop(job_id, None)
        self._expiring.pop(job_id, None)
        if entry is not None:
            waiting = self._waiting_by_key[entry.job.api_key_id]
            del waiting[bisect_left(waiting, entry.sort_key)]
            if not waiting:
                del self._waiting_by_key[entry.job.api_key_id]
        return entry

    async def claim(self) -> Claim:
        """Wait for the next job and a free slot, the lowest first, and return a claim of both."""
        while True:
            # No await between the job and the slot, so a cancelled caller holds neither.
            claim = self._try_claim()
            if claim is not None:
                return claim
            await self._changed.wait()

    def _try_claim(self) -> Claim | None:
        if not self._claiming or self._is_drained or self._draining:
            return None
        if not self._free_slots or self._is_full():
            return None
        sort_key = self._next_startable()
        entry = None if sort_key is None else self._remove(sort_key[-1])
        if entry is None:
            return None
        claim = Claim(entry.job, heapq.heappop(self._free_slots), StopSignal())
        self._active_claims[claim.slot] = _ActiveClaim(claim, entry.directory, self._clock())
        return claim

    def adopt(self, job: Job, slot: int | None) -> Claim | None:
        """Claim a job that runs already, in its slot or in any; None if there is no such free slot."""
        if slot is None:
            slot = min(self._free_slots, default=None)
        if slot is None or slot not in self._free_slots:
            return None
        self._free_slots.remove(slot)
        heapq.heapify(self._free_slots)
        claim = Claim(job, slot, StopSignal())
        self._active_claims[slot] = _ActiveClaim(claim, self._directory_of(job), self._clock())
        return claim

    def _running_claims(self) -> list[_ActiveClaim]:
        return [active for active in self._active_claims.values() if not active.suspended]

    def _is_full(self) -> bool:
        return len(self._running_claims()) >= self._capacity

    def _next_startable(self) -> _SortKey | None:
        """Return the sort key of the first job that may run now, or None."""
        # A job that is retried while its old run is not released yet waits until then.
        active_job_ids = {active.claim.job.id for active in self._active_claims.values()}
        directories = {active.directory for active in self._active_claims.values()} - {None}
        running = self._running_by_key()
        candidates = (
            next(
                (
                    sort_key
                    for sort_key in waiting
                    if sort_key[-1] not in active_job_ids
                    and self._waiting[sort_key[-1]].directory not in directories
                    and self._is_startable(sort_key, active_job_ids)
                ),
                None,
            )
            for key_id, waiting in self._waiting_by_key.items()
            if (limit := self._running_limit(key_id)) is None or running[key_id] < limit
        )
        return min((sort_key for sort_key in candidates if sort_key is not None), default=None)

    def _is_startable(self, sort_key: _SortKey, active_job_ids: set[str]) -> bool:
        """Return True if a job needs only a slot to start; the job that it continues must have ended."""
        job = self._waiting[sort_key[-1]].job
        parent = job.parent_job_id if continues_parent(job) else None
        parent_ended = parent is None or (parent not in self._waiting and parent not in active_job_ids)
        return parent_ended and self._can_start(job)

    def _running_by_key(self) -> Counter[str]:
        return Counter(active.claim.job.api_key_id for active in self._running_claims())

    def mark_ending(self, job_id: str) -> None:
        """Count the slot of a claimed job as free from now on; it is claimed again only after `release`."""
        self._ending_slots.update(
            slot for slot, active in self._active_claims.items() if active.claim.job.id == job_id
        )

    @property
    def _active(self) -> int:
        return sum(active.claim.slot not in self._ending_slots for active in self._running_claims())

    def suspend(self, claim: Claim) -> None:
        """Let another job run in place of a claimed one until `resume`; a repeat withdraws a pending `resume`."""
        active = self._find_active(claim)
        if active is None:
            return
        if active in self._resuming:
            self._resuming.remove(active)
        if not active.suspended:
            active.seconds_before = active.run_seconds(self._clock())
            active.suspended = True
        self._wake_claimers()

    def resume(self, claim: Claim) -> bool:
        """Request that a suspended claim runs again, before any waiting job; return True if it runs now."""
        active = self._find_active(claim)
        if active is None or not active.suspended:
            return True
        if active not in self._resuming:
            self._resuming.append(active)
            self._wake_claimers()
        return not active.suspended

    async def wait_until_resumed(self, claim: Claim) -> None:
        """Wait until a claim, for which `resume` was called, runs again."""
        while (active := self._find_active(claim)) is not None and active.suspended:
            await self._changed.wait()

    def _find_active(self, claim: Claim) -> _ActiveClaim | None:
        active = self._active_claims.get(claim.slot)
        return active if active is not None and active.claim is claim else None

    def _resume_claims(self) -> None:
        """Let the claims run again for which there is room, the earliest request first."""
        for active in list(self._resuming):
            if self._is_full():
                return
            key_id = active.claim.job.api_key_id
            limit = self._running_limit(key_id)
            if limit is None or self._running_by_key()[key_id] < limit:
                self._resuming.remove(active)
                active.suspended, active.running_since = False, self._clock()

    async def release(self, claim: Claim) -> None:
        """Release the slot; a repeat is harmless."""
        active = self._find_active(claim)
        if active is None:
            return
        del self._active_claims[claim.slot]
        self._ending_slots.discard(claim.slot)
        if active in self._resuming:
            self._resuming.remove(active)
        self._durations.add(active.run_seconds(self._clock()))
        heapq.heappush(self._free_slots, claim.slot)
        self._wake_claimers()

    async def leave(self, claim: Claim) -> None:
        """Release the slot of a claim whose run goes on without this process."""
        await self.release(claim)

    @property
    def is_shared(self) -> bool:
        """False: the worker fills it anew at each start."""
        return False

    async def recovered(self) -> None:
        """Return: no claim outlives the process."""

    async def repair(self) -> None:
        """Return: a job that is not here is found by the worker."""

    async def cancel(
        self, job_id: str, reason: StopReason = StopReason.CANCEL
    ) -> Literal["withdrawn", "stopping", "unknown"]:
        """Remove a job from the queue, or request its run to stop."""
        if self._remove(job_id) is not None:
            return "withdrawn"
        for active in self._active_claims.values():
            if active.claim.job.id == job_id:
                active.claim.stop.request(reason)
                return "stopping"
        return "unknown"

    async def list_expired(self, now: datetime) -> Sequence[str]:
        """Return the ids of queued jobs that have waited longer than their `expires_in_seconds`, the next first."""
        expired = [each.sort_key for each in self._expiring.values() if _is_expired(each.job, now)]
        return [sort_key[-1] for sort_key in sorted(expired)]

    def holds(self, job_id: str) -> bool:
        """Return True if a job is claimed, waits here, or is being stored by `enqueue`."""
        return (
            job_id in self._waiting
            or job_id in self._new_jobs
            or any(active.claim.job.id == job_id for active in self._active_claims.values())
        )

    def position(self, job_id: str) -> int | None:
        """Return the position of a queued job, 1 for the next one; None if it is not queued."""
        entry = self._waiting.get(job_id)
        if entry is None:
            return None
        return sum(bisect_left(waiting, entry.sort_key) for waiting in self._waiting_by_key.values()) + 1

    def load(self) -> QueueLoad:
        """Return the load; a job that is not stored yet counts as queued."""
        suspended = sum(active.suspended for active in self._active_claims.values())
        return QueueLoad(self._active, len(self._waiting) + len(self._new_jobs), self._capacity, suspended)

    def oldest_queued_at(self) -> datetime | None:
        """Return the time since which the oldest waiting job is queued, or None."""
        return min(
            (entry.job.queued_at or entry.job.created_at for entry in self._waiting.values()), default=None
        )

    def backlog(self, key_id: str) -> KeyBacklog:
        """Return the backlog of a key; the slot of an ending job counts as free."""
        waiting = len(self._waiting_by_key.get(key_id, ())) + self._new_jobs.count(key_id)
        startable = self._capacity - self._active
        limit = self._running_limit(key_id)
        if limit is not None:
            running = (
                active.claim.job.api_key_id == key_id
                for active in self._running_claims()
                if active.claim.slot not in self._ending_slots
            )
            startable = min(startable, limit - sum(running))
        return KeyBacklog(waiting, max(0, startable), self._estimate_retry_after())

    def suspended_elsewhere(self, key_id: str) -> int:  # noqa: ARG002  # of the port
        """Return 0: there is no other node."""
        return 0

    def active_jobs(self) -> Sequence[Job]:
        """Return the claimed jobs, without the suspended ones, as they were when they were claimed."""
        return [active.claim.job for active in self._running_claims()]

    def recheck(self) -> None:
        """Check again which of the waiting jobs may start."""
        self._wake_claimers()

    def set_drained(self, *, drained: bool) -> None:
        """Claim no jobs, or again some: what runs goes on, and new jobs are accepted."""
        self._is_drained = drained
        self._wake_claimers()

    def drain(self, *, accepts_jobs: bool = False) -> None:
        """Claim no more jobs, and accept none unless `accepts_jobs`; waiting jobs stay queued in the store."""
        self._draining = True
        self._accepts_jobs = accepts_jobs

    async def close(self) -> None:
        """Drain, and wait until the store has answered to each new job; cancel what it does not answer in time."""
        self.drain()
        await self._new_jobs.close()

    def stop_all(self, reason: StopReason) -> None:
        """Request every claimed run to stop."""
        for active in self._active_claims.values():
            active.claim.stop.request(reason)

    def _wake_claimers(self) -> None:
        """Wake all that wait, once claims that go on have what is free; each checks again before it waits."""
        self._resume_claims()
        self._changed.set()
        self._changed = asyncio.Event()


def _is_expired(job: Job, now: datetime) -> bool:
    if job.spec.expires_in_seconds is None:
        return False
    return (now - (job.queued_at or job.created_at)).total_seconds() > job.spec.expires_in_seconds
