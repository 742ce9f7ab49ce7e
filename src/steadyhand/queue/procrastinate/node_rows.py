"""The rows of nodes in Postgres: a node's heartbeat, which is its lease, and the list of them.

Each table only grows: a node of the version before works beside this one, so a new column has a default.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString, cast, get_args

from steadyhand.ports.nodes import Drained, NodeCounts, NodeFigures, NodeInfo, NodeRole, NodeState
from steadyhand.queue.procrastinate import engine
from steadyhand.queue.procrastinate.engine import Connection
from steadyhand.queue.procrastinate.places import SCHEMA, PlacesTransaction, is_dead

_INSTALL_LOCK = 0x5EAD1
"""The number of the advisory lock under which a node creates the tables."""
_EXPANSION: LiteralString = """
ALTER TABLE queue_nodes
    ADD COLUMN IF NOT EXISTS role text NOT NULL DEFAULT 'serve',
    ADD COLUMN IF NOT EXISTS version text NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS schema_revision text NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS labels text[] NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS host text NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS started_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS running integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS suspended integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS load double precision NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS warm integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS lost_at timestamptz;
ALTER TABLE queue_places
    ADD COLUMN IF NOT EXISTS labels text[] NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS not_on_nodes text[] NOT NULL DEFAULT '{}';
"""
"""The columns that came after the first version of the tables."""
_NEWEST_COLUMN = ("queue_places", "not_on_nodes")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


async def install_tables(connection: Connection) -> None:
    """Create the tables of the queue, or add the columns that they lack, in a transaction of their own.

    Other nodes may be at work. If nothing is missing, no table is locked: also an index that is there already would be
    created under a lock of its table, and two transactions could wait for one another.
    """
    await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_INSTALL_LOCK,))
    cursor = await connection.execute(
        "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = %s", _NEWEST_COLUMN
    )
    if await cursor.fetchone() is None:
        await engine.install(connection)
        await connection.execute(SCHEMA)
        # After all transactions that change places: two of them must not wait for one another's tables.
        await connection.execute("SELECT change FROM queue_turn FOR UPDATE")
        await connection.execute(_EXPANSION)
    await connection.commit()


@dataclass(frozen=True, slots=True)
class HeartbeatAnswer:
    """The answer to a heartbeat."""

    change: int
    """The number of the last change of places."""
    has_dead: bool
    """True if some other node looks dead."""
    counts: NodeCounts
    capacity_elsewhere: int
    """The slots of the other nodes that are alive and take runs."""
    is_new: bool
    """True if the node was not there before, or was taken for dead."""


async def write_heartbeat(
    connection: Connection, info: NodeInfo, figures: NodeFigures, started_at: datetime, dead_seconds: float
) -> HeartbeatAnswer:
    """Write a node's lease and its state, in one statement."""
    query: LiteralString = f"""WITH other AS (
            SELECT capacity, {is_dead("%(dead)s")} AS is_dead, lost_at IS NOT NULL AS is_lost,
                name IS NOT NULL AS is_drained
            FROM queue_nodes LEFT JOIN drained_nodes ON name = node WHERE node <> %(node)s)
        INSERT INTO queue_nodes (node, capacity, lease_at, role, version, schema_revision,
            labels, host, started_at, running, suspended, load, warm)
        VALUES (%(node)s, %(capacity)s, clock_timestamp(), %(role)s, %(version)s, %(schema)s, %(labels)s, %(host)s,
            %(started_at)s, %(running)s, %(suspended)s, %(load)s, %(warm)s)
        ON CONFLICT (node) DO UPDATE SET lease_at = excluded.lease_at, capacity = excluded.capacity,
            role = excluded.role, version = excluded.version, schema_revision = excluded.schema_revision,
            labels = excluded.labels, host = excluded.host, started_at = excluded.started_at,
            running = excluded.running, suspended = excluded.suspended, load = excluded.load, warm = excluded.warm,
            lost_at = NULL
        RETURNING (SELECT change FROM queue_turn) AS change,
            coalesce((SELECT lost_at IS NOT NULL FROM queue_nodes WHERE node = %(node)s), true) AS is_new,
            EXISTS (SELECT 1 FROM drained_nodes WHERE name = %(node)s) AS is_drained,
            (SELECT coalesce(sum(capacity), 0) FROM other
                WHERE NOT is_dead AND NOT is_lost AND NOT is_drained) AS elsewhere,
            (SELECT count(*) FROM other WHERE is_dead) AS dead,
            (SELECT count(*) FROM other WHERE is_lost) AS lost,
            (SELECT count(*) FROM other WHERE NOT is_dead AND NOT is_lost AND is_drained) AS drained,
            (SELECT count(*) FROM other WHERE NOT is_dead AND NOT is_lost AND NOT is_drained) AS alive"""  # noqa: S608
    values: dict[str, Any] = {
        "node": info.name,
        "capacity": info.slots,
        "role": info.role,
        "version": info.version,
        "schema": info.schema,
        "labels": list(info.labels),
        "host": info.host,
        "started_at": started_at,
        "running": figures.running,
        "suspended": figures.waiting,
        "load": figures.load,
        "warm": figures.warm,
        "dead": dead_seconds,
    }
    cursor = await connection.execute(query, values)
    row = await cursor.fetchone()
    assert row is not None  # noqa: S101  # RETURNING
    is_drained = bool(row["is_drained"])
    counts = NodeCounts(
        row["alive"] + (not is_drained), row["dead"] + row["lost"], row["drained"] + is_drained, is_drained
    )
    return HeartbeatAnswer(
        int(row["change"]), row["dead"] > 0, counts, int(row["elsewhere"]), bool(row["is_new"])
    )


