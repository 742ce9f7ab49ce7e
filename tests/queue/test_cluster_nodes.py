"""The nodes on one Postgres: what they tell of themselves, labels, drain, and what `doctor` says of them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import psycopg
import pytest

from steadyhand.job import Job
from steadyhand.placement import combine
from steadyhand.ports import Claim
from steadyhand.ports.nodes import NodeCounts, NodeFigures, NodeInfo, Nodes, describe_obstacle
from steadyhand.queue.procrastinate.cluster_queue import ProcrastinateQueue
from steadyhand.queue.procrastinate.doctor import check_nodes
from steadyhand.queue.procrastinate.keeper import LeaseTiming
from steadyhand.store import SqlStore, open_store
from steadyhand.store.postgres.listener import Listener
from steadyhand.testing.cluster import listening
from steadyhand.testing.contracts.nodes import INFO, NodesContract
from steadyhand.testing.contracts.samples import accepted_draft, async_test, make_job

QUICK = LeaseTiming(write=0.2)
SHORT = LeaseTiming(write=0.3, cut_off=2.5, dead=4.0)


@dataclass(frozen=True, slots=True)
class Database:
    """A database as the nodes of one process share it."""

    url: str
    store: SqlStore
    listener: Listener


@asynccontextmanager
async def database(url: str) -> AsyncIterator[Database]:
    store = await open_store(url)
    try:
        async with listening(url) as listener:
            yield Database(url, store, listener)
    finally:
        await store.close()


def create_queue(
    database: Database,
    node: str,
    *labels: str,
    capacity: int = 1,
    info: NodeInfo | None = None,
    timing: LeaseTiming = QUICK,
) -> ProcrastinateQueue:
    return ProcrastinateQueue(
        database.url,
        database.store,
        node=node,
        capacity=capacity,
        max_queued=100,
        listen_to=database.listener.on,
        info=info or NodeInfo(node, labels=labels, slots=capacity),
        get_figures=lambda: NodeFigures(2, 1, 0.5, 3),
        placement_of=lambda job: combine((job.spec.labels, job.spec.not_on_nodes)),
        timing=timing,
    )


async def becomes(is_true: Callable[[], object]) -> None:
    """Wait until something is seen."""
    async with asyncio.timeout(30):
        while not is_true():  # noqa: ASYNC110  # it is looked at from outside
            await asyncio.sleep(0.01)


class TestClusterNodes(NodesContract):
    @pytest.fixture(autouse=True)
    def place(self, queue_url: str) -> None:
        self.url = queue_url

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Nodes]:
        async with database(self.url) as shared:
            queue = create_queue(shared, INFO.name, info=INFO, capacity=INFO.slots)
            async with queue.opened():
                await becomes(lambda: queue.nodes.counts() != NodeCounts(0))
                yield queue.nodes

    @asynccontextmanager
    async def cluster(self, *queues: tuple[str, ...]) -> AsyncIterator[list[ProcrastinateQueue]]:
        """Yield the queues of nodes, each with its name and its labels."""
        async with database(self.url) as self.shared:
            made = [create_queue(self.shared, *names) for names in queues]
            async with opened(made):
                yield made

    @async_test
    async def test_the_heartbeat_carries_the_figures_of_the_node(self) -> None:
        async with self.open() as nodes:
            (found,) = await nodes.list_nodes()
            assert found.figures == NodeFigures(2, 1, 0.5, 3)

    @async_test
    async def test_a_job_runs_on_the_node_that_has_its_labels_and_others_pass_it(self) -> None:
        async with self.cluster(("plain",), ("large", "gpu", "zone=a")) as (plain, large):
            asking = (await plain.enqueue(with_labels("gpu", "zone=a"), accepted_draft())).job
            other = (await plain.enqueue(make_job(), accepted_draft())).job
            assert (await claimed(plain)).job == other, "it does not wait behind one that fits elsewhere"
            assert plain.position(asking.id) == 1
            claim = await claimed(large)
            assert claim.job.id == asking.id
            assert claim.job.spec.labels == ("gpu", "zone=a")

    @async_test
    async def test_a_job_without_demands_takes_the_node_with_fewer_labels(self) -> None:
        async with (
            self.cluster(("a-large", "gpu"), ("z-plain",)) as (large, plain),
            asyncio.TaskGroup() as group,
        ):
            on_large, on_plain = group.create_task(claimed(large)), group.create_task(claimed(plain))
            await becomes(lambda: large._claimers and plain._claimers)
            await large.settle()
            await plain.settle()
            first = (await large.enqueue(make_job(), accepted_draft())).job
            await becomes(on_plain.done)
            assert on_plain.result().job == first
            assert not on_large.done()
            await large.enqueue(make_job(), accepted_draft())

    @async_test
    async def test_a_job_does_not_run_on_a_node_that_it_excludes(self) -> None:
        async with self.cluster(("one",), ("two",)) as (one, two):
            job = (await one.enqueue(not_on("one"), accepted_draft())).job
            async with asyncio.TaskGroup() as group:
                there = group.create_task(claimed(one))
                claim = await claimed(two)
                assert claim.job == job
                assert not there.done()
                await two.enqueue(make_job(), accepted_draft())

    @async_test
    async def test_a_job_that_no_node_can_take_says_so_and_runs_as_soon_as_one_comes(self) -> None:
        async with self.cluster(("one",)) as (one,):
            job = (await one.enqueue(with_labels("gpu"), accepted_draft())).job
            placement = combine((job.spec.labels, ()))
            obstacle = describe_obstacle(placement, await one.nodes.list_nodes())
            assert obstacle is not None
            assert (obstacle.code, obstacle.detail) == (
                "no_node",
                "It needs a node with the label gpu, and no living node is one.",
            )
            (waiting,) = [each for each in await check_nodes(self.url, INFO) if each.name == "waiting jobs"]
            assert f"1 job waits that no living node can take: {job.id}" in waiting.detail
            late = create_queue(self.shared, "late", "gpu")
            async with opened([late]):
                assert (await claimed(late)).job == job
                assert describe_obstacle(placement, await late.nodes.list_nodes()) is None
                assert not [each for each in await check_nodes(self.url, INFO) if each.name == "waiting jobs"]

    @async_test
    async def test_a_drained_node_ends_what_it_runs_and_others_take_what_was_chosen_for_it(self) -> None:
        async with self.cluster(("one",), ("two",)) as (one, two):
            held = (await one.enqueue(make_job(), accepted_draft())).job
            claim = await claimed(one)
            assert claim.job == held
            node = await two.nodes.drain("one", until_restart=False, by="k_admin")
            assert node.drained is not None
            following = (await one.enqueue(make_job(), accepted_draft())).job
            await one.release(claim)
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(claimed(one))
                assert (await claimed(two)).job == following
                last = (await one.enqueue(make_job(), accepted_draft())).job
                await one.settle()
                assert not waiting.done()
                await becomes(lambda: one.nodes.counts().is_drained)
                await becomes(lambda: two.nodes.counts() == NodeCounts(1, 0, 1))  # its heartbeat is its own
                await one.nodes.undrain("one")
            assert waiting.result().job == last

    @async_test
    async def test_a_node_that_stopped_while_it_was_drained_is_listed_as_away_and_can_be_undrained(
        self,
    ) -> None:
        async with self.cluster(("one",)) as (one,):
            async with self.beside("two") as two:
                await two.nodes.drain("two", until_restart=False, by="k_admin")
            away = next(each for each in await one.nodes._read() if each.info.name == "two")
            assert away.heartbeat_seconds is None
            assert away.drained is not None
            assert (await one.nodes.undrain("two")).drained is None
            assert [each.info.name for each in await one.nodes._read()] == ["one"]

    @async_test
    async def test_a_silent_node_is_listed_with_its_age_counted_and_named_by_the_doctor(self) -> None:
        async with database(self.url) as shared:
            silent = create_queue(shared, "silent", timing=SHORT)
            judge = create_queue(shared, "judge", timing=SHORT)
            async with opened([silent, judge]):
                silent._keeper.stop_writing()
                await becomes(lambda: judge.nodes.counts().silent == 1)
                async with await psycopg.AsyncConnection.connect(self.url) as connection:
                    await connection.execute(
                        "UPDATE queue_nodes SET lease_at = now() - interval '2 hours' WHERE node = 'silent'"
                    )
                found = {each.info.name: each for each in await judge.nodes._read()}
                assert not found["silent"].is_alive
                assert (found["silent"].heartbeat_seconds or 0) >= 7_200
                assert judge.nodes.counts() == NodeCounts(1, 1, 0)
                checks = {each.name: each for each in await check_nodes(self.url, NodeInfo("judge"))}
                assert checks["silent nodes"].detail == "silent (silent for 2 h 0 min)"
                assert checks["nodes"].detail == "1 alive: judge"

    @async_test
    async def test_the_doctor_names_other_versions_equal_names_and_drained_nodes(self) -> None:
        async with self.open() as nodes:
            mine = NodeInfo("one", version="2.0.0", schema="0012", host="machine-2")
            checks = {each.name: each for each in await check_nodes(self.url, mine)}
            assert not checks["node name"].ok
            assert "machine-1 has the name one" in checks["node name"].detail
            assert checks["node versions"].detail == (
                "not of this version, 2.0.0 with schema 0012: one (1.2.3 with schema 0011)"
            )
            await nodes.drain("one", until_restart=False, by="k_admin")
            same = {each.name: each for each in await check_nodes(self.url, replace(INFO))}
            assert sorted(same) == ["drained nodes", "nodes"]

    @async_test
    async def test_tables_of_an_earlier_version_get_the_new_columns_while_its_node_works(self) -> None:
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            await connection.execute(
                "ALTER TABLE queue_places DROP COLUMN labels, DROP COLUMN not_on_nodes;"
                "ALTER TABLE queue_nodes DROP COLUMN labels, DROP COLUMN lost_at, DROP COLUMN version"
            )
        async with self.cluster(("one", "gpu")) as (one,):
            job = (await one.enqueue(with_labels("gpu"), accepted_draft())).job
            assert (await claimed(one)).job == job

    @asynccontextmanager
    async def beside(self, name: str) -> AsyncIterator[ProcrastinateQueue]:
        queue = create_queue(self.shared, name)
        async with opened([queue]):
            yield queue


@asynccontextmanager
async def opened(queues: Sequence[ProcrastinateQueue]) -> AsyncIterator[None]:
    """Open queues, and wait until each has written its labels."""
    if not queues:
        yield
        return
    async with queues[0].opened(), opened(queues[1:]):
        yield


async def claimed(queue: ProcrastinateQueue) -> Claim:
    async with asyncio.timeout(30):
        return await queue.claim()


def with_labels(*labels: str) -> Job:
    return make_job(labels=labels)


def not_on(*nodes: str) -> Job:
    return make_job(not_on_nodes=nodes)
