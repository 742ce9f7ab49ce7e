"""Budgets: what is let through, what waits, what is refused, and where a new day begins."""

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadyhand.gateway.money.budgets import (
    BudgetAccount,
    BudgetExhausted,
    BudgetQueueFull,
    Budgets,
    Reservation,
    period_start,
)
from steadyhand.ports import BudgetLimit
from steadyhand.testing.contracts.samples import NOON, FakeClock, make_call
from steadyhand.testing.memory_ledger import MemoryLedger

JOB = BudgetLimit("job", "j1", "job", 1_000)


def payer(*limits: BudgetLimit, job: str = "j1", key: str = "k1", agent: str = "claude") -> BudgetAccount:
    return BudgetAccount(job, agent, key, lambda: limits)


def budgets(ledger: MemoryLedger | None = None, clock: FakeClock | None = None, **options: float) -> Budgets:
    return Budgets(ledger or MemoryLedger(), clock or FakeClock(), **options)  # type: ignore[arg-type]


async def settle_soon() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_calls_go_through_side_by_side_while_their_reservations_fit() -> None:
    async def main() -> None:
        made = budgets()
        held = [await made.admit(payer(JOB), 300) for _ in range(3)]
        fourth = asyncio.ensure_future(made.admit(payer(JOB), 300))
        await settle_soon()
        assert not fourth.done()
        held[0].settle(50)  # 50 + 600 + 300 fit
        await settle_soon()
        assert fourth.done()
        assert made.spent(JOB) == 50

    asyncio.run(main())


def test_what_is_settled_and_reserved_stays_below_the_limit() -> None:
    async def main() -> None:
        for last, passes in ((299, True), (300, False)):
            made = budgets()
            (await made.admit(payer(JOB), 1)).settle(400)
            await made.admit(payer(JOB), 300)
            beside = asyncio.ensure_future(made.admit(payer(JOB), last))
            await settle_soon()
            assert beside.done() is passes
            beside.cancel()

    asyncio.run(main())


def test_with_nothing_in_flight_one_call_goes_through_whatever_it_reserves() -> None:
    async def main() -> None:
        made = budgets()
        (await made.admit(payer(JOB), 10)).settle(999)
        last = await made.admit(payer(JOB), 50_000)
        beside = asyncio.ensure_future(made.admit(payer(JOB), 1))
        await settle_soon()
        assert not beside.done()
        last.settle(40_000)
        with pytest.raises(BudgetExhausted):
            await beside

    asyncio.run(main())


def test_a_spent_budget_is_named_with_its_amount() -> None:
    texts = {
        JOB: "The budget of this job (0.001 USD) is spent.",
        BudgetLimit("agent", "claude", "day", 2_500_000): (
            "The budget of the agent claude for this day (2.50 USD) is spent."
        ),
        BudgetLimit(
            "key", "k1", "month", 7_000_000
        ): "The budget of this key for this month (7.00 USD) is spent.",
        BudgetLimit("service", "", "day", 123_456): (
            "The budget of this service for this day (0.123456 USD) is spent."
        ),
    }

    async def main() -> None:
        for allowance, text in texts.items():
            made = budgets()
            (await made.admit(payer(allowance), 10)).settle(allowance.limit_micros)
            with pytest.raises(BudgetExhausted) as refused:
                await made.admit(payer(allowance), 0)
            assert refused.value.text == text
            assert refused.value.limit == allowance

    asyncio.run(main())


def test_a_hundred_parallel_calls_with_room_for_one_more_are_at_most_one_over() -> None:
    async def main() -> None:
        made = budgets()
        (await made.admit(payer(JOB), 1)).settle(900)  # 100 are left, and each costs what it reserves: 100

        async def call() -> int:
            try:
                held = await made.admit(payer(JOB), 100)
            except BudgetExhausted:
                return 0
            await asyncio.sleep(random.random() / 1000)  # noqa: S311  # any order will do
            held.settle(150)
            return 1

        passed = sum(await asyncio.gather(*(call() for _ in range(100))))
        assert passed == 1
        assert made.spent(JOB) == 1_050

    asyncio.run(main())


def test_calls_that_wait_go_through_in_the_order_in_which_they_came() -> None:
    async def main() -> None:
        made = budgets()
        first = await made.admit(payer(JOB), 1_000)
        order: list[int] = []

        async def call(number: int, reserve: int) -> None:
            held = await made.admit(payer(JOB), reserve)
            order.append(number)
            await settle_soon()
            held.settle(1)

        async with asyncio.TaskGroup() as group:
            for number, reserve in enumerate((900, 1, 1, 900)):  # a small one does not slip past a large one
                group.create_task(call(number, reserve))
            await settle_soon()
            assert order == []
            first.settle(1)
        assert order == [0, 1, 2, 3]

    asyncio.run(main())


