"""The tables of schedules and of their histories."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from steadyhand.cli.columns import Column, FittedTable
from steadyhand.cli.sanitize import format_largest_unit, one_line, parse_time
from steadyhand.clock import utc_now

_STYLES = {"fired": "green", "skipped": "yellow", "waiting": "cyan"}


def _cell(value: object, limit: int = 60, style: str = "") -> Text:
    return Text("-" if value in (None, "") else one_line(value, limit), style=style)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def next_text(schedule: Mapping[str, Any], now: datetime) -> Text:
    """Return when the next tick is, or why there is none."""
    paused = _mapping(schedule.get("paused"))
    if paused:
        return Text(f"paused: {one_line(paused.get('reason', ''), 30)}", style="yellow")
    next_at = parse_time(schedule.get("next_at"))
    return Text("-" if next_at is None else f"in {format_largest_unit((next_at - now).total_seconds())}")


def schedules_table(schedules: Iterable[Mapping[str, Any]], now: datetime | None = None) -> RenderableType:
    """Return the table of schedules, one line each."""
    now = now or utc_now()
    table = FittedTable(
        Column("NAME"),
        Column("CRON", least_width=9),
        Column("ZONE", least_width=6, drop_rank=3),
        Column("AGENT", least_width=6, drop_rank=2),
        Column("NEXT"),
        Column("LAST", drop_rank=1),
        Column("RUNS", right=True, drop_rank=5),
        Column("USD", right=True, drop_rank=4),
    )
    for schedule in schedules:
        last = _mapping(schedule.get("last"))
        outcome = last.get("outcome") or ("goes on" if last else None)
        table.add_row(
            _cell(schedule.get("name"), 64),
            _cell(schedule.get("cron"), 60),
            _cell(schedule.get("timezone"), 40),
            _cell(_mapping(schedule.get("job")).get("agent"), 64),
            next_text(schedule, now),
            _cell(outcome, 30, {"success": "green", "goes on": "cyan"}.get(str(outcome), "")),
            _cell(schedule.get("runs"), 12),
            _cell(schedule.get("spent_usd"), 20),
        )
    return table


def ticks_table(ticks: Iterable[Mapping[str, Any]]) -> RenderableType:
    """Return the table of the ticks of a schedule, one line each."""
    table = FittedTable(
        Column("TIME"),
        Column("KIND", drop_rank=2),
        Column("RESULT"),
        Column("REASON", least_width=8, drop_rank=1),
        Column("JOB"),
        Column("OUTCOME", drop_rank=3),
        Column("USD", right=True, drop_rank=4),
    )
    for tick in ticks:
        result, count = one_line(tick.get("result", "?"), 20), tick.get("count")
        reason = tick.get("reason")
        if reason is not None and isinstance(count, int) and count > 1:
            reason = f"{reason} ({count})"
        moment = parse_time(tick.get("scheduled_at"))
        table.add_row(
            _cell(None if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}Z"),
            _cell(tick.get("kind"), 10),
            Text(result, style=_STYLES.get(result, "")),
            _cell(reason, 40),
            _cell(tick.get("job_id"), 20),
            _cell(tick.get("outcome"), 30),
            _cell(tick.get("cost_usd") if tick.get("job_id") else None, 20),
        )
    return table
