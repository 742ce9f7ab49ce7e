"""Jobs that are queued again, on several nodes: they count against the limit of their key as new ones do."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import psycopg
from tests.async_tests import in_loop

from steadyhand.clock import utc_now
from steadyhand.errors import RetryLater
from steadyhand.job import ENDED, Job, State
from steadyhand.queue.procrastinate.cluster_queue import ProcrastinateQueue
from steadyhand.retry import requeued
from steadyhand.store import SqlStore, open_store
from steadyhand.testing.cluster import listening
from steadyhand.testing.contracts.samples import accepted_draft, expect_error, make_job


@dataclass(frozen=True, slots=True)
class Node:
    """The store and the queue of a node."""

    store: SqlStore
    queue: ProcrastinateQueue

    async def queue_again(self, job: Job, *, as_new: bool = True) -> Job:
        """Do the first half of a retry: the place of the job follows with `ProcrastinateQueue.requeue`."""
        changed, _ = await self.store.update_job(
            job.id, ENDED, lambda old: requeued(old, "fresh", utc_now()), as_new=as_new
        )
        return changed

    async def end(self, job: Job) -> None:
        """Store the end of a job; its place stays."""
        await self.store.update_job(job.id, frozenset(State), _ended)


def _ended(job: Job) -> Job:
    return replace(job, state=State.FAILED, finished_at=utc_now())


@asynccontextmanager
async def opened(url: str, *names: str, queued: int, capacity: int = 0) -> AsyncIterator[list[Node]]:
    """Run nodes, on which the key `k_one` may have so many `queued` jobs."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute("DELETE FROM queue_nodes")  # that of the template may look alive
    async with AsyncExitStack() as stack:
        listener = await stack.enter_async_context(listening(url))
        nodes = []
        for name in names:
            store = await open_store(url, node=name)
            stack.push_async_callback(store.close)
            queue = ProcrastinateQueue(
                url,
                store,
                node=name,
                capacity=capacity,
                max_queued=100,
                listen_to=listener.on,
                queued_limit={"k_one": queued}.get,
            )
            await stack.enter_async_context(queue.opened())
            nodes.append(Node(store, queue))
        yield nodes


async def add_ended(url: str, count: int) -> Sequence[Job]:
    """Store jobs that have ended, without places."""
    store = await open_store(url)
    try:
        jobs = [make_job(state=State.FAILED, finished_at=utc_now()) for _ in range(count)]
        return [(await store.add(job, accepted_draft())).job for job in jobs]
    finally:
        await store.close()


@in_loop
async def test_of_jobs_that_are_queued_again_at_once_no_more_wait_than_their_key_may(queue_url: str) -> None:
    jobs = await add_ended(queue_url, 8)
    async with opened(queue_url, "one", "two", queued=2) as nodes:
        one = nodes[0]
        attempts = (nodes[at % 2].queue_again(job) for at, job in enumerate(jobs[:-1]))
        answers = await asyncio.gather(*attempts, return_exceptions=True)
        accepted = [each for each in answers if isinstance(each, Job)]
        refused = [each for each in answers if isinstance(each, RetryLater)]
        assert (len(accepted), len(refused)) == (2, 5)
        assert {each.code for each in refused} == {"too_many_jobs"}
        # They count before they have places, with them, and until they are gone.
        await expect_error(RetryLater, one.queue.enqueue(make_job(), accepted_draft()))
        for job in accepted:
            await one.queue.requeue(job)
        await expect_error(RetryLater, one.queue_again(jobs[-1]))
        await expect_error(RetryLater, nodes[1].queue.enqueue(make_job(), accepted_draft()))
        await one.queue.enqueue(make_job(api_key_id="k_two"), accepted_draft())
        assert await one.queue.cancel(accepted[0].id) != "unknown"
        await one.end(accepted[0])
        assert (await nodes[1].queue_again(jobs[-1])).state is State.QUEUED


@in_loop
async def test_what_the_service_itself_queues_again_is_never_refused(queue_url: str) -> None:
    first, second = await add_ended(queue_url, 2)
    async with opened(queue_url, "one", queued=1) as (one,):
        await one.queue_again(first)
        await expect_error(RetryLater, one.queue_again(second))
        assert (await one.queue_again(second, as_new=False)).state is State.QUEUED


@in_loop
async def test_a_job_counts_though_the_slot_of_its_earlier_run_is_not_free_yet(queue_url: str) -> None:
    (other,) = await add_ended(queue_url, 1)
    async with opened(queue_url, "one", queued=1, capacity=1) as (one,):
        job = (await one.queue.enqueue(make_job(), accepted_draft())).job
        async with asyncio.timeout(20):
            claim = await one.queue.claim()
        await one.end(job)
        await one.queue_again(job)
        await expect_error(RetryLater, one.queue_again(other))
        await one.queue.release(claim)
