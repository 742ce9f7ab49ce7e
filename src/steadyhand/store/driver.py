"""Statements that are run by the database's driver itself, in the transaction of a connection of SQLAlchemy.

SQLAlchemy's context and result of a statement cost more than most statements here. Errors are those of `sqlite3` or of
`psycopg`.

A statement is written for SQLite, with `?` or `:name` for its values. For Postgres it is translated once, by a few
rules: the choice of an index is left to its planner, and what only has another name there gets it. A statement that
differs by more has a text for each database. `psycopg` gets it with the server's own places for values, `$1`: it would
read a text with its own ones anew each time, which takes longer than the way to the server.
"""

import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, Protocol

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

Values = Sequence[Any] | Mapping[str, Any]

SQLITE: Final = "sqlite"
POSTGRES: Final = "postgresql"

HAS_TIMEOUT: Final = "steadyhand.has_timeout"
"""A note on a connection: its server ends a statement after a time, unless its transaction lifts that."""
_ALONE: Final = "steadyhand.alone"


def text_digest(expression: str) -> str:
    """Return the digest of a text on Postgres, which an index has in place of a text of any length.

    A row of an index has at most 2,704 bytes. The server does not take the conversion of a text to bytes for immutable,
    as indexes need it, but takes that of an escaped text, in which a backslash is written twice.
    A literal with one would depend on a setting.
    """
    return f"sha256(replace({expression}, chr(92), repeat(chr(92), 2))::bytea)"


def workspace_digest(expression: str) -> str:
    """Return the digest of a workspace or of null on Postgres. No workspace has an empty name."""
    return text_digest(f"coalesce({expression}, '')")


def _same_digest(digest: Callable[[str], str]) -> Callable[[re.Match[str]], str]:
    """Return the replacement of an equality with a workspace by one of digests."""
    return lambda found: f"{digest('workspace')} = {digest(found[1])}"


_RULES: Final[Sequence[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]]] = (
    (re.compile(r" (?:NOT INDEXED|INDEXED BY \w+)\b"), ""),
    (re.compile(r"\bCROSS JOIN (\w+) ON\b"), r"JOIN \1 ON"),  # SQLite keeps the order of the tables then
    (re.compile(r"\binstr\("), "strpos("),
    # Indexes have the digests of workspaces. Its equality of nulls would use no index at all.
    (re.compile(r"\bworkspace IS (\?|:\w+|\w+\.\w+)"), _same_digest(workspace_digest)),
    (re.compile(r"\bworkspace = (\?)"), _same_digest(text_digest)),
)
_PLACE: Final = re.compile(r"\?|(?<!:):([a-z]\w*)")


class NeedsTransaction(Exception):
    """A read that may be one statement is several, which need one transaction to see the same state."""


class Cursor(Protocol):
    """The part of a driver's cursor that is used here."""

    @property
    def lastrowid(self) -> int | None: ...

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...


def execute(connection: Connection, statement: str, values: Values = ()) -> Cursor:
    """Run a statement."""
    if connection.dialect.name == POSTGRES:
        text, names = postgres_text(statement)
        in_order = [values[name] for name in names] if isinstance(values, Mapping) else values
        return execute_on_postgres(connection, text, in_order)
    return execute_on_sqlite(connection, statement, values)


def execute_on_postgres(connection: Connection, text: bytes, values: Sequence[Any] = ()) -> Cursor:
    """Run a statement with `$1` and so on for its values."""
    from psycopg import RawCursor  # noqa: PLC0415  # it is there, as it connected

    count_alone(connection)
    driver: Any = connection.connection.dbapi_connection
    raw: Any = RawCursor(driver)
    cursor: Cursor = raw.execute(text, values)
    return cursor


@contextmanager
def alone(connection: Connection) -> Iterator[None]:
    """Let one statement of Postgres commit by itself: `BEGIN` and `COMMIT` would be two more. A second one raises.

    That is `NeedsTransaction`, for the caller of the block to catch.
    """
    driver: Any = connection.connection.dbapi_connection
    driver.autocommit = True
    connection.info[_ALONE] = 0
    try:
        yield
    finally:
        del connection.info[_ALONE]
        if not driver.closed:
            driver.autocommit = False


def count_alone(connection: Connection) -> None:
    """Count a statement that is about to run; raise `NeedsTransaction` for a second one of `alone`."""
    count: int | None = connection.info.get(_ALONE)
    if count:
        raise NeedsTransaction
    if count is not None:
        connection.info[_ALONE] = 1


def execute_on_sqlite(connection: Connection, statement: str, values: Values = ()) -> Cursor:
    """Run a statement that is written for the driver of SQLite."""
    driver: Any = connection.connection.dbapi_connection
    cursor: Cursor = driver.execute(statement, values)
    return cursor


def fetch_all(connection: Connection, query: str, values: Values = ()) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    return execute(connection, query, values).fetchall()


@lru_cache(maxsize=4096)
def postgres_text(statement: str) -> tuple[bytes, tuple[str, ...]]:
    """Return a statement as Postgres takes it, and the names of its values in order; none if they have no names."""
    names: dict[str, int] = {}
    count = 0

    def place(found: re.Match[str]) -> str:
        nonlocal count
        name = found[1]
        if name is not None:
            return f"${names.setdefault(name, len(names) + 1)}"
        count += 1
        return f"${count}"

    text = _PLACE.sub(place, postgres_words(statement))
    return text.encode("utf-8"), tuple(names)


def postgres_words(statement: str) -> str:
    """Return a statement or a condition in the words of Postgres, with the places for values as they are."""
    for pattern, replacement in _RULES:
        statement = pattern.sub(replacement, statement)
    return statement


def is_database_error(error: BaseException) -> bool:
    """Return True for an error of SQLAlchemy or of a driver. Those of `psycopg` have a code of SQL, or None."""
    return isinstance(error, SQLAlchemyError | sqlite3.Error) or hasattr(error, "sqlstate")


def undoes_transaction(error: BaseException) -> bool:
    """Return True if an error may have undone more than the statement that raised it."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.IntegrityError | sqlite3.DataError):
        return False
    # A full disk or an input error rolls everything back in SQLite. Postgres goes on from the savepoint.
    return isinstance(cause, sqlite3.Error) or (
        isinstance(error, DBAPIError) and not hasattr(cause, "sqlstate")
    )
