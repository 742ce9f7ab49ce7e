"""The forecast of `Control`: the jobs that it rests on, the spending, and the budgets, over a real store."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from steadyhand.agents import BUILT_IN_AGENTS, Agent, Catalog
from steadyhand.control import Caller, Control, Forecast, ForecastRequest
from steadyhand.control.forecast import FORECAST_STATES, MAX_KEYS
from steadyhand.errors import Forbidden
from steadyhand.event_log import EventFeed
from steadyhand.forecast import Quantiles
from steadyhand.gateway import create_shared_limits_getter
from steadyhand.job import Cost, Run, State
from steadyhand.ports import ALL_SCOPES, NO_LIMITS, BudgetLimit, Checkouts, KeyLimits
from steadyhand.queue.local import LocalQueue
from steadyhand.store import SqlStore, open_store
from steadyhand.testing.contracts.samples import FakeClock, accepted_draft, make_call, make_job

ADMIN = Caller("k_admin", ALL_SCOPES)
ONE, TWO = (Caller(name, frozenset({"read"})) for name in ("k_one", "k_two"))
READER = Caller("k_reader", frozenset({"read", "read:all"}))
REVIEWER = Agent("reviewer", "Reviews.", day_micros=20_000_000)
LIMITS = {
    "k_one": KeyLimits(day_micros=10_000_000, month_micros=60_000_000),
    "k_two": KeyLimits(month_micros=1_000_000),
    **{f"k_{number}": KeyLimits(day_micros=1) for number in range(MAX_KEYS)},
}
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True)
class World:
    control: Control
    store: SqlStore
    clock: FakeClock

    async def add_jobs(self, *micros: int, seconds: float = 60, **changes: Any) -> None:
        """Store an ended job of each cost, with one run of this length."""
        now = self.clock()
        for amount in micros:
            runs = (Run(1, State.COMPLETED, None, now, now + timedelta(seconds=seconds)),)
            fields = {"state": State.COMPLETED, "finished_at": now, "cost": Cost(amount, "ledger")} | changes
            await self.store.add(make_job(created_at=now, runs=runs, **fields), accepted_draft())

    async def spend(self, micros: int, ago: timedelta = HOUR, **fields: Any) -> None:
        await self.store.save_call(make_call(at=self.clock() - ago, micros=micros, **fields))

    async def forecast(self, caller: Caller = ADMIN, **request: Any) -> Forecast:
        return await self.control.forecast(caller, ForecastRequest(**request))


@asynccontextmanager
async def world_at(root: Path) -> AsyncIterator[World]:
    clock = FakeClock()
    store = await open_store(f"sqlite:///{root / 'd.db'}", clock=clock)
    try:
        control = Control(
            store=store,
            queue=LocalQueue(store, capacity=1, max_queued=8),
            checkouts=cast("Checkouts", None),  # no forecast looks at files
            feed=EventFeed(),
            ledger=store,
            catalog=Catalog({**BUILT_IN_AGENTS, "reviewer": REVIEWER}),
            clock=clock,
            get_shared_limits=create_shared_limits_getter(
                lambda key_id: LIMITS.get(key_id, NO_LIMITS), 50_000_000
            ),
            list_limited_keys=lambda: list(LIMITS),
        )
        yield World(control, store, clock)
    finally:
        await store.close()


def in_world(root: Path, scene: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def play() -> None:
        async with asyncio.timeout(60), world_at(root) as world:
            await scene(world)

    asyncio.run(play())


def limits_of(forecast: Forecast) -> list[tuple[str, str, str]]:
    return [(each.limit.scope, each.limit.name, each.limit.period) for each in forecast.budgets]


def test_a_forecast_rests_on_the_jobs_of_the_agent_and_without_one_of_the_default_agent(
    tmp_path: Path,
) -> None:
    async def scene(world: World) -> None:
        await world.add_jobs(*range(100, 1100, 100))
        await world.add_jobs(*range(1, 6), agent="reviewer", seconds=5)
        default = await world.forecast()
        assert (default.agent, default.sampled) == ("claude", 10)
        assert default.cost == Quantiles(500, 900, 10)
        assert default.seconds == Quantiles(60.0, 60.0, 10)
        reviewer = await world.forecast(agent="reviewer")
        assert (reviewer.cost, reviewer.seconds) == (Quantiles(3, 5, 5), Quantiles(5.0, 5.0, 5))

    in_world(tmp_path, scene)


def test_a_forecast_is_none_for_few_jobs_and_for_jobs_without_a_price(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.add_jobs(*range(4))
        few = await world.forecast()
        assert (few.sampled, few.cost, few.seconds) == (4, None, None)
        await world.add_jobs(*[0] * 9, cost=Cost(700, "ledger", priced=False))
        unpriced = await world.forecast()
        assert (unpriced.sampled, unpriced.cost) == (13, None)
        assert unpriced.seconds == Quantiles(60.0, 60.0, 13)
        assert (await world.forecast(agent="nobody")).cost is None

    in_world(tmp_path, scene)


def test_jobs_that_were_stopped_and_jobs_before_the_days_do_not_count(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.add_jobs(*[1] * 6)
        world.clock.advance(2 * DAY)
        for state in State:
            await world.add_jobs(*[50] * 2, state=state)
        assert (await world.forecast(days=3)).sampled == 6 + 2 * len(FORECAST_STATES)
        assert (await world.forecast(days=1)).sampled == 2 * len(FORECAST_STATES)

    in_world(tmp_path, scene)


def test_workspace_model_and_key_narrow_the_jobs(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.add_jobs(*[1] * 5, workspace="infra", model="claude-haiku-5")
        await world.add_jobs(*[9] * 7, api_key_id="k_two")
        assert (await world.forecast(workspace="infra")).cost == Quantiles(1, 1, 5)
        assert (await world.forecast(model="claude-haiku-5")).sampled == 5
        assert (await world.forecast(api_key_id="k_two")).cost == Quantiles(9, 9, 7)

    in_world(tmp_path, scene)


def test_a_key_sees_its_own_jobs_spending_and_budgets_alone(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.add_jobs(*[1] * 5)
        await world.add_jobs(*[9] * 7, api_key_id="k_two")
        await world.spend(3_000_000)
        await world.spend(500_000, api_key_id="k_two")
        own = await world.forecast(TWO)
        assert (own.sampled, own.request.api_key_id) == (7, "k_two")
        assert own.burn is not None
        assert own.burn.micros == 500_000
        assert limits_of(own) == [("key", "k_two", "month")]
        foreign = await world.forecast(TWO, api_key_id="k_one", all_budgets=True, agent="reviewer")
        assert (foreign.sampled, foreign.cost) == (0, None)
        assert limits_of(foreign) == [("key", "k_two", "month")]
        reader = await world.forecast(READER)
        assert (reader.sampled, reader.burn, limits_of(reader)) == (12, None, [])
        with pytest.raises(Forbidden):
            await world.forecast(Caller("k_one", frozenset({"submit"})))

    in_world(tmp_path, scene)


def test_a_budget_tells_its_spending_of_the_period_and_when_it_runs_out(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        # It is noon of the first of March, and 123456 microseconds.
        await world.spend(6_000_000)
        await world.spend(30_000_000, 20 * DAY)
        forecast = await world.forecast(ONE)
        day, month = forecast.budgets
        assert day.limit == BudgetLimit("key", "k_one", "day", 10_000_000)
        assert (day.spent_micros, month.spent_micros) == (6_000_000, 6_000_000)
        assert (day.is_exhausted, month.is_exhausted) == (False, False)
        assert day.burn == month.burn == forecast.burn
        # Half a day took 6 dollars, so 4 more last for 8 hours, and 54 more for four days and a half.
        assert day.runs_out_at is not None
        assert abs(day.runs_out_at - (world.clock() + 8 * HOUR)) < timedelta(seconds=1)
        assert month.runs_out_at is not None
        assert abs(month.runs_out_at - (world.clock() + 4.5 * DAY)) < timedelta(seconds=10)
        await world.spend(4_000_000)
        day = (await world.forecast(ONE)).budgets[0]
        assert (day.is_exhausted, day.runs_out_at) == (True, None)

    in_world(tmp_path, scene)


def test_spending_of_yesterday_is_in_the_rate_and_not_in_the_budget_of_today(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.spend(3_000_000, DAY)
        await world.spend(9_000_000, priced=False)
        day = (await world.forecast(ONE)).budgets[0]
        assert (day.spent_micros, day.priced) == (9_000_000, False)
        assert day.burn is not None
        assert day.burn.micros == 12_000_000
        # 12 dollars in a day and a half; the last dollar lasts three hours.
        assert day.runs_out_at is not None
        assert abs(day.runs_out_at - (world.clock() + 3 * HOUR)) < timedelta(seconds=1)

    in_world(tmp_path, scene)


def test_an_admin_sees_the_budgets_that_the_job_would_meet_and_all_if_asked_for(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.spend(2_000_000, agent="reviewer", api_key_id="k_two")
        forecast = await world.forecast(agent="reviewer", api_key_id="k_two")
        assert limits_of(forecast) == [
            ("agent", "reviewer", "day"),
            ("key", "k_two", "month"),
            ("service", "", "day"),
        ]
        assert [budget.spent_micros for budget in forecast.budgets] == [2_000_000] * 3
        assert [budget.is_exhausted for budget in forecast.budgets] == [False, True, False]
        assert limits_of(await world.forecast()) == [("service", "", "day")]
        everything = limits_of(await world.forecast(all_budgets=True))
        assert len(set(everything)) == len(everything)
        assert {("agent", "reviewer", "day"), ("key", "k_one", "month"), ("service", "", "day")} <= set(
            everything
        )
        assert len({name for scope, name, _ in everything if scope == "key"}) == MAX_KEYS - 1  # and its own

    in_world(tmp_path, scene)
