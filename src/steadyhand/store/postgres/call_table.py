"""The table of calls between nodes, and its statements: each is a transaction of its own and may be repeated.

A call is `sent`, `taken` by its node, and `answered`. A statement whose answer got lost may have been carried out: a
second `send` of one id adds nothing, and a second `claim` with the token of the first returns the same calls.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, LiteralString

import psycopg

from steadyhand.errors import StoreError, StoreUnavailable
from steadyhand.store.postgres.connections import connect, is_closed
from steadyhand.store.postgres.error_codes import outage_reason

MAX_SENT: Final = 1_000
"""The calls to one node that it has not taken yet; further ones are refused."""
KEPT_SECONDS: Final = 60.0
"""The time after its end in which a call is kept, if its caller does not remove it."""
_SCHEMA_LOCK: Final = 0x5374_6561_6479_0003

_SCHEMA: LiteralString = """
CREATE TABLE IF NOT EXISTS node_calls (
    id text PRIMARY KEY,
    node text NOT NULL,
    sender text NOT NULL,
    kind text NOT NULL,
    body text NOT NULL,
    state text NOT NULL DEFAULT 'sent',
    token text,
    reply text,
    sent_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS node_calls_node ON node_calls (node, sent_at);
"""
_SEND: LiteralString = """
WITH sent AS (
    INSERT INTO node_calls (id, node, sender, kind, body, expires_at)
    SELECT %(id)s, %(node)s, %(sender)s, %(kind)s, %(body)s, clock_timestamp() + make_interval(secs => %(seconds)s)
    WHERE (SELECT count(*) FROM node_calls WHERE node = %(node)s AND state = 'sent') < %(most)s
    ON CONFLICT (id) DO NOTHING
    RETURNING id
)
SELECT pg_notify(%(channel)s, '') FROM sent
"""
_CLAIM: LiteralString = """
UPDATE node_calls SET state = 'taken', token = %(token)s WHERE id IN (
    SELECT id FROM node_calls WHERE node = %(node)s
        AND ((state = 'sent' AND expires_at > clock_timestamp()) OR (state = 'taken' AND token = %(token)s))
    ORDER BY sent_at LIMIT %(most)s FOR UPDATE SKIP LOCKED
) RETURNING id, sender, kind, body, extract(epoch FROM expires_at - clock_timestamp())::float8
"""
_ANSWER: LiteralString = """
WITH done AS (
    UPDATE node_calls SET state = 'answered', reply = %(reply)s WHERE id = %(id)s AND state = 'taken' RETURNING id
)
SELECT pg_notify(%(channel)s, id) FROM done
"""
_ABANDON: LiteralString = """
UPDATE node_calls SET state = 'answered', reply = %s WHERE node = %s AND state = 'taken' RETURNING id, sender
"""
_ALIVE: LiteralString = """
SELECT node FROM queue_nodes
WHERE greatest(lease_at, pg_postmaster_start_time()) > clock_timestamp() - make_interval(secs => %s)
"""
"""The nodes whose lease in the queue is young; that of each counts from the start of the database's server."""
ALIVE_SECONDS: Final = 12.0

CallState = Literal["sent", "taken", "answered"]


@dataclass(frozen=True, slots=True)
class SentCall:
    """A call on its way to a node."""

    id: str
    node: str
    sender: str
    kind: str
    body: str
    seconds: float
    """The time from its storing in which the node may begin with it."""


@dataclass(frozen=True, slots=True)
class TakenCall:
    """A call that this node has taken and has to answer."""

    id: str
    sender: str
    kind: str
    body: str
    seconds_left: float


def channel_of(node: str) -> str:
    """Return the channel for notifications of a node's calls and answers."""
    return f"steadyhand_calls_{hashlib.sha256(node.encode('utf-8', 'surrogatepass')).hexdigest()[:20]}"


class CallTable:
    """The statements, on one connection. Use it in one thread.

    Raise `StoreUnavailable` while the database is away, and `StoreError` if it refuses a statement.
    """

    def __init__(self, parameters: dict[str, Any]) -> None:
        self._parameters = parameters
        self._connection: psycopg.Connection[Any] | None = None

    def create(self) -> None:
        """Create the table unless it is there."""
        connection = self._connect()
        try:
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%s::bigint)", (_SCHEMA_LOCK,))
                connection.execute(_SCHEMA)
        except psycopg.Error as error:
            raise self._lost(error) from error

    def send(self, call: SentCall) -> bool:
        """Add a call and tell its node; return False if the node has too many that it has not taken."""
        values = {
            "id": call.id, "node": call.node, "sender": call.sender, "kind": call.kind, "body": call.body,
            "seconds": call.seconds, "most": MAX_SENT, "channel": channel_of(call.node),
        }  # fmt: skip
        return bool(self._run(_SEND, values)) or self.state(call.id) is not None

    def claim(self, node: str, token: str, most: int) -> Sequence[TakenCall]:
        """Return the oldest calls to a node, which are `taken` from now on."""
        rows = self._run(_CLAIM, {"node": node, "token": token, "most": most})
        return [TakenCall(*row) for row in rows]

    def answer(self, call: TakenCall, reply: str) -> None:
        """Answer a call that was taken and tell its caller."""
        self._run(_ANSWER, {"id": call.id, "reply": reply, "channel": channel_of(call.sender)})

    def abandon(self, node: str, reply: str) -> None:
        """Answer all calls that a node has taken, since nobody works on them any more."""
        for call_id, sender in self._run(_ABANDON, (reply, node)):
            self._run("SELECT pg_notify(%s, %s)", (channel_of(sender), call_id))

    def state(self, call_id: str) -> CallState | None:
        """Return the state of a call, or None."""
        rows = self._run("SELECT state FROM node_calls WHERE id = %s", (call_id,))
        return rows[0][0] if rows else None

    def replies(self, call_ids: Sequence[str]) -> dict[str, str]:
        """Return the answers to those of these calls that have one."""
        query: LiteralString = (
            "SELECT id, reply FROM node_calls WHERE id = ANY(%s::text[]) AND state = 'answered'"
        )
        return dict(self._run(query, (list(call_ids),)))

    def withdraw(self, call_id: str) -> tuple[CallState, str | None] | None:
        """Remove a call; return its state and its answer as they were."""
        rows = self._run("DELETE FROM node_calls WHERE id = %s RETURNING state, reply", (call_id,))
        return (rows[0][0], rows[0][1]) if rows else None

    def remove(self, call_ids: Sequence[str]) -> None:
        """Remove calls, and all that ended long ago."""
        self._run(
            "DELETE FROM node_calls WHERE id = ANY(%s::text[])"
            " OR expires_at < clock_timestamp() - make_interval(secs => %s)",
            (list(call_ids), KEPT_SECONDS),
        )

    def list_alive(self) -> Sequence[str]:
        """Return the names of the nodes that the queue takes for alive."""
        return [name for (name,) in self._run(_ALIVE, (ALIVE_SECONDS,))]

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()

    def _run(self, query: LiteralString, values: Any) -> list[tuple[Any, ...]]:
        try:
            cursor = self._connect().execute(query, values)
            return cursor.fetchall() if cursor.description is not None else []
        except psycopg.Error as error:
            raise self._lost(error) from error

    def _connect(self) -> psycopg.Connection[Any]:
        if self._connection is not None and is_closed(self._connection):
            self.close()
        if self._connection is None:
            try:
                self._connection = connect(self._parameters, "calls", autocommit=True)
            except psycopg.Error as error:
                raise self._lost(error) from error
        return self._connection

    def _lost(self, error: psycopg.Error) -> StoreError:
        """Return the error to raise: `StoreUnavailable` for one that ends by itself, which ends the connection."""
        reason = outage_reason(error)
        if reason is None:
            return StoreError(f"The calls between nodes cannot be read: {error}")
        self.close()
        return StoreUnavailable(f"Calls between nodes cannot be stored now: {reason}.")