def test_a_job_that_waits_holds_up_no_other_job() -> None:
    async def main() -> None:
        made = budgets()
        service = BudgetLimit("service", "", "day", 1_000_000)
        other = BudgetLimit("job", "j2", "job", 1_000)
        await made.admit(payer(JOB, service), 1_000)
        waiting = asyncio.ensure_future(made.admit(payer(JOB, service), 1_000))
        await settle_soon()
        assert not waiting.done()
        async with asyncio.timeout(20):
            await made.admit(payer(other, service, job="j2"), 1_000)
        waiting.cancel()

    asyncio.run(main())


def test_all_limits_hold_at_once_and_the_narrowest_decides() -> None:
    async def main() -> None:
        made = budgets()
        day = BudgetLimit("key", "k1", "day", 100)
        wide = [BudgetLimit("job", f"j{n}", "job", 10_000) for n in range(2)]
        first = await made.admit(payer(wide[0], day, job="j0"), 60)
        second = asyncio.ensure_future(made.admit(payer(wide[1], day, job="j1"), 60))
        await settle_soon()
        assert not second.done()
        first.settle(100)
        with pytest.raises(BudgetExhausted) as refused:
            await second
        assert refused.value.limit == day

    asyncio.run(main())


def test_a_limit_that_is_raised_holds_for_the_next_call() -> None:
    async def main() -> None:
        made = budgets()
        limits = [JOB]
        who = BudgetAccount("j1", "claude", "k1", lambda: limits)
        (await made.admit(who, 1)).settle(2_000)
        with pytest.raises(BudgetExhausted):
            await made.admit(who, 1)
        limits[0] = BudgetLimit("job", "j1", "job", 3_000)
        await made.admit(who, 1)

    asyncio.run(main())


def test_a_caller_that_goes_away_leaves_its_place_and_holds_nothing() -> None:
    async def main() -> None:
        made = budgets()
        first = await made.admit(payer(JOB), 1_000)
        gone = asyncio.ensure_future(made.admit(payer(JOB), 1_000))
        after = asyncio.ensure_future(made.admit(payer(JOB), 10))
        await settle_soon()
        first.resize(500)
        await settle_soon()
        assert not after.done()  # the large one before it still waits
        gone.cancel()
        await settle_soon()
        assert after.done()
        # One that is let through in the same moment in which it goes away:
        late = asyncio.ensure_future(made.admit(payer(JOB), 1_000))
        await settle_soon()
        first.settle(1)
        after.result().settle(1)
        late.cancel()
        await settle_soon()
        assert late.cancelled()
        async with asyncio.timeout(20):
            await made.admit(payer(JOB), 998)
        assert made.spent(JOB) == 2

    asyncio.run(main())


def test_waiting_has_a_bound_in_time_and_in_number() -> None:
    async def main() -> None:
        made = budgets(wait_seconds=0.01)
        await made.admit(payer(JOB), 1_000)
        with pytest.raises(BudgetQueueFull):
            await made.admit(payer(JOB), 1_000)
        few = budgets(max_waiting=1)
        await few.admit(payer(JOB), 1_000)
        waiting = asyncio.ensure_future(few.admit(payer(JOB), 1_000))
        await settle_soon()
        with pytest.raises(BudgetQueueFull):
            await few.admit(payer(JOB), 1_000)
        waiting.cancel()

    asyncio.run(main())


def test_settling_twice_counts_once() -> None:
    async def main() -> None:
        made = budgets()
        held = await made.admit(payer(JOB), 5)
        held.settle(7)
        held.settle(7)
        assert made.spent(JOB) == 7

    asyncio.run(main())


# --- periods and seeds -------------------------------------------------------------------------


def test_a_day_and_a_month_begin_at_midnight_in_utc() -> None:
    late = datetime(2026, 3, 31, 23, 30, tzinfo=UTC)
    there = late.astimezone(tz=None)
    assert period_start("day", there) == datetime(2026, 3, 31, tzinfo=UTC)
    assert period_start("month", there) == datetime(2026, 3, 1, tzinfo=UTC)
    assert period_start("month", late + timedelta(hours=1)) == datetime(2026, 4, 1, tzinfo=UTC)


def test_a_new_day_gives_the_days_budget_anew_and_the_months_not() -> None:
    async def main() -> None:
        clock = FakeClock(datetime(2026, 3, 1, 23, 59, tzinfo=UTC))
        made = budgets(clock=clock)
        day, month = BudgetLimit("key", "k1", "day", 100), BudgetLimit("key", "k1", "month", 150)
        (await made.admit(payer(day, month), 1)).settle(100)
        straddling = asyncio.ensure_future(made.admit(payer(month), 1))
        await settle_soon()
        with pytest.raises(BudgetExhausted):
            await made.admit(payer(day, month), 1)
        clock.advance(timedelta(minutes=2))
        straddling.result().settle(20)  # it began yesterday, and yesterday it counts
        assert made.spent(day) == 0
        (await made.admit(payer(day, month), 1)).settle(30)
        assert (made.spent(day), made.spent(month)) == (30, 150)
        with pytest.raises(BudgetExhausted) as refused:
            await made.admit(payer(day, month), 1)
        assert refused.value.limit == month

    asyncio.run(main())


