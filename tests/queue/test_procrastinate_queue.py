"""The contract on the queue of many nodes, with one node."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

import pytest

from steadyhand.ports import Claim
from steadyhand.queue.procrastinate.cluster_queue import ProcrastinateQueue
from steadyhand.store import open_store
from steadyhand.testing.cluster import listening
from steadyhand.testing.contracts.queue import QueueContract, QueueHarness


async def settled(queue: ProcrastinateQueue, claiming: asyncio.Task[Claim]) -> None:
    """Wait until the queue has settled or the claim is done."""
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        settling = group.create_task(queue.settle())
        await asyncio.wait((settling, claiming), return_when=asyncio.FIRST_COMPLETED)
        settling.cancel()


class TestProcrastinateQueue(QueueContract):
    @pytest.fixture(autouse=True)
    def place(self, queue_url: str) -> None:
        self.url = queue_url

    @asynccontextmanager
    async def open(
        self,
        *,
        capacity: int = 1,
        max_queued: int = 100,
        max_suspended: int = 0,
        most_running: Mapping[str, int] | None = None,
        directories: Mapping[str | None, str] | None = None,
    ) -> AsyncIterator[QueueHarness]:
        store = await open_store(self.url)
        limits, directories = most_running or {}, directories or {}

        try:
            async with listening(self.url) as listener:
                queue = ProcrastinateQueue(
                    self.url,
                    store,
                    node="one",
                    capacity=capacity,
                    max_queued=max_queued,
                    listen_to=listener.on,
                    max_suspended=max_suspended,
                    running_limit=limits.get,
                    directory_of=lambda job: directories.get(job.workspace),
                )
                async with queue.opened():
                    yield QueueHarness(queue, store, partial(settled, queue))
        finally:
            await store.close()
