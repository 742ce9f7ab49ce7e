"""Tests of the budgets that several nodes share."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from steadyhand.ports import Ledger, ModelCall
from steadyhand.ports.cluster_limits import BudgetLease, BudgetLeases, LeaseRequest, SharedBudget
from steadyhand.testing.contracts.samples import NOON, async_test, make_call

MIDNIGHT = NOON.replace(hour=0, minute=0, second=0, microsecond=0)
KEY_DAY = SharedBudget("key", "k_one", "day", MIDNIGHT)


class SharedWorld(Protocol):
    """Nodes over one ledger."""

    @property
    def ledger(self) -> Ledger:
        """The ledger of all nodes."""
        ...

    async def node(self, name: str) -> BudgetLeases:
        """Start a node and return its leases."""
        ...

    async def kill(self, name: str) -> None:
        """Let a node be dead for the others."""
        ...

    async def run_job(self, job_id: str, name: str) -> None:
        """Let a node run a job."""
        ...


@dataclass(frozen=True, slots=True)
class Node:
    """A node that asks for one budget."""

    leases: BudgetLeases
    budget: SharedBudget = KEY_DAY
    limit: int = 1_000

    async def ask(self, held: int = 0, needed: int = 0, **more: Any) -> BudgetLease:
        """Ask for a share."""
        (lease,) = await self.leases.lease([LeaseRequest(self.budget, self.limit, held, needed, **more)])
        return lease


class BudgetLeasesContract:
    """Shares of nodes, what exceeds a budget, and what a dead node leaves."""

    def open(self) -> AbstractAsyncContextManager[SharedWorld]:
        """Open nodes over an empty ledger for one test."""
        raise NotImplementedError

    @async_test
    async def test_a_share_covers_what_is_needed_and_a_quarter_of_the_rest_to_spare(self) -> None:
        async with self.open() as world:
            one = Node(await world.node("one"))
            assert await one.ask(0, 199, spare=10_000) == BudgetLease(0, 199 + 200, granted=True)
            assert await one.ask(0, 199, spare=50) == BudgetLease(0, 249, granted=True)
            assert await one.ask(100, 99, spare=0) == BudgetLease(0, 199, granted=True)

    @async_test
    async def test_what_nodes_have_together_stays_below_the_limit(self) -> None:
        async with self.open() as world:
            one, two = Node(await world.node("one")), Node(await world.node("two"))
            assert (await one.ask(0, 600)).amount == 600
            assert await two.ask(0, 400) == BudgetLease(0, 0, granted=False)
            assert await two.ask(0, 399) == BudgetLease(0, 399, granted=True)
            assert await one.ask(0) == BudgetLease(0, 0, granted=True)
            assert (await two.ask(399, 601)).granted is False
            assert await two.ask(399, 600) == BudgetLease(0, 999, granted=True)

    @async_test
    async def test_one_call_may_exceed_the_budget_while_anything_is_left_and_then_no_other_node_gets_any(
        self,
    ) -> None:
        async with self.open() as world:
            one, two = Node(await world.node("one")), Node(await world.node("two"))
            await world.ledger.save_call(make_call(micros=999))
            assert await one.ask(0, 5_000, may_exceed=True) == BudgetLease(999, 5_000, granted=True)
            assert await two.ask(0, 1, may_exceed=True) == BudgetLease(999, 0, granted=False)
            await one.ask(0)
            assert (await two.ask(0, 1, may_exceed=True)).granted is True

    @async_test
    async def test_nothing_is_left_of_a_budget_that_is_spent(self) -> None:
        async with self.open() as world:
            one = Node(await world.node("one"))
            await world.ledger.save_call(make_call(micros=1_000))
            assert await one.ask(0, 1, may_exceed=True) == BudgetLease(1_000, 0, granted=False)

    @async_test
    async def test_a_budget_that_is_exceeded_by_more_than_a_database_can_count_is_spent(self) -> None:
        async with self.open() as world:
            one = Node(await world.node("one"), SharedBudget("agent", "claude", "day", MIDNIGHT))
            for model in ("m1", "m2"):
                await world.ledger.save_call(make_call(micros=2**63 - 1, model=model))
            lease = await one.ask(0, 1, may_exceed=True)
            assert (lease.amount, lease.granted) == (0, False)
            assert lease.settled > 10**18

    @async_test
    async def test_calls_that_the_node_counts_itself_are_left_out_once_the_ledger_has_them(self) -> None:
        async with self.open() as world:
            one = Node(await world.node("one"))
            call = make_call(micros=300)
            asked: dict[str, Any] = {"held": 300, "needed": 100, "calls": [call.id]}
            assert await one.ask(**asked) == BudgetLease(0, 400, granted=True)
            await world.ledger.save_call(call)
            assert await one.ask(**asked) == BudgetLease(0, 400, granted=True)
            assert await one.ask(0, 100) == BudgetLease(300, 100, granted=True)

    @async_test
    async def test_the_share_of_a_dead_node_is_free_but_for_its_open_calls(self) -> None:
        async with self.open() as world:
            one, two = Node(await world.node("one")), Node(await world.node("two"))
            job = "f" * 12
            await world.run_job(job, "one")
            assert (await one.ask(0, 900)).granted is True
            opened = make_call(job_id=job, settled=False, reserved_micros=500)
            await world.ledger.save_call(opened)
            assert (await two.ask(0, 400)).granted is False
            await world.kill("one")
            assert (await two.ask(0, 500)).granted is False
            assert (await two.ask(0, 499)).granted is True
            await world.ledger.save_call(replace(opened, settled=True, micros=200))
            assert await two.ask(0, 799) == BudgetLease(200, 799, granted=True)

    @async_test
    async def test_a_node_that_others_took_for_dead_gets_nothing(self) -> None:
        async with self.open() as world:
            one = Node(await world.node("one"))
            await world.kill("one")
            assert await one.ask(10, 5, may_exceed=True) == BudgetLease(0, 10, granted=False)

    @async_test
    async def test_each_budget_reads_the_calls_of_its_owner_and_period(self) -> None:
        async with self.open() as world:
            leases = await world.node("one")
            for call in _calls_around(NOON):
                await world.ledger.save_call(call)
            month = MIDNIGHT.replace(day=1)
            expected = {
                KEY_DAY: 1 + 2,
                SharedBudget("key", "k_one", "month", month): 1 + 2 + 8,
                SharedBudget("agent", "claude", "day", MIDNIGHT): 1 + 4,
                SharedBudget("service", "", "day", MIDNIGHT): 1 + 2 + 4,
            }
            answers = await leases.lease([LeaseRequest(budget, 1_000, 0) for budget in expected])
            assert [lease.settled for lease in answers] == list(expected.values())


def _calls_around(moment: datetime) -> list[ModelCall]:
    day = timedelta(days=1)
    return [
        make_call(at=moment, micros=1),
        make_call(at=moment, micros=2, agent="other", model="another"),
        make_call(at=moment, micros=4, api_key_id="k_two", model="another"),
        make_call(at=moment + day, micros=8),
        make_call(at=moment - day, micros=16),
    ]
