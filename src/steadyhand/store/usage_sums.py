"""What calls of models came to together, added up by the database."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, func, select

from steadyhand.ports import Spent, Tokens, UsageBy, UsageQuery, UsageRow
from steadyhand.store.mapping import DAY, micros
from steadyhand.store.schema import calls

_COUNTED = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
_COLUMNS: dict[UsageBy, Any] = {
    "api_key": calls.c.api_key_id,
    "agent": calls.c.agent,
    "model": calls.c.model,
    "provider": calls.c.provider,
    "day": calls.c.day,
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def usage(connection: Connection, query: UsageQuery) -> list[UsageRow]:
    """Do `Ledger.usage`."""
    groups = [_COLUMNS[by].label(by) for by in query.by]
    sums = [func.coalesce(func.sum(calls.c[name]), 0).label(f"sum_{name}") for name in (*_COUNTED, "micros")]
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
        UsageRow({by: _shown(by, row[by]) for by in query.by}, _spent(row))
        for row in connection.execute(statement).mappings()
    ]


def _conditions(query: UsageQuery) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [calls.c.settled == 1]
    if query.since is not None:
        since = micros(query.since)
        # The day alone has an index.
        found += [calls.c.day >= since // DAY, calls.c.at >= since]
    if query.until is not None:
        until = micros(query.until)
        found += [calls.c.day <= until // DAY, calls.c.at < until]
    if query.since_run is not None:
        found.append(calls.c.run >= query.since_run)
    for column, wanted in (
        (calls.c.api_key_id, query.api_key_id),
        (calls.c.agent, query.agent),
        (calls.c.model, query.model),
        (calls.c.job_id, query.job_id),
    ):
        if wanted is not None:
            found.append(column == wanted)
    return found


def _shown(by: UsageBy, value: Any) -> str:
    return (_EPOCH + timedelta(days=value)).date().isoformat() if by == "day" else str(value)


def _spent(row: RowMapping) -> Spent:
    tokens = Tokens(**{name: int(row[f"sum_{name}"]) for name in _COUNTED})
    priced, complete = bool(row["all_priced"]), bool(row["all_complete"])
    return Spent(row["calls"], tokens, int(row["sum_micros"]), priced, complete)
