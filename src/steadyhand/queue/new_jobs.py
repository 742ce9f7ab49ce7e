"""The way of a new job into a queue: its refusal, or its place while the store has not answered yet."""

import asyncio
import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

from steadyhand.errors import RetryLater
from steadyhand.events import EventDraft
from steadyhand.job import Job
from steadyhand.ports import AddResult, IdempotencyKey
from steadyhand.ports.schedules import TickClaim

RETRY_AFTER_RANGE = (1, 600)
"""The minimum and the maximum of `Retry-After`, in seconds."""

CLOSE_SECONDS = 30.0
"""The time for the store to answer to the last new jobs when the service stops."""

_DEFAULT_RUN_SECONDS = 30.0
_DURATION_SAMPLES = 32


class NewJobStore(Protocol):
    """The part of `ports.Store` that new jobs need."""

    def add(
        self,
        job: Job,
        drafts: Sequence[EventDraft],
        idempotency: IdempotencyKey | None = None,
        *,
        claim: TickClaim | None = None,
    ) -> Awaitable[AddResult]:
        """Store a new job with its first events."""
        ...

    async def get_replayed(self, api_key_id: str, idempotency: IdempotencyKey) -> Job | None:
        """Return the job of an earlier request with this idempotency key, or None."""
        ...


class NewJobs:
    """The new jobs that the store has not answered to. `on_stored` is called with each one that it has stored."""

    def __init__(self, store: NewJobStore, on_stored: Callable[[Job], None]) -> None:
        self._store = store
        self._on_stored = on_stored
        self._by_key: Counter[str] = Counter()
        self._additions: dict[str, asyncio.Future[AddResult]] = {}

    def __len__(self) -> int:
        """Return the number of these jobs."""
        return len(self._additions)

    def __contains__(self, job_id: str) -> bool:
        """Return True if the store has not answered to this job."""
        return job_id in self._additions

    def count(self, key_id: str) -> int:
        """Return the number of these jobs that are of one key."""
        return self._by_key[key_id]

    async def add(
        self,
        job: Job,
        drafts: Sequence[EventDraft],
        idempotency: IdempotencyKey | None,
        claim: TickClaim | None,
        refusal: RetryLater | None,
    ) -> AddResult:
        """Store a new job, or raise the refusal. A replayed job (see `Store.add`) is never refused."""
        if refusal is not None:
            # Even if the queue is full, a repeated request returns the job of the first one.
            replayed = None
            if idempotency is not None:
                replayed = await self._store.get_replayed(job.api_key_id, idempotency)
            if replayed is None:
                raise refusal
            return AddResult(replayed, replayed=True)
        # The store's own future: `close` waits for it.
        addition = asyncio.ensure_future(self._store.add(job, drafts, idempotency, claim=claim))
        self._by_key[job.api_key_id] += 1  # reserves the place until the store has answered
        self._additions[job.id] = addition
        # A callback, since the caller may be cancelled by then: a stored job must be queued.
        addition.add_done_callback(partial(self._on_answer, job.api_key_id, job.id))
        return await asyncio.shield(addition)

    def _on_answer(self, key_id: str, job_id: str, addition: asyncio.Future[AddResult]) -> None:
        self._additions.pop(job_id, None)
        self._by_key[key_id] -= 1
        if not self._by_key[key_id]:
            del self._by_key[key_id]
        if not (addition.cancelled() or addition.exception() or addition.result().replayed):
            self._on_stored(addition.result().job)

    async def close(self) -> None:
        """Wait until the store has answered to each job; cancel what it does not answer in time."""
        if self._additions:
            _, unanswered = await asyncio.wait(self._additions.values(), timeout=CLOSE_SECONDS)
            for addition in unanswered:
                addition.cancel()
            if unanswered:
                await asyncio.wait(unanswered)


class RunDurations:
    """The durations of the last runs, in seconds."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_DURATION_SAMPLES)

    def add(self, seconds: float) -> None:
        """Count a run that has ended."""
        self._seconds.append(seconds)

    def estimate_retry_after(self, oldest: float) -> int:
        """Return an estimate of the seconds until a job ends: the mean of recent runs less the oldest run's time."""
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else _DEFAULT_RUN_SECONDS
        minimum, maximum = RETRY_AFTER_RANGE
        return max(minimum, min(maximum, math.ceil(mean - oldest)))


def draining_refusal() -> RetryLater:
    """Return the refusal of a new job by a service that stops."""
    return RetryLater("The service is shutting down. Try again soon.", code="draining", retry_after=10)


def full_refusal(*, capacity: int, max_queued: int, retry_after: int) -> RetryLater:
    """Return the refusal of a new job by a full queue."""
    reason = f"The queue is full ({_count_jobs(max_queued)})"
    if max_queued == 0:
        reason = f"Every slot is taken ({_count_jobs(capacity)})"
    return RetryLater(f"{reason}. Try again in {retry_after} s.", retry_after=retry_after)


def _count_jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
