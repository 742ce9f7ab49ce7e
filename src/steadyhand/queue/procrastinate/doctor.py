"""The checks of `doctor` for the nodes of one Postgres."""

import asyncio
from collections.abc import Sequence
from typing import LiteralString

from psycopg import Error

from steadyhand.ports.doctor import DoctorCheck
from steadyhand.ports.nodes import NodeInfo, NodeState
from steadyhand.queue.procrastinate.engine import Connection
from steadyhand.queue.procrastinate.lease import DEAD_SECONDS
from steadyhand.queue.procrastinate.node_rows import read_nodes
from steadyhand.queue.procrastinate.places import is_dead
from steadyhand.queue.procrastinate.turns import connect

_SECONDS = 10.0
_MOST_NAMED = 5
_TABLES: LiteralString = (
    "SELECT to_regclass('queue_nodes') IS NOT NULL AND to_regclass('drained_nodes') IS NOT NULL AS there"
)
_UNFIT: LiteralString = f"""SELECT job_id, count(*) OVER () AS jobs FROM queue_places AS it
    WHERE state = 'waiting' AND NOT EXISTS (SELECT 1 FROM queue_nodes AS node
        WHERE NOT ({is_dead("%s")}) AND lost_at IS NULL AND capacity > 0 AND it.labels <@ node.labels
            AND node.node <> ALL (it.not_on_nodes)
            AND NOT EXISTS (SELECT 1 FROM drained_nodes WHERE drained_nodes.name = node.node))
    ORDER BY sequence LIMIT 5"""  # noqa: S608


async def check_nodes(url: str, here: NodeInfo) -> Sequence[DoctorCheck]:
    """Check the nodes of the database as the node `here` sees them; nothing if it has none yet or cannot be read."""
    try:
        async with asyncio.timeout(_SECONDS), await connect(url, autocommit=True) as connection:
            cursor = await connection.execute(_TABLES)
            row = await cursor.fetchone()
            if row is None or not row["there"]:
                return ()
            return [*describe_nodes(await read_nodes(connection), here), *await _check_jobs(connection)]
    except (Error, TimeoutError):
        return ()  # the check of the database has the reason


def describe_nodes(nodes: Sequence[NodeState], here: NodeInfo) -> Sequence[DoctorCheck]:
    """Return the checks of these nodes."""
    alive = [node for node in nodes if node.is_alive]
    names = _name([node.info.name for node in alive])
    checks = [DoctorCheck("nodes", True, f"{len(alive)} alive: {names}" if alive else "none is alive")]
    doubled = [
        each for each in alive if each.info.name == here.name and each.info.host not in {"", here.host}
    ]
    for node in doubled:
        detail = f"a node on {node.info.host} has the name {here.name}, which this one has in its settings"
        checks.append(DoctorCheck("node name", False, detail, "Set [service] node to a name of its own."))
    others = [node for node in alive if (node.info.version, node.info.schema) != (here.version, here.schema)]
    if others:
        named = _name([f"{node.info.name} ({_version(node.info)})" for node in others])
        detail = f"not of this version, {_version(here)}: {named}"
        remedy = "Upgrade all nodes, one after the other: docs/nodes.md#upgrade."
        checks.append(DoctorCheck("node versions", True, detail, remedy, warning=True))
    silent = [node for node in nodes if node.heartbeat_seconds is not None and not node.is_alive]
    if silent:
        named = _name([f"{node.info.name} ({_age(node.heartbeat_seconds or 0)})" for node in silent])
        remedy = "Start it again or look at its machine; a silent node is forgotten after a day."
        checks.append(DoctorCheck("silent nodes", True, named, remedy, warning=True))
    drained = [node.info.name for node in nodes if node.drained is not None]
    if drained:
        remedy = "Let it take runs again with `steadyhand nodes undrain NAME`."
        checks.append(DoctorCheck("drained nodes", True, _name(drained), remedy, warning=True))
    return checks


async def _check_jobs(connection: Connection) -> Sequence[DoctorCheck]:
    cursor = await connection.execute(_UNFIT, (DEAD_SECONDS,))
    rows = await cursor.fetchall()
    if not rows:
        return ()
    count = rows[0]["jobs"]
    jobs = "1 job waits" if count == 1 else f"{count} jobs wait"
    detail = f"{jobs} that no living node can take: {_name([row['job_id'] for row in rows], count)}"
    remedy = "`steadyhand show JOB` has the reason. Start a node with the labels, or undrain one."
    return [DoctorCheck("waiting jobs", True, detail, remedy, warning=True)]


def _version(info: NodeInfo) -> str:
    return f"{info.version} with schema {info.schema}"


def _age(seconds: float) -> str:
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"silent for {hours} h {minutes} min" if hours else f"silent for {minutes} min"


def _name(names: Sequence[str], count: int | None = None) -> str:
    more = (len(names) if count is None else count) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
