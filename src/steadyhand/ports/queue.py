"""The queue port: the order of jobs, and the slots of those that run."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple, Protocol

from steadyhand.events import EventDraft
from steadyhand.job import Job
from steadyhand.outcome import StopReason
from steadyhand.ports.schedules import TickClaim
from steadyhand.ports.store import AddResult, IdempotencyKey


class StopSignal:
    """A request to one run to stop. The first reason wins; a repeat changes nothing."""

    def __init__(self) -> None:
        self.reason: StopReason | None = None
        self._requested = asyncio.Event()

    def request(self, reason: StopReason) -> None:
        """Request the stop. Call it on the event loop's thread."""
        if self.reason is None:
            self.reason = reason
            self._requested.set()

    async def wait(self) -> StopReason:
        """Wait for a request and return its reason. The caller bounds the wait."""
        await self._requested.wait()
        assert self.reason is not None  # noqa: S101  # set before the event, in the same thread
        return self.reason


@dataclass(frozen=True, slots=True)
class Claim:
    """A claimed job: its slot on this node, counted from 0, and its stop signal.

    A claim keeps its slot until `Queue.release`, also while it is suspended.
    """

    job: Job
    slot: int
    stop: StopSignal


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """The load of the queue: jobs that run, jobs that wait, and the number of slots."""

    active: int
    queued: int
    capacity: int
    suspended: int = 0
    """Claims of jobs that wait for their clients; they are in neither of the others."""

    @property
    def busy(self) -> bool:
        """True if a new job would have to wait."""
        return self.active + self.queued >= self.capacity


@dataclass(frozen=True, slots=True)
class KeyBacklog:
    """The jobs of one key in the queue: those that wait, and how many more could start at once.

    `retry_after` is an estimate of the whole seconds until a running job ends.
    """

    waiting: int
    startable: int
    retry_after: int


class KeyWaitingRuns(NamedTuple):
    """The runs of one key whose processes wait for results of its tools.

    `retry_after` is the whole seconds until the first of these waits ends by itself.
    """

    runs: int
    retry_after: int


class Queue(Protocol):
    """The waiting jobs by priority (higher first), then in the order of acceptance; bounded.

    A key may have a limit on its jobs that run at once. Its other jobs wait and do not block those of other keys.
    Of the jobs that need one directory for themselves one is claimed; the others wait and do not block either.
    """

    async def enqueue(
        self,
        job: Job,
        drafts: Sequence[EventDraft],
        idempotency: IdempotencyKey | None = None,
        *,
        claim: TickClaim | None = None,
    ) -> AddResult:
        """Store a new job and enqueue it in one commit, or raise `RetryLater` (`queue_full`, `draining`).

        With a `claim` of a tick, raise `Conflict` (`tick_taken`) as `Store.add` does.

        A replayed job (see `Store.add`) is not enqueued again and is never refused because the queue is full.
        """
        ...

    async def requeue(self, job: Job, *, goes_on: bool = False) -> None:
        """Enqueue a stored job that became `queued` again, or was `queued` when the node stopped.

        A job that goes on, because its client has sent what it waited for, comes before all others.
        """
        ...

    async def claim(self) -> Claim:
        """Wait for the next job and a free slot, and return a claim of both. Claim nothing while draining."""
        ...

    def adopt(self, job: Job, slot: int | None) -> Claim | None:
        """Claim a stored job that runs already, in the slot that it has; None if it is not free.

        Without a `slot` any free one is taken.
        """
        ...

    def suspend(self, claim: Claim) -> None:
        """Let another job run in place of a claimed one, which waits for its client and keeps its slot number.

        The claim counts neither as running nor against the limit of its key. After `resume` it withdraws the request.
        The caller bounds the number of suspended claims.
        """
        ...

    def resume(self, claim: Claim) -> bool:
        """Request that a suspended claim runs again; return True if it runs now.

        Such claims come before the waiting jobs, in the order of their requests, also while draining.
        """
        ...

    async def wait_until_resumed(self, claim: Claim) -> None:
        """Wait until a claim runs again, after `resume`."""
        ...

    def mark_ending(self, job_id: str) -> None:
        """Count the slot of a claimed job as free, since its end is about to be published; `release` frees it.

        A caller that reads of the end and at once submits a job must not be refused because the queue is full.
        """
        ...

    async def release(self, claim: Claim) -> None:
        """Release the slot of a claim."""
        ...

    async def leave(self, claim: Claim) -> None:
        """Release the slot of a claim whose run goes on without this process, for the next start of this node."""
        ...

    @property
    def is_shared(self) -> bool:
        """True if other nodes take jobs from the same queue. Then it holds each queued job over a stop of this one."""
        ...

    async def recovered(self) -> None:
        """End the claims that this node had before its start and has not adopted; their runs are ended by now."""
        ...

    async def repair(self) -> None:
        """Enqueue the jobs that are stored as queued and that a shared queue has lost."""
        ...

    async def cancel(
        self, job_id: str, reason: StopReason = StopReason.CANCEL
    ) -> Literal["withdrawn", "stopping", "unknown"]:
        """Remove a job from the queue, or request its run to stop; return `unknown` if it is not here."""
        ...

    async def list_expired(self, now: datetime) -> Sequence[str]:
        """Return the ids of queued jobs that have waited longer than their `expires_in_seconds`."""
        ...

    def holds(self, job_id: str) -> bool:
        """Return True if a job is claimed, waits here, or is being stored by `enqueue`."""
        ...

    def position(self, job_id: str) -> int | None:
        """Return the position of a queued job, 1 for the next one; None if it is not queued here."""
        ...

    def load(self) -> QueueLoad:
        """Return the load of the queue."""
        ...

    def oldest_queued_at(self) -> datetime | None:
        """Return the time since which the oldest waiting job is queued, or None."""
        ...

    def backlog(self, key_id: str) -> KeyBacklog:
        """Return the backlog of a key; a job that is not stored yet counts as waiting."""
        ...

    def suspended_elsewhere(self, key_id: str) -> int:
        """Return the number of a key's claims on other nodes that are suspended."""
        ...

    def active_jobs(self) -> Sequence[Job]:
        """Return the jobs claimed on this node, without the suspended ones, as they were when they were claimed."""
        ...

    def recheck(self) -> None:
        """Check again which of the waiting jobs may start, after an obstacle is gone."""
        ...

    def drain(self, *, accepts_jobs: bool = False) -> None:
        """Claim no more jobs, and accept none unless another service is about to go on with them."""
        ...

    async def close(self) -> None:
        """Drain, and wait for a bounded time until each new job is stored or refused, also if its caller is gone."""
        ...

    def stop_all(self, reason: StopReason) -> None:
        """Request every claimed run to stop."""
        ...
