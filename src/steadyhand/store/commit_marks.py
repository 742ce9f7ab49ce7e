"""The marks that show after a failed commit whether it was made: an answer that got lost is no sign."""

import random
import secrets
from typing import Final, Protocol

from sqlalchemy import Connection

from steadyhand.errors import StoreError
from steadyhand.store.announcements import take_announced
from steadyhand.store.driver import POSTGRES, execute

_MAX_NUMBER = 2**31
_NUMBER: Final = "SELECT pg_current_xact_id()::text"
_ANNOUNCE: Final = (
    ", (SELECT count(pg_notify(channel, payload)) FROM unnest(?::text[], ?::text[]) AS a (channel, payload))"
)
_UNKNOWN_TRANSACTION = "22023"
"""The code of Postgres for a transaction that it never began: another server is in its place, without it."""


class CommitMarks(Protocol):
    """Marks each transaction."""

    def mark(self, connection: Connection) -> int:
        """Mark the transaction, as its last statement, and return its number."""

    def was_committed(self, connection: Connection, number: int) -> bool:
        """Return True if the last transaction that was marked has this number and was committed.

        Raise an error if that cannot be told yet.
        """


class SqliteMarks:
    """A number in the header of the database, which each transaction counts up."""

    def __init__(self) -> None:
        self._number = random.randrange(_MAX_NUMBER)  # noqa: S311  # only to differ from the one before

    def mark(self, connection: Connection) -> int:
        """Mark the transaction; see `CommitMarks`."""
        self._number = (self._number + 1) % _MAX_NUMBER
        connection.exec_driver_sql(f"PRAGMA user_version = {self._number}")
        return self._number

    def was_committed(self, connection: Connection, number: int) -> bool:
        """Compare the number; see `CommitMarks`."""
        return bool(connection.exec_driver_sql("PRAGMA user_version").scalar() == number)


class PostgresMarks:
    """Postgres's own number of the transaction: it can say what became of it, also that it still commits.

    The same statement announces the changes of the transaction to other nodes.
    """

    def __init__(self, origin: str | None = None) -> None:
        self._origin = origin or secrets.token_hex(8)

    def mark(self, connection: Connection) -> int:
        """Return the number; see `CommitMarks`."""
        announced = take_announced(connection, self._origin)
        if not announced:
            return int(execute(connection, _NUMBER).fetchone()[0])
        values = ([channel for channel, _ in announced], [payload for _, payload in announced])
        return int(execute(connection, _NUMBER + _ANNOUNCE, values).fetchone()[0])

    def was_committed(self, connection: Connection, number: int) -> bool:
        """Ask for the state of the transaction; see `CommitMarks`."""
        try:
            (state,) = execute(connection, f"SELECT pg_xact_status('{number:d}'::xid8)").fetchone()
        except Exception as error:  # of a driver that is not imported here
            if getattr(error, "sqlstate", None) == _UNKNOWN_TRANSACTION:
                return False
            raise
        if state == "in progress":
            raise StoreError("The last commit has not ended yet.")
        return bool(state == "committed")


def create_marks(dialect: str, origin: str | None = None) -> CommitMarks:
    """Return the marks of a database. `origin` is the name of the store in its announcements."""
    return PostgresMarks(origin) if dialect == POSTGRES else SqliteMarks()
