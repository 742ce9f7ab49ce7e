"""The time after which a read for a request gives up a database that does not answer. Pure.

It is a context variable: only the tasks of requests that read have it. Work of the service itself waits longer.
"""

from contextvars import ContextVar
from typing import Final

REQUEST_READ_SECONDS = 5.0
"""The time without any answer of the database's server after which a request that reads is answered with 503."""

READING_METHODS: Final = frozenset({"GET", "HEAD"})

_is_limited: ContextVar[bool] = ContextVar("read_patience", default=False)


def set_read_patience(method: str) -> None:
    """Limit the reads of the current task if it answers a request with this method; else lift the limit."""
    _is_limited.set(method in READING_METHODS)


def read_patience() -> float | None:
    """Return the seconds for which a read of the current task waits for the server; None without such a limit."""
    return REQUEST_READ_SECONDS if _is_limited.get() else None
