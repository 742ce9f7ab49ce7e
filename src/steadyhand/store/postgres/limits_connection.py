"""The connection on which a node counts what all nodes share, and the tables of that.

Several statements go to the server as one message and come back as one answer. Each sees what was committed before it
began, so one that waits for a lock first is followed by one that reads what the holder of the lock has written.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, LiteralString

import psycopg
from psycopg import AsyncClientCursor, AsyncConnection

from steadyhand.errors import StoreUnavailable
from steadyhand.store.postgres.connections import parse_postgres_url

SECONDS: Final = 10.0
"""The time for one answer."""

_INSTALL_LOCK: Final = 0x5EAD2
"""The number of the advisory lock under which a node creates the tables."""

SCHEMA: LiteralString = """
CREATE TABLE IF NOT EXISTS budget_leases (
    budget text NOT NULL,
    node text NOT NULL,
    micros bigint NOT NULL,
    PRIMARY KEY (budget, node)
);
CREATE UNLOGGED TABLE IF NOT EXISTS key_rates (
    api_key_id text NOT NULL,
    slice bigint NOT NULL,
    requests integer NOT NULL,
    PRIMARY KEY (api_key_id, slice)
);
CREATE TABLE IF NOT EXISTS credential_states (
    id text PRIMARY KEY,
    blocked_until bigint,
    rejected_until bigint,
    rest_seconds double precision NOT NULL DEFAULT 0,
    tried_by text,
    tried_on text,
    tried_at timestamptz
);
"""
"""A crash of the server empties `key_rates`: requests of the last minute are forgotten, as at a restart of one node."""

IS_ALIVE: LiteralString = (
    "greatest(lease_at, pg_postmaster_start_time()) >= clock_timestamp() - make_interval(secs => {dead})"
)
"""The condition that a row of `queue_nodes` is of a node that is not dead; see `queue/procrastinate/places.py`."""

_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED; "
_COMMIT: Final = "; COMMIT"

Rows = list[tuple[Any, ...]]


class LimitsConnection:
    """One connection, which is opened when it is needed and opened again after an error."""

    def __init__(self, url: str) -> None:
        """Keep the URL. Raise `ConfigError` if it is not one of Postgres."""
        self._parameters = parse_postgres_url(url)
        self._connection: AsyncConnection[Any] | None = None
        self._lock = asyncio.Lock()

    async def install(self) -> None:
        """Create the tables unless they are there."""
        await self.run([f"SELECT pg_advisory_xact_lock({_INSTALL_LOCK:d})", SCHEMA.rstrip().rstrip(";")])

    async def run(self, statements: Sequence[str], values: Sequence[Any] = ()) -> list[Rows]:
        """Run statements in one transaction, and return the rows of each that returns any. `values` are those of all.

        What they change is the same if they are run twice: a connection that was cut is opened again, once. Raise
        `StoreUnavailable` if the server does not answer.
        """
        text = _BEGIN + "; ".join(statements) + _COMMIT
        async with self._lock:
            is_new = self._connection is None
            try:
                return await self._run(text, values)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if is_new:
                    raise _unavailable(error) from error
            except (psycopg.Error, TimeoutError) as error:
                raise _unavailable(error) from error
            try:
                return await self._run(text, values)
            except (psycopg.Error, TimeoutError) as error:
                raise _unavailable(error) from error

    async def _run(self, text: str, values: Sequence[Any]) -> list[Rows]:
        try:
            async with asyncio.timeout(SECONDS):
                if self._connection is None:
                    self._connection = await AsyncConnection.connect(
                        **{"application_name": "steadyhand limits", **self._parameters},
                        autocommit=True,
                        prepare_threshold=None,
                        cursor_factory=AsyncClientCursor,
                    )
                cursor = await self._connection.execute(text.encode(), values)
                found = []
                while True:
                    if cursor.description is not None:
                        found.append(await cursor.fetchall())
                    if not cursor.nextset():
                        return found
        except BaseException:  # a connection whose answer is not read is of no use
            await self._disconnect()
            raise

    async def close(self) -> None:
        """Close the connection."""
        async with self._lock:
            await self._disconnect()

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error, TimeoutError):
                async with asyncio.timeout(1):
                    await connection.close()


def _unavailable(error: BaseException) -> StoreUnavailable:
    reason = " ".join(str(error).split()) or "it did not answer in time"
    return StoreUnavailable(f"The database cannot be asked for shared limits: {reason}")
