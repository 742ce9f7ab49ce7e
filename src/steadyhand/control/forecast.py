"""Forecasts of the cost and the time of a job, from the newest jobs before it, and of the end of budgets."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

from steadyhand.control.deps import ControlDeps
from steadyhand.control.requests import Caller
from steadyhand.forecast import BURN_DAYS, BurnRate, Quantiles, burn_rate, quantiles, runs_out_at
from steadyhand.job import State
from steadyhand.ports import (
    BudgetLimit,
    CalendarPeriod,
    GetSharedLimits,
    JobFilter,
    UsageQuery,
    period_bounds,
)

SAMPLE_JOBS = 1000
"""The newest jobs that a forecast rests on, at most."""
MAX_KEYS = 200
"""The keys whose budgets are told at once."""
FORECAST_STATES = frozenset({State.COMPLETED, State.FAILED, State.TIMEOUT})
"""The ends of jobs that had their course; others were stopped before, or did not begin."""


@dataclass(frozen=True, slots=True)
class ForecastRequest:
    """A request for a forecast; None is the default agent, any workspace, any model and any visible key.

    With `all_budgets` all budgets of agents and keys are told, not only those that a job of this agent and the
    caller would meet.
    """

    agent: str | None = None
    workspace: str | None = None
    model: str | None = None
    api_key_id: str | None = None
    days: int = 30
    all_budgets: bool = False


@dataclass(frozen=True, slots=True)
class Spending:
    """The spending of a budget's owner. `priced` is False if a part of it is an upper bound of an unknown price."""

    micros_by_day: dict[date, int]
    priced: bool

    def since(self, day: date) -> int:
        """Return the micro-dollars from this day on."""
        return sum(micros for each, micros in self.micros_by_day.items() if each >= day)


@dataclass(frozen=True, slots=True)
class BudgetForecast:
    """A budget with its spending in this period. `runs_out_at` is None if it lasts, is spent, or nobody can tell."""

    limit: BudgetLimit
    spent_micros: int
    priced: bool
    resets_at: datetime
    burn: BurnRate | None
    runs_out_at: datetime | None

    @property
    def is_exhausted(self) -> bool:
        """True if nothing is left until `resets_at`."""
        return self.spent_micros >= self.limit.limit_micros


@dataclass(frozen=True, slots=True)
class Forecast:
    """A forecast for a job. `sampled` is the number of jobs that were looked at; amounts are micro-dollars."""

    agent: str
    request: ForecastRequest
    since: datetime
    sampled: int
    cost: Quantiles[int] | None
    seconds: Quantiles[float] | None
    burn: BurnRate | None
    burn_priced: bool
    budgets: Sequence[BudgetForecast]


class Forecaster:
    """Looks at past jobs and the ledger. Changes nothing."""

    def __init__(
        self,
        deps: ControlDeps,
        get_shared_limits: GetSharedLimits,
        list_limited_keys: Callable[[], Sequence[str]],
    ) -> None:
        self._deps = deps
        self._get_shared_limits = get_shared_limits
        self._list_limited_keys = list_limited_keys

    async def forecast(self, caller: Caller, request: ForecastRequest) -> Forecast:
        """Return the forecast for a job of an agent.

        It rests on jobs that the caller may see. Without `admin` the spending is that of the caller's key, and so are
        the budgets.
        """
        caller.require_scope("read")
        now = self._deps.clock()
        agent = request.agent or self._deps.catalog.defaults.agent
        since = now - timedelta(days=request.days)
        key_id = request.api_key_id
        is_admin, sees_all = caller.has_scope("admin"), caller.has_scope("read:all")
        sample = []
        if sees_all or key_id in (None, caller.key_id):
            job_filter = JobFilter(
                api_key_id=key_id if sees_all else caller.key_id,
                states=FORECAST_STATES,
                agent=agent,
                workspace=request.workspace,
                created_after=since,
            )
            sample = list(await self._deps.store.sample_jobs(job_filter, SAMPLE_JOBS, request.model))
        if not is_admin:
            key_id = caller.key_id
        total = (
            await self._spending("service", "", now)
            if key_id is None
            else await self._spending("key", key_id, now)
        )
        return Forecast(
            agent=agent,
            request=replace(request, api_key_id=request.api_key_id if sees_all else caller.key_id),
            since=since,
            sampled=len(sample),
            cost=quantiles(job.micros for job in sample if job.micros is not None),
            seconds=quantiles(job.seconds for job in sample if job.seconds is not None),
            burn=burn_rate(total.micros_by_day, now),
            burn_priced=total.priced,
            budgets=await self._budgets(caller, replace(request, agent=agent), now),
        )

    async def _budgets(
        self, caller: Caller, request: ForecastRequest, now: datetime
    ) -> Sequence[BudgetForecast]:
        catalog, is_admin = self._deps.catalog, caller.has_scope("admin")
        key_id = request.api_key_id if is_admin and request.api_key_id is not None else caller.key_id
        agents, keys = [request.agent or ""], [key_id]
        if is_admin and request.all_budgets:
            agents = sorted({*agents, *catalog.agents})
            keys = list(dict.fromkeys([*keys, *self._list_limited_keys()]))[:MAX_KEYS]
        limits: dict[BudgetLimit, None] = {}
        for each in agents:
            limits |= dict.fromkeys(self._get_shared_limits(key_id, catalog.agent(each)))
        for each in keys:
            limits |= dict.fromkeys(self._get_shared_limits(each, catalog.agent(agents[0])))
        visible = [limit for limit in limits if is_admin or limit.scope == "key"]
        return await self._forecast_budgets(visible, now)

    async def _forecast_budgets(
        self, limits: Iterable[BudgetLimit], now: datetime
    ) -> Sequence[BudgetForecast]:
        found: list[BudgetForecast] = []
        spending: dict[tuple[str, str], Spending] = {}
        for limit in limits:
            if limit.period == "job":
                continue
            owner = (limit.scope, limit.name)
            if owner not in spending:
                spending[owner] = await self._spending(limit.scope, limit.name, now)
            found.append(_forecast_budget(limit, limit.period, spending[owner], now))
        return found

    async def _spending(self, scope: str, name: str, now: datetime) -> Spending:
        """Return the spending of this month and of the days of the rate, from the sums by day."""
        start = min(period_bounds("month", now)[0], period_bounds("day", now)[0] - timedelta(days=BURN_DAYS))
        query = UsageQuery(
            by=("day",),
            since=start,
            api_key_id=name if scope == "key" else None,
            agent=name if scope == "agent" else None,
        )
        rows = await self._deps.ledger.usage(query)
        by_day = {date.fromisoformat(row.group["day"]): row.total.micros for row in rows}
        return Spending(by_day, all(row.total.priced for row in rows))


def _forecast_budget(
    limit: BudgetLimit, period: CalendarPeriod, spending: Spending, now: datetime
) -> BudgetForecast:
    began, resets_at = period_bounds(period, now)
    spent = spending.since(began.date())
    burn = burn_rate(spending.micros_by_day, now)
    return BudgetForecast(
        limit=limit,
        spent_micros=spent,
        priced=spending.priced,
        resets_at=resets_at,
        burn=burn,
        runs_out_at=runs_out_at(limit.limit_micros, spent, burn, now, resets_at),
    )
