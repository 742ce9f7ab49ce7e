"""`ports.CredentialStates` on Postgres: the credentials that a provider limits or rejects, for all nodes.

A credential is known by a digest of its address and secret. Each change is announced in its own transaction; a node
that may have missed one reads all again.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

from steadyhand.ports.cluster_limits import CredentialState
from steadyhand.store.mapping import from_microseconds, to_microseconds
from steadyhand.store.postgres.limits_connection import IS_ALIVE, LimitsConnection

CHANNEL: Final = "steadyhand_credentials"
TRY_SECONDS: Final = 600.0
"""The time after which another run may try a credential though the first one has not ended."""

_NOTIFY: Final = "SELECT pg_notify(%s, %s)"
_BLOCK: Final = """INSERT INTO credential_states (id, blocked_until) VALUES (%s, %s)
    ON CONFLICT (id) DO UPDATE SET blocked_until = greatest(credential_states.blocked_until, excluded.blocked_until)"""
_REJECT: Final = """INSERT INTO credential_states (id, rejected_until, rest_seconds) VALUES (%s, %s, %s)
    ON CONFLICT (id) DO UPDATE SET tried_by = NULL,
        rejected_until = greatest(credential_states.rejected_until, excluded.rejected_until),
        rest_seconds = greatest(credential_states.rest_seconds, excluded.rest_seconds)"""
_ACCEPT: Final = (
    "UPDATE credential_states SET rejected_until = NULL, rest_seconds = 0, tried_by = NULL WHERE id = %s"
)
_FORGET: Final = """DELETE FROM credential_states WHERE rejected_until IS NULL
    AND coalesce(blocked_until, 0) < (extract(epoch FROM clock_timestamp()) - 3600) * 1000000"""
_RELEASE: Final = (
    "UPDATE credential_states SET tried_by = NULL WHERE id = %s AND tried_by = %s AND tried_on = %s"
)


class PostgresCredentialStates:
    """The states of credentials, as this node sees and changes them."""

    def __init__(self, connection: LimitsConnection, node: str, *, dead_seconds: float) -> None:
        self._connection = connection
        self._node = node
        self._claim = f"""UPDATE credential_states SET tried_by = %s, tried_on = %s, tried_at = clock_timestamp()
            WHERE id = %s AND rejected_until IS NOT NULL AND (tried_by IS NULL OR (tried_by = %s AND tried_on = %s)
                OR tried_at < clock_timestamp() - make_interval(secs => {TRY_SECONDS!r})
                OR NOT EXISTS (SELECT 1 FROM queue_nodes WHERE node = tried_on
                    AND {IS_ALIVE.format(dead=repr(float(dead_seconds)))}))
            RETURNING id"""  # noqa: S608  # our own words
        self._callbacks: list[Callable[[], None]] = []

    async def list_states(self) -> Sequence[CredentialState]:
        """Return the credentials that are blocked or rejected."""
        query = "SELECT id, blocked_until, rejected_until, rest_seconds FROM credential_states"
        (rows,) = await self._connection.run([query])
        return [
            CredentialState(
                identifier,
                None if blocked is None else from_microseconds(blocked),
                None if rejected is None else from_microseconds(rejected),
                timedelta(seconds=rest),
            )
            for identifier, blocked, rejected, rest in rows
        ]

    def on_change(self, callback: Callable[[], None]) -> None:
        """Register a callback for a change by another node, or for a time in which one may have been missed."""
        self._callbacks.append(callback)

    def hear(self, payload: str | None) -> None:
        """Receive a notification; None is a gap, in which one may have been missed."""
        if payload != self._node:
            for callback in self._callbacks:
                callback()

    async def save_block(self, credential_id: str, until: datetime) -> None:
        """Store the block of a credential; the later end counts."""
        await self._change([_FORGET, _BLOCK], (credential_id, to_microseconds(until)))

    async def save_rejection(self, credential_id: str, until: datetime, rest: timedelta) -> None:
        """Store the rest of a rejected credential. It ends the try of any run."""
        await self._change([_REJECT], (credential_id, to_microseconds(until), rest.total_seconds()))

    async def remove_rejection(self, credential_id: str) -> None:
        """Remove a rejection: the credential was accepted or replaced."""
        await self._change([_ACCEPT, _FORGET], (credential_id,))

    async def claim_try(self, credential_id: str, run_id: str) -> bool:
        """Return True if this run is the one that tries a credential after its rest; it may ask again."""
        values = (run_id, self._node, credential_id, run_id, self._node)
        (rows,) = await self._connection.run([self._claim], values)
        return bool(rows)

    async def release_try(self, credential_id: str, run_id: str) -> None:
        """Let another run try the credential."""
        await self._change([_RELEASE], (credential_id, run_id, self._node))

    async def _change(self, statements: list[str], values: tuple[object, ...]) -> None:
        await self._connection.run([*statements, _NOTIFY], (*values, CHANNEL, self._node))
