"""Several nodes on one Postgres: what one of them does, the others see; what a dead one held becomes free."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import psycopg
import pytest

from steadyhand.errors import RetryLater, StoreError
from steadyhand.job import Job, Run, State
from steadyhand.outcome import StopReason
from steadyhand.ports import AddResult, Claim, IdempotencyKey, JobFilter
from steadyhand.queue.procrastinate.cluster_queue import ProcrastinateQueue
from steadyhand.queue.procrastinate.engine import Connection
from steadyhand.queue.procrastinate.keeper import LeaseTiming
from steadyhand.queue.procrastinate.places import PlacesTransaction
from steadyhand.store import SqlStore, open_store
from steadyhand.store.postgres.listener import Listener
from steadyhand.testing.cluster import listening
from steadyhand.testing.contracts.samples import accepted_draft, async_test, expect_error, make_job
from steadyhand.testing.postgres import Postgres

SHORT = LeaseTiming(write=0.3, cut_off=2.5, dead=4.0)
PATIENT = LeaseTiming(write=0.3, cut_off=4.0, dead=6.0)
"""For nodes that stay alive: a busy machine must not cut one off."""


@dataclass(slots=True)
class Cluster:
    """Queues by the names of their nodes, over one store."""

    url: str
    store: SqlStore
    listener: Listener
    limits: Mapping[str, int] = field(default_factory=dict)
    queued_limits: Mapping[str, int] = field(default_factory=dict)
    max_queued: int = 100
    lost: list[tuple[str, int]] = field(default_factory=list)
    """The jobs whose nodes died, each with the number of its newest run then."""

    def queue(self, node: str, *, capacity: int = 1, timing: LeaseTiming | None = None) -> ProcrastinateQueue:
        async def on_lost(job_id: str, job_run: int) -> None:
            self.lost.append((job_id, job_run))

        return ProcrastinateQueue(
            self.url,
            self.store,
            node=node,
            capacity=capacity,
            max_queued=self.max_queued,
            listen_to=self.listener.on,
            max_suspended=2,
            running_limit=self.limits.get,
            queued_limit=self.queued_limits.get,
            timing=timing or LeaseTiming(),
            on_lost=on_lost,
        )

    @asynccontextmanager
    async def nodes(self, *names: str, capacity: int = 1) -> AsyncIterator[list[ProcrastinateQueue]]:
        async with AsyncExitStack() as stack:
            queues = [self.queue(name, capacity=capacity) for name in names]
            for each in queues:
                await stack.enter_async_context(each.opened())
            yield queues


async def claimed(queue: ProcrastinateQueue) -> Claim:
    async with asyncio.timeout(20):
        return await queue.claim()


async def claimed_after(queue: ProcrastinateQueue, added: AddResult) -> Claim:
    """Claim the job that was just added."""
    assert queue.position(added.job.id) == 1
    return await claimed(queue)


def begun(job: Job) -> Job:
    """Return a job whose first run has begun."""
    return replace(job, state=State.RUNNING, runs=(Run(1, State.RUNNING),))


async def becomes(is_true: Callable[[], bool]) -> None:
    """Wait until something is seen on a node."""
    async with asyncio.timeout(20):
        while not is_true():  # noqa: ASYNC110  # it is looked at from outside
            await asyncio.sleep(0.01)


class TestManyNodes:
    @pytest.fixture(autouse=True)
    def place(self, queue_url: str) -> None:
        self.url = queue_url

    @asynccontextmanager
    async def cluster(self, **limits: int) -> AsyncIterator[Cluster]:
        store = await open_store(self.url)
        try:
            async with listening(self.url) as listener:
                yield Cluster(self.url, store, listener, limits)
        finally:
            await store.close()

    @async_test
    async def test_a_job_that_one_node_accepts_runs_on_another_one_that_has_a_slot(self) -> None:
        async with self.cluster() as cluster, cluster.nodes("one", "two") as (one, two):
            async with asyncio.TaskGroup() as group:
                claiming = group.create_task(claimed(two))
                job = (await one.enqueue(make_job(), accepted_draft())).job
            assert claiming.result().job == job
            await becomes(lambda: one.load().active == 1)
            assert (one.load().queued, one.position(job.id), one.holds(job.id)) == (0, None, True)
            await two.release(claiming.result())
            await becomes(lambda: not one.holds(job.id))

    @async_test
    async def test_a_key_has_no_more_waiting_jobs_than_it_may_however_many_come_at_once(self) -> None:
        async with self.cluster() as cluster:
            cluster.queued_limits = {"k_one": 1}
            async with await psycopg.AsyncConnection.connect(self.url) as connection:
                await connection.execute("DELETE FROM queue_nodes")  # that of the template may look alive
            # A slot of each node is free: two jobs do not count as waiting.
            async with cluster.nodes("one", "two", capacity=1) as nodes:
                jobs = [make_job() for _ in range(9)]
                adding = (nodes[at % 2].enqueue(job, accepted_draft()) for at, job in enumerate(jobs))
                answers = await asyncio.gather(*adding, return_exceptions=True)
                refused = [each for each in answers if isinstance(each, RetryLater)]
                assert len(refused) == 9 - 3
                assert {each.code for each in refused} == {"too_many_jobs"}
                assert len((await cluster.store.list_jobs(JobFilter(), 20)).jobs) == 3
                await nodes[0].enqueue(make_job(api_key_id="k_two"), accepted_draft())
                await expect_error(RetryLater, nodes[1].enqueue(make_job(), accepted_draft()))

    @async_test
    async def test_the_slot_of_a_job_is_free_for_new_ones_on_all_nodes_as_soon_as_its_end_is_stored(
        self,
    ) -> None:
        async with self.cluster() as cluster:
            cluster.max_queued = 0
            async with await psycopg.AsyncConnection.connect(self.url) as connection:
                await connection.execute("DELETE FROM queue_nodes")  # that of the template may look alive
            async with cluster.nodes("work") as (work,):
                front = cluster.queue("front", capacity=0)
                async with front.opened():
                    await becomes(lambda: front.load().capacity == 1)
                    job = (await front.enqueue(make_job(), accepted_draft())).job
                    claim = await claimed(work)
                    refused = await expect_error(RetryLater, front.enqueue(make_job(), accepted_draft()))
                    assert refused.code == "queue_full"
                    await cluster.store.update_job(
                        job.id, frozenset({State.QUEUED}), lambda old: replace(old, state=State.COMPLETED)
                    )
                    # Its checkout is put away: the claim goes on, and here it seems to run.
                    await becomes(lambda: front.load().active == 1)
                    following = (await front.enqueue(make_job(), accepted_draft())).job
                    await expect_error(RetryLater, front.enqueue(make_job(), accepted_draft()))
                    await work.release(claim)
                    assert (await claimed(work)).job == following

    @async_test
    async def test_a_job_whose_place_cannot_be_stored_is_not_stored(self) -> None:
        async with self.cluster() as cluster, cluster.nodes("one") as (one,):
            async with await psycopg.AsyncConnection.connect(self.url) as connection:
                await connection.execute("ALTER TABLE queue_places RENAME TO elsewhere")
            jobs = [make_job(), make_job()]
            keys = [None, IdempotencyKey("again", "f" * 64)]
            for job, key in zip(jobs, keys, strict=True):
                await expect_error(StoreError, one.enqueue(job, accepted_draft(), key))
                assert await cluster.store.get(job.id) is None
                assert not one.holds(job.id)
            async with await psycopg.AsyncConnection.connect(self.url) as connection:
                await connection.execute("ALTER TABLE elsewhere RENAME TO queue_places")
            assert (await claimed_after(one, await one.enqueue(jobs[0], accepted_draft()))).job.id == jobs[
                0
            ].id

    @async_test
    async def test_the_order_is_one_for_all_nodes(self) -> None:
        async with self.cluster() as cluster, cluster.nodes("one", "two") as (one, two):
            low = (await one.enqueue(make_job(priority=1), accepted_draft())).job
            high = (await two.enqueue(make_job(priority=2), accepted_draft())).job
            await becomes(lambda: two.position(low.id) == 2)
            await becomes(lambda: one.position(high.id) == 1)
            assert (await claimed(one)).job == high
            assert (await claimed(two)).job == low

    @async_test
    async def test_the_next_turn_and_a_resumed_run_go_to_their_former_node_if_it_wants_one(self) -> None:
        async with self.cluster() as cluster, cluster.nodes("one", "two") as (one, two):
            parent = (await one.enqueue(make_job(), accepted_draft())).job
            claim = await claimed(two)
            await cluster.store.update_job(
                parent.id,
                frozenset({State.QUEUED}),
                lambda old: replace(
                    old, state=State.COMPLETED, runs=(Run(1, State.COMPLETED, node="two"),), begin="resume"
                ),
            )
            await two.release(claim)
            for _ in range(2):
                async with asyncio.TaskGroup() as group:
                    waiting = group.create_task(claimed(one))
                    await one.settle()
                    claiming = group.create_task(claimed(two))
                    await two.settle()
                    turn = make_job(parent_job_id=parent.id, begin="resume")
                    added = (await one.enqueue(turn, accepted_draft())).job
                    assert (await claiming).job == added, "though the other one wants it as much"
                    other = (await one.enqueue(make_job(), accepted_draft())).job
                    assert (await waiting).job == other
                await two.release(claiming.result())
                await one.release(waiting.result())
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(claimed(one))
                await one.settle()
                claiming = group.create_task(claimed(two))
                await two.settle()
                await one.requeue(replace(parent, begin="resume"))
                assert (await claiming).job.id == parent.id
                waiting.cancel()
            # Without a slot on its former node it starts elsewhere at once.
            turn = (await one.enqueue(make_job(parent_job_id=parent.id), accepted_draft())).job
            await two.release(claiming.result())
            assert (await claimed(one)).job == turn

    @async_test
    async def test_a_limit_of_a_key_above_one_holds_for_all_nodes_together(self) -> None:
        async with self.cluster(k_small=2) as cluster, cluster.nodes("one", "two", capacity=2) as (one, two):
            for _ in range(4):
                await one.enqueue(make_job(api_key_id="k_small"), accepted_draft())
            first, second = await claimed(one), await claimed(two)
            async with asyncio.TaskGroup() as group:
                third = group.create_task(claimed(one))
                other = group.create_task(claimed(two))
                await one.settle()
                await two.settle()
                assert not third.done()
                assert not other.done()
                await two.release(second)
                done, _ = await asyncio.wait((third, other), timeout=20, return_when=asyncio.FIRST_COMPLETED)
                assert len(done) == 1
                await one.release(first)

    @async_test
    async def test_a_run_is_cancelled_from_any_node_with_its_reason(self) -> None:
        async with self.cluster() as cluster, cluster.nodes("one", "two") as (one, two):
            job = (await one.enqueue(make_job(), accepted_draft())).job
            claim = await claimed(two)
            assert await one.cancel(job.id, StopReason.DEADLINE) == "stopping"
            async with asyncio.timeout(20):
                assert await claim.stop.wait() is StopReason.DEADLINE
            assert two.load().active == 1, "its run ends by itself"
            await two.release(claim)
            assert await one.cancel(job.id) == "unknown"

    @async_test
    async def test_a_cancel_on_a_node_that_lost_a_run_ends_the_later_run_on_another_one(self) -> None:
        async with self.cluster() as cluster:
            lost, judge = cluster.queue("lost", timing=SHORT), cluster.queue("judge", timing=PATIENT)
            async with lost.opened():
                job = (await lost.enqueue(make_job(), accepted_draft())).job
                earlier = await claimed(lost)
                lost._keeper.stop_writing()
                async with judge.opened():
                    await becomes(lambda: cluster.lost == [(job.id, 0)] and not judge.holds(job.id))
                    await judge.requeue(job)
                    later = await claimed(judge)
                    await becomes(lambda: earlier.stop.reason is StopReason.SHUTDOWN)
                    await becomes(lambda: [each.node for each in lost._copy.of_node("judge")] == ["judge"])
                    assert await lost.cancel(job.id) == "stopping"
                    async with asyncio.timeout(20):
                        assert await later.stop.wait() is StopReason.CANCEL
                    await judge.release(later)
                await lost.release(earlier)

    @async_test
    async def test_the_runs_of_a_key_that_wait_for_their_client_are_known_on_all_nodes(self) -> None:
        async with self.cluster() as cluster, cluster.nodes("one", "two") as (one, two):
            await one.enqueue(make_job(), accepted_draft())
            claim = await claimed(two)
            two.suspend(claim)
            await becomes(lambda: one.suspended_elsewhere("k_one") == 1)
            assert (one.suspended_elsewhere("k_two"), two.suspended_elsewhere("k_one")) == (0, 0)
            two.resume(claim)
            await becomes(lambda: one.suspended_elsewhere("k_one") == 0)

    @async_test
    async def test_a_job_that_waits_is_withdrawn_from_any_node(self) -> None:
        async with self.cluster() as cluster, cluster.nodes("one", "two") as (one, two):
            job = (await one.enqueue(make_job(), accepted_draft())).job
            assert await two.cancel(job.id) == "withdrawn"
            await becomes(lambda: not one.holds(job.id))

    @async_test
    async def test_what_a_dead_node_held_is_ended_once_and_its_places_are_free_again(self) -> None:
        async with self.cluster(k_small=1) as cluster:
            dead = cluster.queue("dead", timing=SHORT)
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(dead.opened())
                held = (await dead.enqueue(make_job(api_key_id="k_small"), accepted_draft())).job
                claim = await claimed(dead)
                await cluster.store.update_job(held.id, frozenset({State.QUEUED}), begun)
                dead._keeper.stop_writing()  # as if the process were stopped by SIGSTOP
                judge, other = cluster.queue("judge", timing=SHORT), cluster.queue("other", timing=SHORT)
                await stack.enter_async_context(judge.opened())
                await stack.enter_async_context(other.opened())
                following = (await judge.enqueue(make_job(api_key_id="k_small"), accepted_draft())).job
                assert (await claimed(judge)).job == following
                assert cluster.lost == [(held.id, 1)]
                await dead.release(claim)  # what it says now changes nothing
                assert judge.position(following.id) is None
                assert await self.states() == [("running", "judge")]

    @async_test
    async def test_a_node_whose_lease_cannot_be_written_stops_its_runs_by_itself(self) -> None:
        async with self.cluster() as cluster:
            queue = cluster.queue("one", timing=SHORT)
            async with queue.opened():
                await queue.enqueue(make_job(), accepted_draft())
                claim = await claimed(queue)
                queue._keeper.stop_writing()
                async with asyncio.timeout(20):
                    assert await claim.stop.wait() is StopReason.SHUTDOWN
                await queue.release(claim)

    @pytest.mark.long  # `cluster/test_node_death.py` kills the node of a service
    @async_test
    async def test_a_node_that_is_killed_loses_its_job_once_and_another_one_takes_the_next(self) -> None:
        async with self.cluster(k_one=1) as cluster:
            queue = cluster.queue("judge", timing=SHORT)
            async with queue.opened():
                held = (await queue.enqueue(make_job(), accepted_draft())).job
                following = (await queue.enqueue(make_job(), accepted_draft())).job
                argv = (sys.executable, "-m", "tests.queue.node_process", self.url, "killed")
                process = await asyncio.create_subprocess_exec(*argv, stdout=PIPE)
                try:
                    assert process.stdout is not None
                    async with asyncio.timeout(60):
                        assert await process.stdout.readline() == f"{held.id}\n".encode()
                finally:
                    process.kill()
                    await process.wait()
                assert (await claimed(queue)).job == following
                assert cluster.lost == [(held.id, 0)]

    @async_test
    async def test_a_node_that_starts_again_under_its_name_ends_what_it_held_at_once(self) -> None:
        async with self.cluster() as cluster:
            async with cluster.nodes("two") as (two,):
                held = (await two.enqueue(make_job(), accepted_draft())).job
            async with await psycopg.AsyncConnection.connect(self.url) as connection:
                await connection.execute("UPDATE queue_places SET state = 'running', node = 'one', run = 7")
            async with cluster.nodes("one") as (one,):
                await one.recovered()
                assert cluster.lost == [(held.id, 0)]
                assert await self.states() == []

    @async_test
    async def test_an_outage_of_the_database_ends_no_run_and_loses_no_end(self) -> None:
        with Postgres() as server:
            url = server.url(server.create_database())
            store = await open_store(url)
            try:
                async with AsyncExitStack() as stack:
                    cluster = Cluster(url, store, await stack.enter_async_context(listening(url)))
                    one, two = (cluster.queue(name, timing=PATIENT) for name in ("one", "two"))
                    for each in (one, two):
                        await stack.enter_async_context(each.opened())
                    jobs = [(await one.enqueue(make_job(), accepted_draft())).job for _ in range(2)]
                    claims = [await claimed(one), await claimed(two)]
                    await asyncio.to_thread(server.stop)
                    release = asyncio.ensure_future(one.release(claims[0]))
                    await asyncio.sleep(1.2 * PATIENT.dead)
                    assert not release.done()
                    await asyncio.to_thread(server.start)
                    async with asyncio.timeout(30):
                        await release
                    following = await one.enqueue(make_job(), accepted_draft())
                    assert (await claimed(one)).job == following.job
                    await asyncio.sleep(1.2 * PATIENT.dead)
                    assert cluster.lost == []
                    assert [claim.stop.reason for claim in claims] == [None, None]
                    await two.release(claims[1])
                    assert not two.holds(jobs[1].id)
            finally:
                await store.close()

    @async_test
    async def test_a_connection_that_is_lost_while_a_run_is_enqueued_is_an_outage_and_ends_no_node(
        self,
    ) -> None:
        """Found by chaos: the engine has an error of its own for it, by which the service ended."""
        async with self.cluster() as cluster, cluster.nodes("one") as (one,):
            cut: list[int] = []
            enqueue = one._engine.enqueue

            async def cut_and_enqueue(connection: Connection, node: str, job_id: str, run: int) -> int:
                if not cut:
                    cut.append(run)
                    await connection.close()
                return await enqueue(connection, node, job_id, run)

            one._engine.enqueue = cut_and_enqueue  # type: ignore[method-assign]
            job = (await one.enqueue(make_job(), accepted_draft())).job
            assert (await claimed(one)).job == job
            assert len(cut) == 1

    @async_test
    async def test_a_node_starts_beside_a_transaction_that_changes_its_row_and_then_places(self) -> None:
        async with (
            self.cluster() as cluster,
            cluster.nodes("one"),
            asyncio.timeout(60),
            asyncio.TaskGroup() as group,
        ):
            async with await psycopg.AsyncConnection.connect(self.url) as other:  # as a node that judges it
                await other.execute("INSERT INTO queue_nodes (node, capacity) VALUES ('two', 1)")
                started = asyncio.Event()

                async def start() -> None:
                    async with cluster.nodes("two"):
                        started.set()

                group.create_task(start())
                async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as looker:
                    await self.until_one_waits(looker)
                assert not started.is_set()
                await other.execute("UPDATE queue_places SET again = again")
            await started.wait()

    @async_test
    async def test_a_node_that_was_frozen_in_a_transaction_begins_it_again(self) -> None:
        attempts = 0

        async def look(turn: PlacesTransaction) -> int:
            nonlocal attempts
            attempts += 1
            if attempts == 1:  # the server ends the session, as after a freeze
                await turn.connection.execute("SET LOCAL idle_in_transaction_session_timeout = '100ms'")
                await asyncio.sleep(1)
            await turn.connection.execute("SELECT 1")
            return attempts

        async with self.cluster() as cluster, cluster.nodes("one") as (one,), asyncio.timeout(60):
            assert await one._turns.submit(look) == 2

    async def until_one_waits(self, connection: psycopg.AsyncConnection) -> None:
        """Wait until a session waits for the transaction of another one."""
        query = (
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        while not await (await connection.execute(query)).fetchall():  # noqa: ASYNC110  # it is looked at from outside
            await asyncio.sleep(0.02)

    async def states(self) -> list[tuple[str, str]]:
        """Return the states and the nodes of all places."""
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            return await (await connection.execute("SELECT state, node FROM queue_places")).fetchall()


def test_behind_pgbouncer_nodes_hear_of_each_other_by_the_address_of_the_server(
    pgbouncer_url: str, postgres_url: str
) -> None:
    asyncio.run(check_notifications(pgbouncer_url, postgres_url))


async def check_notifications(pgbouncer_url: str, postgres_url: str) -> None:
    store = await open_store(pgbouncer_url)
    silent = LeaseTiming(write=600.0, cut_off=700.0, dead=800.0)  # so that only a notification tells
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        cluster = Cluster(pgbouncer_url, store, await stack.enter_async_context(listening(postgres_url)))
        one, two = (cluster.queue(name, timing=silent) for name in ("one", "two"))
        for each in (one, two):
            await stack.enter_async_context(each.opened())
        await becomes(lambda: cluster.listener.is_connected)
        assert not cluster.listener.is_pooled
        async with asyncio.TaskGroup() as group:
            claiming = group.create_task(claimed(two))
            job = (await one.enqueue(make_job(), accepted_draft())).job
        assert claiming.result().job == job
        await becomes(lambda: one.load().active == 1)
        await two.release(claiming.result())
        await becomes(lambda: not one.holds(job.id))