_LIST: LiteralString = """SELECT coalesce(queue_nodes.node, drained_nodes.name) AS name, capacity, role, version,
        schema_revision, labels, host, started_at, running, suspended, load, warm, drained_at,
        until_restart,
        extract(epoch FROM clock_timestamp() - lease_at)::double precision AS age
    FROM queue_nodes FULL JOIN drained_nodes ON drained_nodes.name = queue_nodes.node
    ORDER BY name COLLATE "C" """


async def read_nodes(connection: Connection) -> Sequence[NodeState]:
    """Return the nodes by name; see `ports.Nodes.list_nodes`."""
    cursor = await connection.execute(_LIST)
    return [_to_state(row) for row in await cursor.fetchall()]


def _to_state(row: dict[str, Any]) -> NodeState:
    at = row["drained_at"]
    drained = None if at is None else Drained(_EPOCH + timedelta(microseconds=at), row["until_restart"] == 1)
    if row["age"] is None:
        return NodeState(NodeInfo(row["name"]), NodeFigures(), drained, None)
    role = cast("NodeRole", row["role"] if row["role"] in get_args(NodeRole) else "serve")
    return NodeState(
        NodeInfo(
            row["name"],
            role,
            row["version"],
            row["schema_revision"],
            tuple(row["labels"]),
            row["capacity"],
            row["host"],
        ),
        NodeFigures(row["running"], row["suspended"], row["load"], row["warm"]),
        drained,
        max(0.0, row["age"]),
        row["started_at"].astimezone(UTC),
    )


async def drain(name: str, drained: Drained, by: str, turn: PlacesTransaction) -> bool:
    """Let a node take no new runs; jobs that were only chosen for it wait. Return False if there is no such node."""
    if not await _is_known(turn.connection, name):
        return False
    await turn.connection.execute(
        "INSERT INTO drained_nodes (name, drained_at, drained_by, until_restart) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT (name) DO UPDATE SET drained_by = excluded.drained_by, until_restart = excluded.until_restart",
        (name, (drained.since - _EPOCH) // timedelta(microseconds=1), by, int(drained.until_restart)),
    )
    await turn.take_back_ready(name)
    return True


async def undrain(name: str, turn: PlacesTransaction) -> bool:
    """Let a node take new runs again. Return False if there is no such node."""
    is_known = await _is_known(turn.connection, name)
    await turn.connection.execute("DELETE FROM drained_nodes WHERE name = %s", (name,))
    return is_known


async def begin(connection: Connection, name: str) -> None:
    """End the state of a node that holds until its restart, as it starts."""
    await connection.execute("DELETE FROM drained_nodes WHERE name = %s AND until_restart = 1", (name,))


async def _is_known(connection: Connection, name: str) -> bool:
    cursor = await connection.execute(
        "SELECT 1 FROM queue_nodes WHERE node = %s UNION ALL SELECT 1 FROM drained_nodes WHERE name = %s",
        (name, name),
    )
    return await cursor.fetchone() is not None
