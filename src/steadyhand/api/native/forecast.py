"""Forecasts of the cost and the time of a job (docs/http-api.md#forecast)."""

from typing import cast

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.native.serializers import compact_number
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import forecast_bodies
from steadyhand.api.schemas.route_table import RouteTable
from steadyhand.api.transport.context import get_caller, get_context
from steadyhand.api.transport.errors import json_response
from steadyhand.api.transport.params import parse_query
from steadyhand.control import BudgetForecast, Forecast, ForecastRequest
from steadyhand.errors import InvalidRequest
from steadyhand.events import format_rfc3339
from steadyhand.forecast import LEAST_JOBS, BurnRate, Quantiles
from steadyhand.money import format_dollars

router = RouteTable(tags=["jobs"])

_MAX_DAYS = 365
_SECOND_PLACES = 3


@router.get(
    "/v1/forecast",
    operation_id="getForecast",
    summary="What a job is likely to cost and to last",
    **operations.FORECAST,
)
async def get_forecast(request: Request) -> Response:
    """Return the cost and the time of half and of nine tenths of an agent's jobs, and when budgets run out.

    Without `agent` it is the default agent. Without `admin`, spending and budgets are those of the key.
    """
    caller = get_caller(request)
    caller.require_scope("read")
    query = parse_query(request, *operations.FORECAST_PARAMETERS)
    if query.get_one("budgets") not in (None, "all"):
        raise InvalidRequest.at("?budgets", "has to be all")
    wanted = ForecastRequest(
        agent=query.get_one("agent"),
        workspace=query.get_one("workspace"),
        model=query.get_one("model"),
        api_key_id=query.get_one("api_key"),
        days=query.get_int("days", 30, minimum=1, maximum=_MAX_DAYS),
        all_budgets=query.get_one("budgets") == "all",
    )
    return json_response(forecast_json(await get_context(request).control.forecast(caller, wanted)))


def forecast_json(forecast: Forecast) -> forecast_bodies.Forecast:
    """Return a forecast; what cannot be told is null."""
    request = forecast.request
    return {
        "object": "forecast",
        "agent": forecast.agent,
        "workspace": request.workspace,
        "model": request.model,
        "api_key_id": request.api_key_id,
        "days": request.days,
        "since": format_rfc3339(forecast.since),
        "jobs": forecast.sampled,
        "least_jobs": LEAST_JOBS,
        "cost": None if forecast.cost is None else _cost_json(forecast.cost),
        "duration": None if forecast.seconds is None else _duration_json(forecast.seconds),
        "burn": _burn_json(forecast.burn, is_priced=forecast.burn_priced),
        "budgets": [_budget_json(budget) for budget in forecast.budgets],
    }


def _cost_json(cost: Quantiles[int]) -> forecast_bodies.CostForecast:
    return {"p50_usd": format_dollars(cost.p50), "p90_usd": format_dollars(cost.p90), "jobs": cost.jobs}


def _duration_json(seconds: Quantiles[float]) -> forecast_bodies.TimeForecast:
    p50, p90 = (compact_number(round(value, _SECOND_PLACES)) for value in (seconds.p50, seconds.p90))
    return {"p50_seconds": p50, "p90_seconds": p90, "jobs": seconds.jobs}


def _burn_json(burn: BurnRate | None, *, is_priced: bool) -> forecast_bodies.BurnRate | None:
    if burn is None:
        return None
    since = format_rfc3339(burn.since)
    return {"usd_per_day": format_dollars(burn.micros_per_day), "since": since, "priced": is_priced}


def _budget_json(budget: BudgetForecast) -> forecast_bodies.BudgetForecast:
    limit, runs_out_at = budget.limit, budget.runs_out_at
    # A job's own budget is no shared one.
    return cast(
        "forecast_bodies.BudgetForecast",
        {
            "scope": limit.scope,
            "name": limit.name,
            "period": limit.period,
            "limit_usd": format_dollars(limit.limit_micros),
            "spent_usd": format_dollars(budget.spent_micros),
            "exhausted": budget.is_exhausted,
            "resets_at": format_rfc3339(budget.resets_at),
            "burn": _burn_json(budget.burn, is_priced=budget.priced),
            "runs_out_at": None if runs_out_at is None else format_rfc3339(runs_out_at),
        },
    )
