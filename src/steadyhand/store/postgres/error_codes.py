"""The errors of Postgres that end by themselves: a server that is away, a full disk. Pure; without `psycopg`."""

from collections.abc import Mapping
from typing import Final

CROWDED: Final = "the database lacks room, memory or connections"
UNREACHABLE: Final = "the database cannot be reached"
LOCKED_OUT: Final = "another service uses the database"

_REASONS: Mapping[str, str] = {
    "08": UNREACHABLE,
    "28": "the database refuses the user or the password",
    "3D000": "the database does not exist",
    "40001": "another program is in the way of a transaction",
    "40P01": "another program is in the way of a transaction",
    "53": CROWDED,
    "55P03": "another program holds the database",
    "55P04": UNREACHABLE,
    "57P": UNREACHABLE,
    "58": "the database's server reports an error of its system",
    "25006": "the database is read-only",
    "25P03": UNREACHABLE,  # the server ended a connection whose transaction was idle, or as a whole, for too long
    "25P04": UNREACHABLE,
    "42501": "the database's user lacks a right",
    "XX001": "the database is damaged",
    "XX002": "the database is damaged",
}
"""The reasons by the beginning of the code. With any other code the operation itself is wrong."""
_CONFLICTS: Final = frozenset({"40001", "40P01"})
_QUERY_CANCELLED: Final = "57014"
_CROWDED_WORDS: Final = ("too many connections", "too many clients", "connection slots are reserved")
"""Parts of the text of a connection that the server refused: its error has no code."""
_LENGTHS: Final = (5, 3, 2)


def outage_reason(error: BaseException) -> str | None:
    """Return the reason if an error of `psycopg` may end by itself, else None."""
    if isinstance(error, LockLost):
        return str(error)
    if not hasattr(error, "sqlstate"):
        return None
    code: str | None = error.sqlstate
    if code is None:
        # An error of the connection rather than of a statement.
        if any(words in str(error) for words in _CROWDED_WORDS):
            return CROWDED
        names = {each.__name__ for each in type(error).__mro__}
        return UNREACHABLE if names & {"OperationalError", "InterfaceError"} else None
    if code == _QUERY_CANCELLED:
        return None
    return next((_REASONS[code[:length]] for length in _LENGTHS if code[:length] in _REASONS), None)


def is_conflict(error: BaseException) -> bool:
    """Return True for a transaction that was undone because of another one: a ring of waits, or its serialization."""
    return getattr(error, "sqlstate", None) in _CONFLICTS


def is_interrupted(error: BaseException) -> bool:
    """Return True for a query that was stopped because its time was over."""
    return getattr(error, "sqlstate", None) == _QUERY_CANCELLED


class LockLost(Exception):
    """The lock of the database is not held: nothing may be written before it is again."""
