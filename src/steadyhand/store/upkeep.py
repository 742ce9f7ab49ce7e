"""Upkeep of the database, a small piece in each transaction, so that nobody waits for it."""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, RowMapping, bindparam, select

from steadyhand.store.derived import SEARCH_PROGRESS, SOURCE_COLUMNS, first_searchable
from steadyhand.store.driver import POSTGRES, execute
from steadyhand.store.schema import jobs
from steadyhand.store.search import INDEXED_CHARACTERS, TextRow, add_texts, text_row

_JOBS_AT_ONCE = 200
_CHARACTERS_AT_ONCE = 200_000
_NEXT_JOBS = (
    select(*(jobs.c[name] for name in SOURCE_COLUMNS))
    .where(jobs.c.sequence < bindparam("first"))
    .order_by(jobs.c.sequence.desc())
    .limit(_JOBS_AT_ONCE)
)
_SET_PROGRESS = "UPDATE progress SET value = ? WHERE name = ?"
_END_PROGRESS = "DELETE FROM progress WHERE name = ?"
_ANALYSIS_ROWS = 400


def index_older_jobs(connection: Connection) -> bool:
    """Add the newest jobs that are not in the search index, at most 200; return True if there may be more of them."""
    first = first_searchable(connection)
    if not first:
        return False
    rows = _some(connection.execute(_NEXT_JOBS, {"first": first}).mappings())
    if not rows:
        execute(connection, _END_PROGRESS, (SEARCH_PROGRESS,))
        return False
    add_texts(connection, rows)
    execute(connection, _SET_PROGRESS, (rows[-1].sequence - 1, SEARCH_PROGRESS))
    return True


def _some(rows: Iterable[RowMapping]) -> Sequence[TextRow]:
    """Return rows until their prompts have many characters."""
    found, characters = [], 0
    for row in rows:
        found.append(text_row(row))
        characters += min(len(row["prompt"]), INDEXED_CHARACTERS)
        if characters > _CHARACTERS_AT_ONCE:
            break
    return found


def optimize(connection: Connection) -> None:
    """Refresh the statistics of tables that have grown much, by a sample of their rows. Postgres does so by itself."""
    if connection.dialect.name == POSTGRES:
        return
    connection.exec_driver_sql(f"PRAGMA analysis_limit = {_ANALYSIS_ROWS}")
    connection.exec_driver_sql("PRAGMA optimize")
