"""The lock of a node's name in a database: one service has it. The server releases it when its connection ends.

It is held by a transaction that stays open on a connection of its own, so that it also works behind PgBouncer in
transaction mode. This transaction has no snapshot and no number, so it keeps no old row alive.
"""

import hashlib
import threading
from contextlib import suppress
from typing import Any, Final

import psycopg

from steadyhand.errors import DatabaseBusy
from steadyhand.store.database_url import DEFAULT_NODE
from steadyhand.store.postgres.connections import connect, is_closed
from steadyhand.store.postgres.error_codes import LOCKED_OUT, LockLost

WAIT_SECONDS: Final = 2.0
"""The time that a service waits at its start for the lock."""
_WAIT_AGAIN_SECONDS: Final = 0.001
_SETTINGS = (
    "SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL statement_timeout = 0; "
    "SET LOCAL lock_timeout = {wait:d}; "
    # A machine that is gone says nothing: so the server asks for it, and gives the lock free within half a minute.
    "SET LOCAL tcp_keepalives_idle = 10; SET LOCAL tcp_keepalives_interval = 5; SET LOCAL tcp_keepalives_count = 3"
)
_HOLDER = (  # only numbers go into it
    "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' "
    "AND granted "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND objsubid = 1 "
    "AND classid::bigint = {high:d} AND objid::bigint = {low:d}"
)


def lock_number(node: str) -> int:
    """Return the number of a node's lock in each database, below 2^63."""
    return int.from_bytes(hashlib.sha256(f"steadyhand node {node}".encode()).digest()[:8]) >> 1


class DatabaseLock:
    """The lock of the service with a node's name, over the connections that come and go."""

    def __init__(self, parameters: dict[str, Any], node: str = DEFAULT_NODE) -> None:
        self._parameters = parameters
        self._node = node
        self._number = lock_number(node)
        self._mutex = threading.Lock()
        self._connection: psycopg.Connection[Any] | None = None

    def acquire(self, wait_seconds: float = WAIT_SECONDS) -> None:
        """Acquire the lock. Raise `DatabaseBusy`, which names the owner, if another service has it.

        One that was killed a moment ago may still have it: its end has to reach the server.
        """
        connection = connect(self._parameters, "lock")
        try:
            connection.execute(_SETTINGS.format(wait=round(wait_seconds * 1000)).encode())
            try:
                connection.execute(f"SELECT pg_advisory_xact_lock({self._number:d})")  # a number
            except psycopg.errors.LockNotAvailable as error:
                connection.rollback()
                query = _HOLDER.format(high=self._number >> 32, low=self._number & 0xFFFF_FFFF)
                holder = connection.execute(query.encode()).fetchone()
                raise _busy(self._node, holder) from error
        except BaseException:  # nobody else has the connection, and an open one would keep the lock
            connection.close()
            raise
        self._connection = connection

    def ensure(self) -> None:
        """Acquire the lock again if its connection has ended. Raise `LockLost` if another service has it by now."""
        with self._mutex:
            if self._connection is not None and not is_closed(self._connection):
                return
            self.release()
            try:
                self.acquire(wait_seconds=_WAIT_AGAIN_SECONDS)
            except DatabaseBusy as error:
                raise LockLost(LOCKED_OUT) from error

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.rollback()  # else the server would notice the end a moment later
            self._connection.close()
            self._connection = None


def _busy(node: str, holder: tuple[str | None] | None) -> DatabaseBusy:
    name = (holder and holder[0]) or "another service"
    owner = name.removeprefix("steadyhand lock of ")
    return DatabaseBusy(
        f"The database is in use by {owner} as the node {node!r}. Stop it first, or give each service of this database "
        "a name of its own with [service] node."
    )
