"""Budgets that several nodes spend: what they exceed together, and how often a call waits for the database."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadyhand.errors import StoreUnavailable
from steadyhand.gateway.money import budget_shares
from steadyhand.gateway.money.budgets import BudgetAccount, BudgetExhausted, Budgets, Reservation
from steadyhand.ports import BudgetLimit
from steadyhand.ports.cluster_limits import BudgetLease, LeaseRequest
from steadyhand.testing.contracts.samples import FakeClock, make_call
from steadyhand.testing.memory_leases import MemoryBudgetLeases, MemoryBudgets
from steadyhand.testing.memory_ledger import MemoryLedger


def key_day(limit: int) -> BudgetLimit:
    return BudgetLimit("key", "k_one", "day", limit)


class Node:
    """A node that makes calls: each is stored some turns of the loop after it was settled."""

    def __init__(self, shared: MemoryBudgets, name: str) -> None:
        self.ledger = shared.ledger
        self.leases = MemoryBudgetLeases(shared, name)
        self.ids: dict[Reservation, str] = {}
        self.budgets = Budgets(shared.ledger, FakeClock(), leases=self.leases)

    async def admit(self, *limits: BudgetLimit, reserve: int = 100) -> Reservation:
        call_id = f"{len(self.ledger.calls)}-{random.random()}"  # noqa: S311  # an id of its own
        held = await self.budgets.admit(
            BudgetAccount("j", "claude", "k_one", lambda: limits), reserve, call_id
        )
        self.ids[held] = call_id
        return held

    async def settle(self, reservation: Reservation, micros: int, *, turns: int = 0) -> None:
        call = make_call(id=self.ids.pop(reservation), micros=micros)
        reservation.settle(micros)
        for _ in range(turns):
            await asyncio.sleep(0)
        await self.ledger.save_call(call)
        for _ in range(turns):
            await asyncio.sleep(0)
        reservation.note_stored()


@asynccontextmanager
async def nodes(count: int) -> AsyncIterator[Sequence[Node]]:
    shared = MemoryBudgets(MemoryLedger())
    made = [Node(shared, f"node-{number}") for number in range(count)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each.budgets.run()) for each in made]
        yield made
        for task in tasks:
            task.cancel()


def spent(node: Node) -> int:
    return sum(call.micros for call in node.ledger.settled_calls)


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 4),
    limit=st.integers(1, 3_000),
    parallel=st.integers(1, 6),
)
@settings(max_examples=40)
def test_nodes_together_exceed_a_budget_by_at_most_one_call_and_leave_nothing_of_it(
    seed: int, count: int, limit: int, parallel: int
) -> None:
    chance = random.Random(seed)  # noqa: S311  # any order will do
    limits = (key_day(limit), BudgetLimit("service", "", "day", limit + 10))
    most = 0

    async def work(node: Node) -> None:
        nonlocal most
        while True:
            reserve = chance.randrange(1, 200)
            try:
                held = await node.admit(*limits, reserve=reserve)
            except BudgetExhausted:
                return
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            cost = chance.randrange(1, reserve + 1)
            most = max(most, cost)
            await node.settle(held, cost, turns=chance.randrange(6))

    async def main() -> int:
        async with asyncio.timeout(60), nodes(count) as made, asyncio.TaskGroup() as group:
            for node in made:
                for _ in range(parallel):
                    group.create_task(work(node))
        return spent(made[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget_shares, "RETRY_SECONDS", 0.01)
        patch.setattr(budget_shares, "CROWDED_PAUSE_SECONDS", 0.002)
        total = asyncio.run(main())
    assert limit <= total < limit + most


def test_calls_within_the_share_do_not_wait_for_the_database() -> None:
    async def main() -> None:
        async with nodes(2) as (one, _):
            await one.settle(await one.admit(key_day(1_000_000)), 100)
            asked = one.leases.requests
            for _ in range(budget_shares.SPARE_CALLS - budget_shares.LOW_CALLS):
                admission = asyncio.ensure_future(one.admit(key_day(1_000_000)))
                await asyncio.sleep(0)
                assert admission.done()
                await one.settle(admission.result(), 100)
            assert one.leases.requests <= asked + 1

    asyncio.run(main())


def test_a_share_that_runs_low_is_extended_while_calls_go_on() -> None:
    async def main() -> None:
        async with nodes(1) as (one,):
            await one.settle(await one.admit(key_day(1_000_000)), 100)
            waits = 0
            for _ in range(200):
                admission = asyncio.ensure_future(one.admit(key_day(1_000_000)))
                await asyncio.sleep(0)
                waits += not admission.done()
                await one.settle(await admission, 100, turns=3)
            assert waits == 0
            assert 2 <= one.leases.requests < 40

    asyncio.run(main())


def test_what_one_node_keeps_to_spare_is_given_back_when_another_one_needs_it() -> None:
    async def main() -> None:
        async with asyncio.timeout(60), nodes(2) as (one, two):
            held = await one.admit(key_day(1_000), reserve=40)  # and nearly 240 to spare
            other = await two.admit(key_day(1_000), reserve=10)
            # Something is in flight there, so it may not exceed the budget.
            admitted = await two.admit(key_day(1_000), reserve=900)
            assert one.leases.requests >= 2
            await one.settle(held, 40)
            await two.settle(other, 10)
            await two.settle(admitted, 900)
            assert spent(one) == 950


def test_a_call_waits_for_those_of_another_node_and_is_told_when_they_have_spent_all() -> None:
    async def main() -> None:
        async with asyncio.timeout(60), nodes(2) as (one, two):
            first = await one.admit(key_day(1_000), reserve=900)
            second = asyncio.ensure_future(two.admit(key_day(1_000), reserve=500))
            for _ in range(20):
                await asyncio.sleep(0)
            # Something is left, and nothing is in flight on this node: it is the one call that may exceed it.
            third = await second
            fourth = asyncio.ensure_future(one.admit(key_day(1_000), reserve=90))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not fourth.done()
            await one.settle(first, 800)
            await two.settle(third, 200)
            with pytest.raises(BudgetExhausted):
                await fourth

    asyncio.run(main())


def test_a_share_that_nobody_uses_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_shares, "IDLE_SECONDS", 0.01)

    async def main() -> None:
        async with asyncio.timeout(60), nodes(2) as (one, _):
            await one.settle(await one.admit(key_day(1_000)), 100)
            while sum(one.leases._shared.shares.values()):  # noqa: ASYNC110  # the state of its stand-in
                await asyncio.sleep(0.005)
            asked = one.leases.requests
            for _ in range(10):
                await asyncio.sleep(0.005)
            assert one.leases.requests == asked  # and then it costs nothing

    asyncio.run(main())


def test_a_node_that_is_cut_off_admits_nothing_until_it_is_back() -> None:
    async def main() -> None:
        async with asyncio.timeout(60), nodes(1) as (one,):
            await one.settle(await one.admit(key_day(100_000)), 100)
            one.leases.is_cut_off = True
            waiting = asyncio.ensure_future(one.admit(key_day(100_000)))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not waiting.done()
            one.leases.is_cut_off = False
            await waiting

    asyncio.run(main())


def test_calls_wait_while_the_database_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_shares, "RETRY_SECONDS", 0.01)

    async def main() -> None:
        async with asyncio.timeout(60), nodes(1) as (one,):
            answer, failures = one.leases.lease, 3

            async def fail(requests: Sequence[LeaseRequest]) -> Sequence[BudgetLease]:
                nonlocal failures
                if failures:
                    failures -= 1
                    raise StoreUnavailable("away")
                return await answer(requests)

            monkeypatch.setattr(one.leases, "lease", fail)
            await one.admit(key_day(1_000))
            assert failures == 0

    asyncio.run(main())


def test_the_budget_of_a_job_asks_no_database() -> None:
    async def main() -> None:
        async with nodes(1) as (one,):
            await one.admit(BudgetLimit("job", "j", "job", 1_000))
            assert one.leases.requests == 0

    asyncio.run(main())


def test_what_another_node_has_spent_counts_here_once_and_wholly() -> None:
    async def main() -> None:
        async with asyncio.timeout(60), nodes(2) as (one, two):
            await two.settle(await two.admit(key_day(1_000)), 100, turns=2)
            await one.settle(await one.admit(key_day(1_000)), 100)
            await one.settle(await one.admit(key_day(1_000), reserve=700), 700, turns=2)
            assert one.budgets.spent(key_day(1_000)) == 900

    asyncio.run(main())
