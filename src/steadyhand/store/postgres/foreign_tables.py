"""Tables of another program in the database that have the names of ours."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from steadyhand.store.schema import METADATA

TABLES: Final = (
    "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace "
    "AND relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY relname"
)
"""The names of all tables and views in the schema that the service would use."""
FOREIGN_REMEDY: Final = "Use an empty database."
_OTHERS: Final = (
    "budget_leases",
    "credential_states",
    "events_0",
    "events_default",
    "job_texts",
    "key_rates",
    "leftover_events",
    "node_calls",
    "procrastinate_jobs",
    "queue_nodes",
    "queue_places",
    "queue_turn",
)
"""The tables that are not in `METADATA`: partitions, jobs whose events are left, the search index, those of the queue,
its engine and shared limits."""


def foreign_tables(rows: Iterable[Sequence[Any]]) -> str | None:
    """Return a description of a database with such tables and no schema of ours; None if none is in the way."""
    own = {*METADATA.tables, *_OTHERS}
    found = [f"`{name}`" for (name, *_) in rows if name in own]
    if not found:
        return None
    tables = "a table" if len(found) == 1 else "tables"
    return f"which has {tables} of another program with a name that Steadyhand needs: {', '.join(found)}"
