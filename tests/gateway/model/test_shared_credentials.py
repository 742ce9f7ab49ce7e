"""Rate limits and rejected credentials that several nodes share by one Postgres."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import psycopg
import pytest

from steadyhand.gateway import Credential, Provider
from steadyhand.gateway.model.provider_rate_limits import ProviderRateLimits
from steadyhand.gateway.model.rejected_credentials import FIRST_REST, RejectedCredentials
from steadyhand.gateway.model.shared_credentials import SharedCredentials
from steadyhand.store.postgres.credential_states import PostgresCredentialStates
from steadyhand.store.postgres.limits_connection import LimitsConnection
from steadyhand.testing.contracts.samples import FakeClock, async_test

SECRET = "sk-one-secret"  # of no service
PROVIDER = Provider(base_url="https://model.invalid", credential=Credential("api_key", SECRET))
FUTURE = FakeClock().now.replace(year=2100)


@dataclass
class Node:
    """What a node knows of its provider's credential."""

    limits: ProviderRateLimits
    rejections: RejectedCredentials
    clock: FakeClock
    states: PostgresCredentialStates

    async def becomes(self, is_true: Callable[[], bool]) -> None:
        """Wait until the node has heard of something; the listener of a service calls `hear`."""
        async with asyncio.timeout(20):
            while not is_true():  # another task takes it over
                self.states.hear(None)
                await asyncio.sleep(0.02)

    @property
    def is_rejected(self) -> bool:
        return self.rejections.rejected_until(PROVIDER) is not None


class TestSharedCredentials:
    @pytest.fixture(autouse=True)
    def place(self, limits_url: str) -> None:
        self.url = limits_url

    @asynccontextmanager
    async def nodes(self, *names: str) -> AsyncIterator[list[Node]]:
        clock = FakeClock(FUTURE)
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            sql = await psycopg.AsyncConnection.connect(self.url, autocommit=True)
            await stack.enter_async_context(sql)
            nodes, tasks = [], []
            for name in names:
                await sql.execute("INSERT INTO queue_nodes (node, capacity) VALUES (%s, 1)", (name,))
                connection = LimitsConnection(self.url)
                stack.push_async_callback(connection.close)
                states = PostgresCredentialStates(connection, name, dead_seconds=3_600)
                node = Node(ProviderRateLimits(clock), RejectedCredentials(clock), clock, states)
                node.rejections.shared = SharedCredentials(states, [PROVIDER], node.limits, node.rejections)
                tasks.append(group.create_task(node.rejections.shared.run()))
                nodes.append(node)
            yield nodes
            for task in tasks:
                task.cancel()

    @async_test
    async def test_a_rate_limit_that_one_node_meets_holds_on_the_others(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            heard: list[bool] = []
            two.limits.on_change(lambda: heard.append(True))
            until = FUTURE + timedelta(minutes=5)
            one.limits.block(PROVIDER.rate_limit_key, until)
            await two.becomes(lambda: two.limits.blocked_until(PROVIDER.rate_limit_key) == until)
            assert heard == [True]
            one.clock.advance(timedelta(minutes=6))
            assert two.limits.blocked_until(PROVIDER.rate_limit_key) is None

    @async_test
    async def test_a_credential_that_one_node_finds_rejected_rests_on_all_until_one_call_is_accepted(
        self,
    ) -> None:
        async with self.nodes("one", "two") as (one, two):
            one.rejections.reject(PROVIDER, SECRET.encode(), run := object())
            await two.becomes(lambda: two.is_rejected)
            assert two.rejections.rejected_until(PROVIDER) == FUTURE + FIRST_REST
            refusal = await two.rejections.admit(PROVIDER, object())
            assert refusal is not None
            assert not refusal.is_new
            one.clock.advance(FIRST_REST)
            assert await one.rejections.admit(PROVIDER, run) is None
            assert await two.rejections.admit(PROVIDER, object()) is not None  # one tries it already
            one.rejections.note_status(PROVIDER, 200)
            await two.becomes(lambda: not two.is_rejected)
            assert await two.rejections.admit(PROVIDER, object()) is None

    @async_test
    async def test_a_try_that_fails_makes_the_rest_of_all_nodes_longer(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            one.rejections.reject(PROVIDER, SECRET.encode(), object())
            await two.becomes(lambda: two.is_rejected)
            one.clock.advance(FIRST_REST)
            run = object()
            assert await two.rejections.admit(PROVIDER, run) is None
            two.rejections.reject(PROVIDER, SECRET.encode(), run)
            until = FUTURE + 3 * FIRST_REST
            await one.becomes(lambda: one.rejections.rejected_until(PROVIDER) == until)

    @async_test
    async def test_a_run_that_ends_without_an_answer_lets_another_node_try(self) -> None:
        async with self.nodes("one", "two") as (one, two):
            one.rejections.reject(PROVIDER, SECRET.encode(), object())
            await two.becomes(lambda: two.is_rejected)
            one.clock.advance(FIRST_REST)
            run = object()
            assert await one.rejections.admit(PROVIDER, run) is None
            one.rejections.release(run)
            other = object()
            async with asyncio.timeout(20):
                while await two.rejections.admit(PROVIDER, other) is not None:  # noqa: ASYNC110  # as above
                    await asyncio.sleep(0.02)

    @async_test
    async def test_a_node_that_starts_later_learns_what_is_known(self) -> None:
        async with self.nodes("one") as (one,):
            one.rejections.reject(PROVIDER, SECRET.encode(), object())
            one.limits.block(PROVIDER.rate_limit_key, FUTURE + timedelta(minutes=5))
            await one.becomes(lambda: one.is_rejected)
            async with asyncio.timeout(20):
                while len(await one.states.list_states()) < 2:  # noqa: ASYNC110  # as above
                    await asyncio.sleep(0.02)
        async with self.nodes("two") as (two,):
            await two.becomes(lambda: two.is_rejected)
            assert two.limits.blocked_until(PROVIDER.rate_limit_key) is not None

    @async_test
    async def test_the_database_has_no_part_of_a_secret(self) -> None:
        async with self.nodes("one") as (one,):
            one.rejections.reject(PROVIDER, SECRET.encode(), object())
            async with asyncio.timeout(20):
                while not (states := await one.states.list_states()):  # noqa: ASYNC110  # as above
                    await asyncio.sleep(0.02)
            assert all(SECRET not in state.id and len(state.id) == 64 for state in states)
