"""Sums of usage and cost, added up by the database."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, func, select

from steadyhand.ports import TokenCounts, UsageGroup, UsageQuery, UsageRow, UsageTotal
from steadyhand.store.mapping import MICROSECONDS_PER_DAY, to_microseconds
from steadyhand.store.schema import calls

_TOKEN_COLUMNS = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
_GROUP_COLUMNS: dict[UsageGroup, Any] = {
    "api_key": calls.c.api_key_id,
    "agent": calls.c.agent,
    "model": calls.c.model,
    "provider": calls.c.provider,
    "day": calls.c.day,
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def sum_usage(connection: Connection, query: UsageQuery) -> list[UsageRow]:
    """Return the sums of calls by group; see `Ledger.usage`."""
    groups = [_GROUP_COLUMNS[by].label(by) for by in query.by]
    sums = [
        func.coalesce(func.sum(calls.c[name]), 0).label(f"sum_{name}") for name in (*_TOKEN_COLUMNS, "micros")
    ]
    flags = [
        func.coalesce(func.min(calls.c[name]), 1).label(f"all_{name}") for name in ("priced", "complete")
    ]
    statement = (
        select(*groups, func.count().label("calls"), *sums, *flags)
        .where(*_conditions(query))
        .group_by(*groups)
        .order_by(*groups)
    )
    return [
        UsageRow({by: _group_text(by, row[by]) for by in query.by}, _total_from_row(row))
        for row in connection.execute(statement).mappings()
    ]


def _conditions(query: UsageQuery) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [calls.c.settled == 1]
    if query.since is not None:
        since = to_microseconds(query.since)
        # The day alone has an index.
        conditions += [calls.c.day >= since // MICROSECONDS_PER_DAY, calls.c.at >= since]
    if query.until is not None:
        until = to_microseconds(query.until)
        conditions += [calls.c.day <= until // MICROSECONDS_PER_DAY, calls.c.at < until]
    if query.since_run is not None:
        conditions.append(calls.c.run >= query.since_run)
    for column, expected in (
        (calls.c.api_key_id, query.api_key_id),
        (calls.c.agent, query.agent),
        (calls.c.model, query.model),
        (calls.c.job_id, query.job_id),
    ):
        if expected is not None:
            conditions.append(column == expected)
    return conditions


def _group_text(by: UsageGroup, value: Any) -> str:
    return (_EPOCH + timedelta(days=value)).date().isoformat() if by == "day" else str(value)


def _total_from_row(row: RowMapping) -> UsageTotal:
    tokens = TokenCounts(**{name: int(row[f"sum_{name}"]) for name in _TOKEN_COLUMNS})
    priced, complete = bool(row["all_priced"]), bool(row["all_complete"])
    return UsageTotal(row["calls"], tokens, int(row["sum_micros"]), priced, complete)
