"""The settlement of calls of a model that were cut, and that their agents make again."""

from collections.abc import Collection

from sqlalchemy import Connection, literal_column, select, tuple_, update

from steadyhand.store import usage_sums
from steadyhand.store.schema import calls

# A bound parameter would not let SQLite use the index of the open calls.
_IS_OPEN = calls.c.settled == literal_column("0")


def settle_repeated_calls(connection: Connection, runs: Collection[tuple[str, int]]) -> int:
    """Settle the open calls of these runs at nothing; see `Ledger.settle_repeated_calls`."""
    if not runs:
        return 0
    is_of_runs = tuple_(calls.c.job_id, calls.c.run).in_(list(runs))
    rows = connection.execute(select(calls).where(_IS_OPEN, is_of_runs)).mappings().all()
    connection.execute(
        update(calls).where(_IS_OPEN, is_of_runs).values({"settled": 1, "complete": 0, "micros": 0})
    )
    changed = [{**row, "settled": 1, "complete": 0, "micros": 0} for row in rows]
    usage_sums.add_calls(connection, added=changed, removed=())
    return len(rows)
