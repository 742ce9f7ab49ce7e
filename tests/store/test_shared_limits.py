"""The limits of several nodes on Postgres: budgets, the rates of keys, and the states of credentials."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import psycopg
import pytest

from steadyhand.errors import StoreUnavailable
from steadyhand.ports import Ledger
from steadyhand.ports.cluster_limits import BudgetLeases, CredentialState, LeaseRequest, SharedBudget
from steadyhand.store import open_store
from steadyhand.store.postgres.budget_leases import PostgresBudgetLeases
from steadyhand.store.postgres.credential_states import PostgresCredentialStates
from steadyhand.store.postgres.key_rates import PostgresKeyRates
from steadyhand.store.postgres.limits_connection import LimitsConnection
from steadyhand.testing.contracts.samples import NOON, async_test, expect_error
from steadyhand.testing.contracts.shared_budgets import KEY_DAY, BudgetLeasesContract, SharedWorld
from steadyhand.testing.memory_leases import MemoryBudgetLeases, MemoryBudgets
from steadyhand.testing.memory_ledger import MemoryLedger

DEAD_SECONDS = 0.001
"""So a node is dead once its lease is in the past; that of a living one ends in an hour."""


class PostgresWorld:
    """Nodes with a connection each, over one store."""

    def __init__(self, url: str, ledger: Ledger, stack: AsyncExitStack, sql: psycopg.AsyncConnection) -> None:
        self.ledger = ledger
        self._url = url
        self._stack = stack
        self._sql = sql

    async def connection(self) -> LimitsConnection:
        connection = LimitsConnection(self._url)
        self._stack.push_async_callback(connection.close)
        return connection

    async def node(self, name: str) -> BudgetLeases:
        await self._sql.execute(
            "INSERT INTO queue_nodes (node, capacity, lease_at) VALUES (%s, 1, now() + interval '1 hour')"
            " ON CONFLICT DO NOTHING",
            (name,),
        )
        return PostgresBudgetLeases(await self.connection(), name, dead_seconds=DEAD_SECONDS)

    async def kill(self, name: str) -> None:
        await self._sql.execute(
            "UPDATE queue_nodes SET lease_at = now() - interval '1 minute' WHERE node = %s", (name,)
        )

    async def run_job(self, job_id: str, name: str) -> None:
        await self._sql.execute(
            "INSERT INTO queue_places (job_id, key_id, goes_on, priority, sequence, queued_at, state, again,"
            " resuming, run, node) VALUES (%s, 'k_one', false, 0, 1, now(), 'running', false, false, 1, %s)",
            (job_id, name),
        )


@asynccontextmanager
async def opened_world(url: str) -> AsyncIterator[PostgresWorld]:
    async with AsyncExitStack() as stack:
        store = await open_store(url)
        stack.push_async_callback(store.close)
        sql = await stack.enter_async_context(await psycopg.AsyncConnection.connect(url, autocommit=True))
        yield PostgresWorld(url, store, stack, sql)


class TestPostgresBudgetLeases(BudgetLeasesContract):
    @pytest.fixture(autouse=True)
    def place(self, limits_url: str) -> None:
        self.url = limits_url

    @asynccontextmanager
    async def open(self) -> AsyncIterator[SharedWorld]:
        async with opened_world(self.url) as world:
            yield world

    @async_test
    async def test_nodes_that_ask_at_once_for_several_budgets_are_given_no_more_than_there_is(self) -> None:
        budgets = [KEY_DAY, SharedBudget("service", "", "day", KEY_DAY.start)]
        async with opened_world(self.url) as world:
            nodes = [await world.node(f"node-{number}") for number in range(5)]
            orders = [budgets, budgets[::-1]]
            answers = await asyncio.gather(
                *(
                    node.lease([LeaseRequest(budget, 1_000, 0, 300) for budget in orders[at % 2]])
                    for at, node in enumerate(nodes)
                )
            )
            for which in range(2):
                granted = [leases[which if at % 2 == 0 else 1 - which] for at, leases in enumerate(answers)]
                assert sum(lease.granted for lease in granted) == 3
                assert sum(lease.amount for lease in granted) == 900

    @async_test
    async def test_a_node_that_starts_again_gives_back_what_it_had(self) -> None:
        async with opened_world(self.url) as world:
            one, two = await world.node("one"), await world.node("two")
            await one.lease([LeaseRequest(KEY_DAY, 1_000, 0, 900)])
            again = await world.node("one")
            assert isinstance(again, PostgresBudgetLeases)
            await again.clear()
            (lease,) = await two.lease([LeaseRequest(KEY_DAY, 1_000, 0, 900)])
            assert lease.granted

    def test_a_budget_that_another_node_announces_is_named_as_it_was(self) -> None:
        heard: list[SharedBudget] = []
        leases = PostgresBudgetLeases(LimitsConnection(self.url), "one", dead_seconds=1)
        leases.on_crowded(heard.append)
        leases.hear('{"node": "two", "budgets": ["key:day:2026-03-01:k_one", "service:day:2026-03-01:"]}')
        leases.hear('{"node": "one", "budgets": ["key:day:2026-03-01:k_two"]}')
        leases.hear(None)
        assert heard == [KEY_DAY, SharedBudget("service", "", "day", KEY_DAY.start)]


class MemoryWorld:
    """Nodes in memory."""

    def __init__(self) -> None:
        self.ledger = MemoryLedger()
        self.budgets = MemoryBudgets(self.ledger)

    async def node(self, name: str) -> BudgetLeases:
        return MemoryBudgetLeases(self.budgets, name)

    async def kill(self, name: str) -> None:
        self.budgets.nodes[name].die()

    async def run_job(self, job_id: str, name: str) -> None:
        self.budgets.jobs[job_id] = name


class TestMemoryBudgetLeases(BudgetLeasesContract):
    @asynccontextmanager
    async def open(self) -> AsyncIterator[SharedWorld]:
        yield MemoryWorld()


class TestKeyRates:
    @pytest.fixture(autouse=True)
    def place(self, limits_url: str) -> None:
        self.url = limits_url

    @asynccontextmanager
    async def rates(self, count: int) -> AsyncIterator[list[PostgresKeyRates]]:
        connections = [LimitsConnection(self.url) for _ in range(count)]
        try:
            yield [PostgresKeyRates(each) for each in connections]
        finally:
            for each in connections:
                await each.close()

    @async_test
    async def test_a_key_has_one_rate_on_all_nodes_however_many_ask_at_once(self) -> None:
        async with self.rates(3) as nodes:
            answers = await asyncio.gather(*(node.charge("k_one", 7) for node in nodes * 5))
            refused = [seconds for seconds in answers if seconds is not None]
            assert len(refused) == 15 - 7
            assert all(1 <= seconds <= 61 for seconds in refused)
            assert await nodes[0].charge("k_two", 7) is None

    @async_test
    async def test_what_is_a_minute_old_has_left_the_window(self) -> None:
        async with self.rates(1) as (rates,):
            assert [await rates.charge("k_one", 2) for _ in range(2)] == [None, None]
            await self.let_pass(30)
            (seconds,) = [await rates.charge("k_one", 2)]
            assert seconds is not None
            assert 25 <= seconds <= 32
            await self.let_pass(31)
            assert await rates.charge("k_one", 2) is None

    @async_test
    async def test_the_seconds_are_those_until_the_oldest_that_is_too_many_has_left(self) -> None:
        async with self.rates(1) as (rates,):
            assert await rates.charge("k_one", 2) is None
            await self.let_pass(50)
            assert await rates.charge("k_one", 2) is None
            seconds = await rates.charge("k_one", 1)
            assert seconds is not None
            assert seconds >= 55
            seconds = await rates.charge("k_one", 2)
            assert seconds is not None
            assert seconds <= 12

    @async_test
    async def test_a_request_that_failed_is_taken_back(self) -> None:
        async with self.rates(2) as (one, two):
            running = asyncio.create_task(one.run())
            assert await one.charge("k_one", 1) is None
            one.undo("k_one")
            async with asyncio.timeout(20):
                while await two.charge("k_one", 1) is not None:  # noqa: ASYNC110  # it is seen from outside alone
                    await asyncio.sleep(0.02)
            one.undo("k_one")  # there is none of this node any more
            running.cancel()

    async def let_pass(self, seconds: int) -> None:
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            await connection.execute("UPDATE key_rates SET slice = slice - %s", (seconds * 10,))


class TestCredentialStates:
    @pytest.fixture(autouse=True)
    def place(self, limits_url: str) -> None:
        self.url = limits_url

    @asynccontextmanager
    async def nodes(self) -> AsyncIterator[list[PostgresCredentialStates]]:
        async with opened_world(self.url) as world:
            states = []
            for name in ("one", "two"):
                await world.node(name)
                states.append(
                    PostgresCredentialStates(await world.connection(), name, dead_seconds=DEAD_SECONDS)
                )
            self.world = world
            yield states

    @async_test
    async def test_a_block_that_one_node_stores_is_seen_by_another_and_the_later_end_counts(self) -> None:
        async with self.nodes() as (one, two):
            later = NOON.replace(year=2100)
            await one.save_block("c", later)
            await two.save_block("c", later - timedelta(hours=1))
            assert await two.list_states() == [CredentialState("c", blocked_until=later)]

    @async_test
    async def test_a_rejection_lasts_until_a_node_removes_it(self) -> None:
        async with self.nodes() as (one, two):
            await one.save_rejection("c", NOON, timedelta(seconds=30))
            await two.save_rejection("c", NOON + timedelta(minutes=1), timedelta(seconds=60))
            expected = CredentialState(
                "c", rejected_until=NOON + timedelta(minutes=1), rest=timedelta(seconds=60)
            )
            assert await one.list_states() == [expected]
            await one.remove_rejection("c")
            assert [state for state in await two.list_states() if state.rejected_until] == []

    @async_test
    async def test_one_run_of_all_nodes_tries_a_credential_until_it_ends_or_its_node_dies(self) -> None:
        async with self.nodes() as (one, two):
            assert not await one.claim_try("c", "r1")
            await one.save_rejection("c", NOON, timedelta(seconds=30))
            assert await one.claim_try("c", "r1")
            assert await one.claim_try("c", "r1")
            assert not await two.claim_try("c", "r1")
            assert not await one.claim_try("c", "r2")
            await one.release_try("c", "r1")
            assert await two.claim_try("c", "r1")
            assert not await one.claim_try("c", "r1")
            await self.world.kill("two")
            assert await one.claim_try("c", "r1")
            await one.save_rejection("c", NOON, timedelta(seconds=60))
            assert await one.claim_try("c", "r3")

    @async_test
    async def test_a_change_is_announced_to_the_other_nodes(self) -> None:
        connecting = psycopg.AsyncConnection.connect(self.url, autocommit=True)
        async with self.nodes() as (one, _), await connecting as connection:
            await connection.execute("LISTEN steadyhand_credentials")
            await one.save_block("c", NOON)
            heard = [each.payload async for each in connection.notifies(timeout=20, stop_after=1)]
            assert heard == ["one"]


class TestLimitsConnection:
    @pytest.fixture(autouse=True)
    def place(self, limits_url: str) -> None:
        self.url = limits_url

    @async_test
    async def test_a_connection_that_the_server_has_cut_is_opened_again(self) -> None:
        connection = LimitsConnection(self.url)
        ((before,),) = (await connection.run(["SELECT pg_backend_pid()"]))[0]
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as other:
            await other.execute("SELECT pg_terminate_backend(%s)", (before,))
        ((after,),) = (await connection.run(["SELECT pg_backend_pid()"]))[0]
        assert after != before
        await connection.close()

    @async_test
    async def test_a_statement_that_fails_undoes_those_before_it_and_is_an_error_of_the_store(self) -> None:
        connection = LimitsConnection(self.url)
        await expect_error(
            StoreUnavailable,
            connection.run(["INSERT INTO credential_states (id) VALUES ('c')", "SELECT 1 / 0"]),
        )
        assert (await connection.run(["SELECT id FROM credential_states"])) == [[]]
        await connection.close()
