"""The nodes of a service on SQLite: itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from steadyhand.clock import utc_now
from steadyhand.ports.nodes import NodeFigures, Nodes
from steadyhand.queue.local import LocalQueue
from steadyhand.queue.local_nodes import LocalNodes
from steadyhand.store import SqlStore, open_store
from steadyhand.testing.contracts.nodes import INFO, NodesContract
from steadyhand.testing.contracts.samples import accepted_draft, async_test, make_job


class TestLocalNodes(NodesContract):
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "jobs.db"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Nodes]:
        async with self.opened() as (nodes, _):
            yield nodes

    @asynccontextmanager
    async def opened(self, *, paused: bool = False) -> AsyncIterator[tuple[LocalNodes, LocalQueue]]:
        store: SqlStore = await open_store(f"sqlite:///{self.path}")
        try:
            queue = LocalQueue(store, capacity=INFO.slots, max_queued=9, paused=paused)
            nodes = LocalNodes(
                INFO,
                store.drained_nodes,
                set_drained=lambda drained: queue.set_drained(drained=drained),
                get_figures=lambda: NodeFigures(running=len(queue.active_jobs())),
                clock=utc_now,
            )
            await nodes.load()
            yield nodes, queue
        finally:
            await store.close()

    @async_test
    async def test_a_drained_node_accepts_jobs_keeps_what_runs_and_claims_again_once_it_is_undrained(
        self,
    ) -> None:
        async with self.opened() as (nodes, queue):
            first = (await queue.enqueue(make_job(), accepted_draft())).job
            claim = await queue.claim()
            assert claim.job == first
            async with asyncio.TaskGroup() as group:
                claiming = group.create_task(queue.claim())
                await nodes.drain("one", until_restart=False, by="k_admin")
                second = (await queue.enqueue(make_job(), accepted_draft())).job
                for _ in range(20):
                    await asyncio.sleep(0)
                assert not claiming.done()
                assert (await nodes.list_nodes())[0].figures.running == 1
                assert claim.stop.reason is None
                await nodes.undrain("one")
            assert claiming.result().job == second

    @async_test
    async def test_a_node_that_was_drained_before_its_start_claims_nothing(self) -> None:
        async with self.opened() as (nodes, _):
            await nodes.drain("one", until_restart=False, by="k_admin")
        async with self.opened() as (_, queue):
            await queue.enqueue(make_job(), accepted_draft())
            assert queue._try_claim() is None

    @async_test
    async def test_undraining_does_not_start_jobs_of_a_paused_service(self) -> None:
        async with self.opened(paused=True) as (nodes, queue):
            await queue.enqueue(make_job(), accepted_draft())
            await nodes.drain("one", until_restart=False, by="k_admin")
            await nodes.undrain("one")
            assert queue._try_claim() is None
