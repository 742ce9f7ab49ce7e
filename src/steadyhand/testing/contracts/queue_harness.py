"""The harness of the queue's tests: a queue with the store under it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from steadyhand.errors import RetryLater
from steadyhand.job import Job
from steadyhand.ports import AddResult, Claim, IdempotencyKey, JobFilter, Queue, Store
from steadyhand.testing.contracts.samples import accepted_draft, expect_error, make_job


async def wait_a_hundred_turns(_: "asyncio.Task[Claim]") -> None:
    """Wait until a queue in memory has done what it can for a claim."""
    for _turn in range(100):
        await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class QueueHarness:
    """A queue and the store under it.

    `settle` waits until the queue has done all that it can for a claim that waits, or the claim is done.
    """

    queue: Queue
    store: Store
    settle: Callable[["asyncio.Task[Claim]"], Awaitable[None]] = wait_a_hundred_turns

    async def enqueue_job(self, idempotency: IdempotencyKey | None = None, **fields: object) -> Job:
        """Admit a job with these fields."""
        return (await self.enqueue(idempotency, **fields)).job

    async def enqueue(self, idempotency: IdempotencyKey | None = None, **fields: object) -> AddResult:
        """Admit a job with these fields and return the whole answer."""
        return await self.queue.enqueue(make_job(**fields), accepted_draft(), idempotency)

    async def refusal(self, idempotency: IdempotencyKey | None = None) -> RetryLater:
        """Return the error with which no job is admitted, and check that none was stored."""
        before = await self.stored()
        error = await expect_error(RetryLater, self.enqueue_job(idempotency))
        assert await self.stored() == before
        return error

    async def stored(self) -> int:
        """Count the jobs in the store, up to 200."""
        return len((await self.store.list_jobs(JobFilter(), 200)).jobs)

    async def claim(self) -> Claim:
        """Claim what must be there."""
        async with asyncio.timeout(20):
            return await self.queue.claim()

    async def has_nothing_to_claim(self) -> bool:
        """Return True if a claim has to wait, also after the queue has settled."""
        async with asyncio.TaskGroup() as group:
            claiming = group.create_task(self.queue.claim())
            await asyncio.sleep(0)
            await self.settle(claiming)
            blocked = not claiming.done()
            claiming.cancel()
        return blocked


class QueueFactory:
    """Opens the queue under test; the tests of each adapter subclass it."""

    def open(
        self,
        *,
        capacity: int = 1,
        max_queued: int = 100,
        max_suspended: int = 0,
        most_running: Mapping[str, int] | None = None,
        directories: Mapping[str | None, str] | None = None,
    ) -> AbstractAsyncContextManager[QueueHarness]:
        """Open an empty queue for one test, closed at its end.

        `most_running` are limits by key, `directories` those in which one job of a workspace works at a time.
        """
        raise NotImplementedError