def test_what_the_ledger_has_of_this_day_and_month_counts_from_the_start() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        for at, key, agent, cost in (
            (NOON - timedelta(hours=1), "k1", "claude", 5),
            (NOON - timedelta(hours=1), "k2", "other", 70),
            (NOON - timedelta(days=1), "k1", "claude", 900),  # another month: noon is that of the first
        ):
            await ledger.save_call(make_call(at=at, api_key_id=key, agent=agent, micros=cost, job_id="j1"))
        made = budgets(ledger)
        await made.seed()
        await made.load_job("j1")
        spent: Sequence[tuple[BudgetLimit, int]] = [
            (BudgetLimit("key", "k1", "day", 1), 5),
            (BudgetLimit("key", "k1", "month", 1), 5),
            (BudgetLimit("key", "k2", "day", 1), 70),
            (BudgetLimit("agent", "claude", "day", 1), 5),
            (BudgetLimit("service", "", "day", 1), 75),
            (BudgetLimit("job", "j1", "job", 1), 975),
        ]
        for allowance, expected in spent:
            assert made.spent(allowance) == expected, allowance
        made.forget_job("j1")
        assert made.spent(JOB) == 0

    asyncio.run(main())


@settings(max_examples=60, deadline=None)
@given(
    limit=st.integers(1, 2_000),
    calls=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), min_size=1, max_size=40),
    seed=st.integers(0, 1 << 30),
)
def test_calls_that_cost_no_more_than_they_reserve_are_never_more_than_one_over(
    limit: int, calls: list[tuple[int, int]], seed: int
) -> None:
    async def main() -> None:
        allowance = BudgetLimit("job", "j1", "job", limit)
        made = budgets()
        chance = random.Random(seed)  # noqa: S311  # any order will do
        flying: list[tuple[Reservation, int]] = []
        landed: list[int] = []
        waiting = [
            (asyncio.ensure_future(made.admit(payer(allowance), max(call))), min(call)) for call in calls
        ]
        while waiting or flying:
            await settle_soon()
            for task, cost in list(waiting):
                if task.done():
                    waiting.remove((task, cost))
                    if task.exception() is None:
                        flying.append((task.result(), cost))
            if flying:
                held, cost = flying.pop(chance.randrange(len(flying)))
                held.settle(cost)
                landed.append(cost)
            elif waiting:
                raise AssertionError("nothing is in flight, and somebody waits")
        assert made.spent(allowance) == sum(landed)
        assert sum(landed) <= limit or sum(landed) - max(landed) < limit

    asyncio.run(main())


def test_a_shared_limit_is_told_of_once_in_each_period_when_its_share_is_reached() -> None:
    async def main() -> None:
        clock = FakeClock()
        made = budgets(clock=clock)
        day, month = BudgetLimit("key", "k1", "day", 1_000), BudgetLimit("service", "", "month", 10_000)
        account = payer(day, month)

        async def spend(micros: int) -> list[tuple[str, str, int]]:
            near = (await made.admit(account, 1)).settle(micros)
            return [(each.limit.scope, each.limit.period, each.settled_micros) for each in near]

        assert await spend(799) == []
        assert await spend(1) == [("key", "day", 800)]
        assert await spend(100) == []
        clock.now += timedelta(days=1)
        assert await spend(900) == [("key", "day", 900)]
        clock.now += timedelta(days=1)
        assert await spend(7_000) == [("key", "day", 7_000), ("service", "month", 8_800)]
        of_a_job = BudgetLimit("job", "j2", "job", 1_000)
        reservation_of_a_job = await made.admit(payer(of_a_job, job="j2"), 1)
        assert reservation_of_a_job.settle(990) == []
        assert reservation_of_a_job.settle(990) == ()

    asyncio.run(main())


def test_a_restart_tells_of_no_limit_again() -> None:
    async def main() -> None:
        ledger, clock = MemoryLedger(), FakeClock()
        limit = BudgetLimit("key", "k1", "day", 1_000)
        await ledger.save_call(make_call(at=clock.now, api_key_id="k1", micros=850))
        made = budgets(ledger, clock)
        await made.seed()
        assert (await made.admit(payer(limit), 1)).settle(50) == []

    asyncio.run(main())


def test_calls_side_by_side_tell_of_a_limit_once_at_the_share_of_the_settings() -> None:
    async def main() -> None:
        made = budgets(near_share=0.5)
        limit = BudgetLimit("agent", "claude", "day", 1_001)
        held = [await made.admit(payer(limit), 10) for _ in range(10)]
        near = [each for one in held for each in one.settle(100)]
        assert [each.settled_micros for each in near] == [600]  # half of it is 500.5

    asyncio.run(main())
