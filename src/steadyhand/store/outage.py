"""The errors of a database that end by themselves: a full disk, a lock of another program. Pure."""

import sqlite3
from collections.abc import Mapping
from typing import Final

from sqlalchemy.exc import DBAPIError

from steadyhand.errors import StoreUnavailable
from steadyhand.store.postgres import error_codes

FIRST_RETRY_SECONDS: Final = 0.05
MAX_RETRY_SECONDS: Final = 1.0
"""The pauses between two tries during an outage: the first, and the longest. Each is twice the one before."""

HELD_ELSEWHERE: Final = "another program holds the database"
DISK_FULL: Final = "the disk is full"

_REASONS: Mapping[int, str] = {
    sqlite3.SQLITE_BUSY: HELD_ELSEWHERE,
    sqlite3.SQLITE_LOCKED: HELD_ELSEWHERE,
    sqlite3.SQLITE_NOMEM: "there is not enough memory",
    sqlite3.SQLITE_READONLY: "the database is read-only",
    sqlite3.SQLITE_IOERR: "the disk reports an error",
    sqlite3.SQLITE_FULL: DISK_FULL,
    sqlite3.SQLITE_CANTOPEN: "a file of the database cannot be opened",
    sqlite3.SQLITE_PROTOCOL: HELD_ELSEWHERE,
}
"""The primary result codes of SQLite in an outage. With any other the operation itself is wrong: no repeat helps."""
_PRIMARY_CODE_MASK: Final = 0xFF


def outage_reason(error: BaseException) -> str | None:
    """Return the reason if an error of the database may end by itself, else None."""
    cause = _cause(error)
    code = _primary_code(cause)
    return error_codes.outage_reason(cause) if code is None else _REASONS.get(code)


def is_interrupted(error: BaseException) -> bool:
    """Return True for a query that was stopped because its time was over."""
    cause = _cause(error)
    return _primary_code(cause) == sqlite3.SQLITE_INTERRUPT or error_codes.is_interrupted(cause)


def is_conflict(error: BaseException) -> bool:
    """Return True if the database undid a transaction because of another one; a repeat may succeed at once."""
    return error_codes.is_conflict(_cause(error))


def postgres_code(error: BaseException) -> str | None:
    """Return the code of an error of Postgres; None for any other."""
    code: str | None = getattr(_cause(error), "sqlstate", None)
    return code


def _cause(error: BaseException) -> BaseException:
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


def _primary_code(cause: BaseException) -> int | None:
    code: int | None = getattr(cause, "sqlite_errorcode", None)
    return None if code is None else code & _PRIMARY_CODE_MASK


def unavailable(
    reason: str, error: BaseException | None = None, *, verb: str = "written"
) -> StoreUnavailable:
    """Return the error for an operation that an outage prevented."""
    store_error = StoreUnavailable(f"The store cannot be {verb}: {reason}.")
    store_error.__cause__ = error
    return store_error


def next_retry_seconds(seconds: float) -> float:
    """Return the pause after one of so many seconds; 0 before the first."""
    return min(max(FIRST_RETRY_SECONDS, seconds * 2), MAX_RETRY_SECONDS)
