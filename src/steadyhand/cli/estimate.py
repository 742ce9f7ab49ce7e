"""`steadyhand run --estimate`: what a job is likely to cost and to last, and the budgets that it would meet."""

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from steadyhand.cli.console import CommandOutput
from steadyhand.cli.sanitize import as_mapping, display_usd, format_duration, one_line, parse_time
from steadyhand.client import Client


def load_estimate(
    client: Client, agent: str | None, workspace: str | None, model: str | None
) -> Mapping[str, Any]:
    """Return the forecast for a job; without enough jobs in the workspace and of the model, that of the agent alone."""
    forecast = client.forecast(agent=agent, workspace=workspace, model=model)
    if forecast.cost is None and forecast.duration is None and (workspace or model):
        forecast = client.forecast(agent=agent)
    return forecast.document


def print_estimate(
    output: CommandOutput, forecast: Mapping[str, Any], *, budget: float | None, is_narrow: bool
) -> None:
    """Print a forecast on stdout; `is_narrow` if a workspace or a model was asked for."""
    lines = [_title(forecast, is_narrow=is_narrow)]
    cost, duration = as_mapping(forecast.get("cost")), as_mapping(forecast.get("duration"))
    if cost:
        p50, p90 = (display_usd(cost.get(name, "0")) for name in ("p50_usd", "p90_usd"))
        lines.append(f"cost      half at most {p50}, nine of ten at most {p90} ({_jobs(cost.get('jobs'))})")
    else:
        lines.append(f"cost      not known: fewer than {_least(forecast)} jobs with a known cost")
    if duration:
        p50, p90 = (_length(duration.get(name)) for name in ("p50_seconds", "p90_seconds"))
        lines.append(
            f"duration  half at most {p50}, nine of ten at most {p90} ({_jobs(duration.get('jobs'))})"
        )
    else:
        lines.append(f"duration  not known: fewer than {_least(forecast)} jobs")
    burn = as_mapping(forecast.get("burn"))
    if burn:
        lines.append(f"spending  {_rate(burn)}")
    rows = forecast.get("budgets")
    lines += [_budget_line(row) for row in (rows if isinstance(rows, list) else []) if isinstance(row, dict)]
    output.print_text("\n".join(lines))
    if cost and budget is not None and _is_above(cost.get("p90_usd"), budget):
        output.print_note(f"The budget of ${budget:.2f} is below the cost of one in ten such jobs.", "yellow")


def _title(forecast: Mapping[str, Any], *, is_narrow: bool) -> str:
    names = [f"agent {one_line(forecast.get('agent'), 60)}"]
    names += [
        f"{name} {one_line(forecast[name], 80)}" for name in ("workspace", "model") if forecast.get(name)
    ]
    widened = "" if not is_narrow or len(names) > 1 else ", of any workspace and model: too few of that one"
    count, days = _jobs(forecast.get("jobs")), one_line(forecast.get("days"), 6)
    return f"{', '.join(names)}: {count} of the last {days} days{widened}"


def _budget_line(budget: Mapping[str, Any]) -> str:
    owner = f"{one_line(budget.get('scope'), 10)} {one_line(budget.get('name'), 60)}".strip()
    spent, limit = (display_usd(budget.get(name, "0")) for name in ("spent_usd", "limit_usd"))
    line = f"budget    {owner}, {one_line(budget.get('period'), 10)}: {spent} of {limit} spent"
    runs_out, resets = (_moment(budget.get(name)) for name in ("runs_out_at", "resets_at"))
    if budget.get("exhausted") is True:
        return f"{line}; nothing is left until {resets}"
    if runs_out is not None:
        return f"{line}; at {_rate(as_mapping(budget.get('burn')))} it runs out {runs_out}"
    if not budget.get("burn"):
        return f"{line}; nothing was spent lately"
    return f"{line}; at this rate it lasts until {resets}"


def _rate(burn: Mapping[str, Any]) -> str:
    upper = "" if burn.get("priced") is not False else " at most (a model has no price)"
    return f"{display_usd(burn.get('usd_per_day', '0'))} a day{upper}"


def _moment(value: object) -> str | None:
    moment = parse_time(value)
    return None if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"


def _length(seconds: object) -> str:
    return format_duration(float(seconds)) if isinstance(seconds, int | float) else "?"


def _jobs(count: object) -> str:
    return "1 job" if count == 1 else f"{one_line(count, 10)} jobs"


def _least(forecast: Mapping[str, Any]) -> str:
    return one_line(forecast.get("least_jobs", "?"), 6)


def _is_above(usd: object, budget: float) -> bool:
    try:
        return Decimal(str(usd)) > Decimal(str(budget))
    except InvalidOperation:
        return False
