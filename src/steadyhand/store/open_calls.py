"""The settlement of calls of a model whose end nobody stored: their process is gone."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Select, exists, literal_column, select, update

from steadyhand.store import usage_sums
from steadyhand.store.schema import calls, jobs, runs

# A bound parameter would not let SQLite use the index of the open calls.
_IS_OPEN = calls.c.settled == literal_column("0")


def settle_of_node(connection: Connection, node: str | None) -> int:
    """Settle the open calls, with a `node` those of its runs alone; see `Ledger.settle_open_calls`."""
    query = select(calls).where(_IS_OPEN)
    if node is not None:
        is_elsewhere = exists().where(
            jobs.c.id == calls.c.job_id,
            runs.c.job == jobs.c.sequence,
            runs.c.number == calls.c.run,
            runs.c.node != node,
        )
        query = query.where(~is_elsewhere)
    return _settle(connection, query)


def settle_of_run(connection: Connection, job_id: str, run: int) -> int:
    """Settle the open calls of a run; see `Ledger.settle_calls_of_run`."""
    return _settle(connection, select(calls).where(_IS_OPEN, calls.c.job_id == job_id, calls.c.run == run))


def _settle(connection: Connection, query: Select[Any]) -> int:
    rows = connection.execute(query.with_for_update()).mappings().all()
    settled: list[Mapping[str, Any]] = [
        {**row, "settled": 1, "complete": 0, "micros": row["reserved_micros"]} for row in rows
    ]
    for row in settled:
        values = {name: row[name] for name in ("settled", "complete", "micros")}
        connection.execute(update(calls).where(calls.c.id == row["id"]).values(values))
    usage_sums.add_calls(connection, added=settled, removed=())
    return len(rows)
