"""The queue: who runs next, and what holds a slot."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from steadyhand.events import EventDraft
from steadyhand.job import Job
from steadyhand.outcome import StopReason
from steadyhand.ports.store import AddResult, IdempotencyKey


class StopSignal:
    """Asks one run to stop. The first reason wins; asking again changes nothing."""

    def __init__(self) -> None:
        self.reason: StopReason | None = None
        self._requested = asyncio.Event()

    def request(self, reason: StopReason) -> None:
        """Ask. Call from the event loop's own thread."""
        if self.reason is None:
            self.reason = reason
            self._requested.set()

    async def wait(self) -> StopReason:
        """Wait until somebody asks; the caller bounds the wait."""
        await self._requested.wait()
        assert self.reason is not None  # noqa: S101  # set before the event, in the same thread
        return self.reason


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that a worker holds: its slot on this node, counted from 0, and how it is asked to stop."""

    job: Job
    slot: int
    stop: StopSignal


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """How full the queue is. `busy` is true when a new job would not start at once."""

    active: int
    queued: int
    capacity: int

    @property
    def busy(self) -> bool:
        """Whether a new job would have to wait."""
        return self.active + self.queued >= self.capacity


@dataclass(frozen=True, slots=True)
class KeyBacklog:
    """What one key has in the queue: jobs that do not run yet, and how many more of it could start at once.

    `retry_after` guesses when a running job ends, in whole seconds.
    """

    waiting: int
    startable: int
    retry_after: int


class Queue(Protocol):
    """Who runs next: by priority (higher first), then in the order of acceptance; bounded.

    A key may have a limit on the jobs of it that run at once: the others of it wait and hold up nobody else's.
    """

    async def enqueue(
        self, job: Job, drafts: Sequence[EventDraft], idempotency: IdempotencyKey | None = None
    ) -> AddResult:
        """Store a new job and enqueue it in one commit, or raise `TryLater` (`queue_full`, `draining`).

        A replayed job (see `Store.add`) is not enqueued again and is never refused for want of room.
        """
        ...

    async def requeue(self, job: Job) -> None:
        """Enqueue a stored job that became `queued` again, or was so when the node stopped."""
        ...

    async def claim(self) -> Claim:
        """Wait for the next job and a free slot, and take both. Nothing is claimed while draining."""
        ...

    def mark_ending(self, job_id: str) -> None:
        """Say that a held job's end is about to be told: its slot counts as free, and is claimed after `done`.

        Who reads of the end and at once asks for the next job must not hear that there is no room.
        """
        ...

    async def release(self, claim: Claim) -> None:
        """Give the slot back."""
        ...

    async def cancel(
        self, job_id: str, reason: StopReason = StopReason.CANCEL
    ) -> Literal["withdrawn", "stopping", "unknown"]:
        """Take a job out of the queue, or ask its run to stop; `unknown` when it is neither here."""
        ...

    async def list_expired(self, now: datetime) -> Sequence[str]:
        """Give ids of queued jobs that have waited longer than their `expires_in_seconds`."""
        ...

    def position(self, job_id: str) -> int | None:
        """Give a queued job's place, 1 being next; null when it is not queued here."""
        ...

    def load(self) -> QueueLoad:
        """Say how full it is."""
        ...

    def backlog(self, key_id: str) -> KeyBacklog:
        """Say what a key has in it; what is on its way into the store counts as waiting."""
        ...

    def recheck(self) -> None:
        """Ask anew which of the waiting jobs may start: what stood in their way may be gone."""
        ...

    def drain(self) -> None:
        """Admit and claim nothing more."""
        ...

    def stop_all(self, reason: StopReason) -> None:
        """Ask every run that is held here to stop."""
        ...
