"""The page of costs: by day, and the sums of each agent, model and key in the last days."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.responses import Response

from steadyhand.clock import utc_now
from steadyhand.control import BudgetForecast, Forecast, ForecastRequest
from steadyhand.errors import InvalidRequest
from steadyhand.forecast import LEAST_JOBS
from steadyhand.ports import UsageGroup, UsageQuery, UsageRow, UsageTotal
from steadyhand.web.job_list import key_names
from steadyhand.web.web_app import Visit

SPANS = (7, 30, 90)
"""The numbers of days that can be chosen."""
_MAX_ROWS = 200
_CHART_HEIGHT = 120
_MAX_NAME = 500
_MAX_FORECASTS = 8
_SPENT, _NEAR = 100, 80


@dataclass(frozen=True, slots=True)
class DayBar:
    """The bar of one day in the chart."""

    day: str
    total: UsageTotal
    height: int


async def costs_page(visit: Visit) -> Response:
    """Show the calls of the models of the last days; a key without `admin` sees its own."""
    caller = visit.caller
    caller.require_scope("read")
    text = visit.request.query_params.get("days", "")
    days = int(text) if text in {str(span) for span in SPANS} else 30
    today = utc_now().replace(hour=0, minute=0, second=0, microsecond=0)
    since = today - timedelta(days=days - 1)

    async def rows(*by: UsageGroup) -> Sequence[UsageRow]:
        return await visit.control.usage(caller, UsageQuery(by=by, since=since, limit=_MAX_ROWS))

    names = key_names(visit)
    tables = [
        ("Agents", _sorted(await rows("agent"), "agent", {})),
        ("Workspaces", _sorted(await rows("workspace"), "workspace", {"": "none"})),
        ("Models", _sorted(await rows("model"), "model", {})),
        ("Keys", _sorted(await rows("api_key"), "api_key", names)),
    ]
    bars = day_bars(await rows("day"), since, days)
    total = UsageTotal()
    for bar in bars:
        total = total.plus(bar.total)
    forecasts, newest = await _forecasts(visit, tables[0][1], days)
    return visit.page(
        "costs.html",
        tables=tables,
        bars=bars,
        total=total,
        cached=cached_share(total),
        days=days,
        spans=SPANS,
        height=_CHART_HEIGHT,
        forecasts=forecasts,
        burn=newest.burn,
        burn_priced=newest.burn_priced,
        is_admin=caller.has_scope("admin"),
        budgets=[_budget_row(budget, names) for budget in newest.budgets],
        least=LEAST_JOBS,
    )


async def _forecasts(
    visit: Visit, rows: Sequence[Mapping[str, Any]], days: int
) -> tuple[Sequence[Forecast], Forecast]:
    """Return the forecasts of the dearest agents, and one with the rate of spending and all budgets."""
    caller, control = visit.caller, visit.control
    newest = await control.forecast(caller, ForecastRequest(days=days, all_budgets=True))
    agents = [row["name"] for row in rows[:_MAX_FORECASTS] if row["name"] != newest.agent]
    others = [await control.forecast(caller, ForecastRequest(agent=name, days=days)) for name in agents]
    return [each for each in (newest, *others) if each.sampled], newest


def _budget_row(budget: BudgetForecast, key_names: Mapping[str, str]) -> Mapping[str, Any]:
    """Return a budget with its owner in words and the share of it that is spent, in percent."""
    limit = budget.limit
    name = key_names.get(limit.name, limit.name) if limit.scope == "key" else limit.name
    share = 100 if budget.is_exhausted else min(99, 100 * budget.spent_micros // max(1, limit.limit_micros))
    return {"budget": budget, "name": name, "share": share, "level": _level(share)}


def _level(share: int) -> str:
    return "bad" if share >= _SPENT else "warning" if share >= _NEAR else "good"


async def show_estimate(visit: Visit) -> Response:
    """Show the likely cost and time of a job of the agent, the workspace and the model that the composer has."""
    error, forecast = None, None

    def chosen(name: str) -> str | None:
        return visit.request.query_params.get(name, "").strip()[:_MAX_NAME] or None

    wanted = ForecastRequest(chosen("agent"), chosen("workspace"), chosen("model"))
    try:
        forecast = await visit.control.forecast(visit.caller, wanted)
    except InvalidRequest as problem:
        error = problem.detail
    return visit.page("estimate.html", forecast=forecast, error=error, least=LEAST_JOBS)


def day_bars(rows: Sequence[UsageRow], since: datetime, days: int) -> Sequence[DayBar]:
    """Return a bar for each day from `since` on, also for those without a call."""
    totals = {row.group["day"]: row.total for row in rows}
    names = [(since.astimezone(UTC) + timedelta(days=number)).strftime("%Y-%m-%d") for number in range(days)]
    highest = max((totals[name].micros for name in names if name in totals), default=0)
    bars = []
    for name in names:
        total = totals.get(name, UsageTotal(0))
        height = round(_CHART_HEIGHT * total.micros / highest) if highest else 0
        bars.append(DayBar(name, total, max(height, 2) if total.calls else 0))
    return bars


def cached_share(total: UsageTotal) -> int | None:
    """Return the share of the input that came from the cache, in percent; None without input."""
    tokens = total.tokens
    read = tokens.input + tokens.cache_read + tokens.cache_write_5m + tokens.cache_write_1h
    return round(100 * tokens.cache_read / read) if read else None


def _sorted(
    rows: Sequence[UsageRow], group: UsageGroup, names: Mapping[str, str]
) -> Sequence[Mapping[str, Any]]:
    """Return the rows of a table, the dearest first, with their share of the dearest."""
    most = max((row.total.micros for row in rows), default=0)
    return [
        {
            "name": names.get(row.group[group], row.group[group]),
            "total": row.total,
            "share": round(100 * row.total.micros / most) if most else 0,
            "cached": cached_share(row.total),
        }
        for row in sorted(rows, key=lambda row: (-row.total.micros, row.group[group]))
    ]
