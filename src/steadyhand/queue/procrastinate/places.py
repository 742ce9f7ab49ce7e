"""The places and the nodes in Postgres: what one transaction does to them.

A transaction that changes places begins with the row of `queue_turn`, which it locks. So transactions of all nodes come
one after the other, each count is exact, and their numbers tell a node that it missed a change.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from typing import Any, Literal, LiteralString, Protocol

from psycopg.rows import kwargs_row

from steadyhand.queue.procrastinate.engine import Connection
from steadyhand.queue.procrastinate.lease import DEAD_SECONDS
from steadyhand.queue.procrastinate.place import LostRun, Place, PlaceState

CancelResult = Literal["withdrawn", "stopping", "unknown"]

CHANNEL = "steadyhand_places"
FORGET_SECONDS = 86_400.0
"""The time for which a node that went silent is still listed."""
_MAX_ANNOUNCED = 100
"""More changes than these are announced without their ids: a notification has at most 8,000 bytes."""

SCHEMA: LiteralString = """
CREATE TABLE IF NOT EXISTS queue_turn (
    id integer PRIMARY KEY CHECK (id = 1),
    change bigint NOT NULL DEFAULT 0,
    run bigint NOT NULL DEFAULT 0
);
INSERT INTO queue_turn (id) VALUES (1) ON CONFLICT DO NOTHING;
CREATE TABLE IF NOT EXISTS queue_nodes (
    node text PRIMARY KEY,
    capacity integer NOT NULL,
    wanted integer NOT NULL DEFAULT 0,
    lease_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS queue_places (
    job_id text PRIMARY KEY,
    key_id text NOT NULL,
    goes_on boolean NOT NULL,
    priority integer NOT NULL,
    sequence bigint NOT NULL,
    directory text,
    parent_id text,
    queued_at timestamptz NOT NULL,
    expires_in_seconds double precision,
    state text NOT NULL,
    again boolean NOT NULL,
    resuming boolean NOT NULL,
    run bigint NOT NULL,
    node text,
    engine_job bigint,
    stop_reason text
);
CREATE INDEX IF NOT EXISTS queue_places_waiting ON queue_places
    (goes_on DESC, priority DESC, sequence, job_id) WHERE state = 'waiting';
CREATE INDEX IF NOT EXISTS queue_places_claimed ON queue_places (node, state) WHERE state <> 'waiting';
"""

_COLUMNS: LiteralString = """job_id, key_id, goes_on, priority, sequence, directory, parent_id, queued_at,
    expires_in_seconds, state, again, resuming, run, node, engine_job, stop_reason, labels, not_on_nodes"""
_VALUES: LiteralString = """%(job_id)s, %(key_id)s, %(goes_on)s, %(priority)s, %(sequence)s, %(directory)s,
    %(parent_id)s, %(queued_at)s, %(expires_in_seconds)s, %(state)s, %(again)s, %(resuming)s, %(run)s, %(node)s,
    %(engine_job)s, %(stop_reason)s, %(labels)s, %(not_on_nodes)s"""
INSERT: LiteralString = f"INSERT INTO queue_places ({_COLUMNS}) VALUES ({_VALUES})"  # noqa: S608
"""Adds a waiting place in the transaction that stores its job."""

HELD: LiteralString = """SELECT 1 FROM queue_places WHERE job_id = %s AND node = %s
    AND state IN ('running', 'suspended') FOR SHARE"""
"""Finds the claim of a node, and keeps others from taking it away until the end of the transaction."""


_LOCK_TURN: LiteralString = """SET LOCAL idle_in_transaction_session_timeout = '5s';
    SELECT change, run FROM queue_turn FOR UPDATE"""
"""Begins a transaction. A node that is frozen in one must not hold up the others: the server ends it."""


def values_of(place: Place) -> dict[str, Any]:
    """Return a place as the values of its columns."""
    values = {field.name: getattr(place, field.name) for field in fields(place)}
    return values | {name: list(values[name]) for name in _LISTS}


_UNPLACED: LiteralString = (
    "SELECT id FROM jobs WHERE state = 'queued'"
    " AND NOT EXISTS (SELECT 1 FROM queue_places WHERE queue_places.job_id = jobs.id)"
)
_WANT: LiteralString = f"""WITH said AS (
        UPDATE queue_nodes SET capacity = %(capacity)s, wanted = greatest(0, %(free)s - (
            SELECT count(*) FROM queue_places WHERE queue_places.node = queue_nodes.node AND state = 'running'
                AND run <> ALL (%(claimed)s::bigint[])))
        WHERE node = %(node)s RETURNING wanted)
    SELECT {_COLUMNS} FROM queue_places WHERE node = %(node)s AND state = 'ready'
    ORDER BY run OFFSET (SELECT wanted FROM said)"""  # noqa: S608
"""Set how many runs a node wants beside those that nobody has claimed yet, and find those chosen beyond that."""
_ANNOUNCE: LiteralString = """WITH changed AS (UPDATE queue_turn SET change = %s, run = %s)
    SELECT pg_notify(%s, %s)"""
_JOB_RUNS: LiteralString = """SELECT jobs.id, max(runs.number) AS number
    FROM jobs JOIN runs ON runs.job = jobs.sequence WHERE jobs.id = ANY(%s) GROUP BY jobs.id"""
_LISTS = ("labels", "not_on_nodes")
_WANTING: LiteralString = """SELECT node, labels, wanted - (SELECT count(*) FROM queue_places AS place
        WHERE place.node = queue_nodes.node AND place.state = 'ready') AS missing
    FROM queue_nodes WHERE wanted > 0 AND lease_at > clock_timestamp() - make_interval(secs => %s)
        AND NOT EXISTS (SELECT 1 FROM drained_nodes WHERE drained_nodes.name = queue_nodes.node)"""
"""The living nodes that take new runs and want some, with the number that they lack."""
_FORMER_NODE: LiteralString = """(SELECT former.node FROM runs AS former JOIN jobs AS job ON job.sequence = former.job
    WHERE job.id = coalesce(it.parent_id, it.job_id)
        AND (it.parent_id IS NOT NULL OR strpos(job.record, '"begin":"resume"') > 0)
    ORDER BY former.number DESC LIMIT 1)"""
"""The node that has the process, the files and the mirror of the turn before, or of the run that is resumed."""
_FITS: LiteralString = "it.labels <@ wanting.labels AND wanting.node <> ALL (it.not_on_nodes)"


def is_dead(seconds: LiteralString) -> LiteralString:
    """Return the condition that a node's lease, or the server's start if that is later, is older than a parameter."""
    return (
        "lost_at IS NULL AND greatest(lease_at, pg_postmaster_start_time())"
        " < clock_timestamp() - make_interval(secs => " + seconds + ")"
    )


class EngineJobs(Protocol):
    """The engine as a part of a transaction."""

    async def enqueue(self, connection: Connection, node: str, job_id: str, run: int) -> int:
        """Enqueue a run for a node and return the engine's id of it."""
        ...

    async def withdraw(self, connection: Connection, engine_job: int) -> None:
        """Remove a run that no node has taken."""
        ...


class PlacesTransaction:
    """One transaction that changes places, once it has the row of `queue_turn`."""

    def __init__(
        self,
        connection: Connection,
        engine: EngineJobs,
        change: int,
        last_run: int,
        *,
        dead_seconds: float = DEAD_SECONDS,
    ) -> None:
        self._dead_seconds = dead_seconds
        self.connection = connection
        self._engine = engine
        self.change = change
        self.last_run = last_run
        """The number of the newest run. Nobody else numbers one: this transaction has the row with the number."""
        self.touched: set[str] = set()

    async def find(self, job_id: str) -> Place | None:
        """Return a place or None."""
        return next(iter(await self.read([job_id])), None)

    async def read(self, job_ids: Collection[str]) -> Sequence[Place]:
        """Return the places of these jobs."""
        return await read_some(self.connection, job_ids)

    async def _set(self, job_id: str, assignments: LiteralString, *values: object) -> None:
        self.touched.add(job_id)
        query: LiteralString = "UPDATE queue_places SET " + assignments + " WHERE job_id = %s"  # noqa: S608
        await self.connection.execute(query, (*values, job_id))

    async def _delete(self, job_id: str) -> None:
        self.touched.add(job_id)
        await self.connection.execute("DELETE FROM queue_places WHERE job_id = %s", (job_id,))

    async def _take_back(self, place: Place) -> None:
        """Let a place that was chosen wait again."""
        if place.engine_job is not None:
            await self._engine.withdraw(self.connection, place.engine_job)
        await self._set(place.job_id, "state = 'waiting', node = NULL, engine_job = NULL")

    # --- one job ---------------------------------------------------------------------------

    async def put(self, place: Place) -> None:
        """Queue a job. One that has a claim is queued again when that is released."""
        before = await self.find(place.job_id)
        if before is not None and before.has_claim:
            await self._set(
                place.job_id,
                "again = true, goes_on = %s, priority = %s, sequence = %s, queued_at = %s, parent_id = %s,"
                " labels = %s, not_on_nodes = %s",
                place.goes_on,
                place.priority,
                place.sequence,
                place.queued_at,
                place.parent_id,
                list(place.labels),
                list(place.not_on_nodes),
            )
            return
        if before is not None:
            await self._take_back(before)
            await self._delete(place.job_id)
        self.touched.add(place.job_id)
        await self.connection.execute(INSERT, values_of(place))

    async def adopt(self, place: Place) -> int:
        """Store the place of a job that runs already, and return the number of its run."""
        self.touched.add(place.job_id)
        self.last_run += 1
        await self.connection.execute("DELETE FROM queue_places WHERE job_id = %s", (place.job_id,))
        await self.connection.execute(INSERT, values_of(replace(place, run=self.last_run)))
        return self.last_run

    async def start(self, job_id: str, run: int, node: str) -> bool:
        """Begin a run; False if it is no longer this one that is to begin here."""
        cursor = await self.connection.execute(
            "UPDATE queue_places SET state = 'running', engine_job = NULL"
            " WHERE job_id = %s AND run = %s AND node = %s AND state = 'ready'",
            (job_id, run, node),
        )
        if cursor.rowcount == 1:
            self.touched.add(job_id)
            return True
        place = await self.find(job_id)  # a commit may have been written though its answer was lost
        return place is not None and (place.run, place.node, place.state) == (run, node, PlaceState.RUNNING)

    async def give_back(self, job_id: str, run: int) -> None:
        """Let a run that has not begun to do anything wait again."""
        place = await self.find(job_id)
        if place is not None and place.run == run:
            await self._set(job_id, "state = 'waiting', node = NULL, engine_job = NULL")

    async def take_back(self, job_id: str, run: int) -> None:
        """Let a run wait again that the engine has not handed over."""
        place = await self.find(job_id)
        if place is not None and place.run == run and place.state is PlaceState.READY:
            await self._take_back(place)

    async def end(self, job_id: str, run: int) -> None:
        """End the claim of a run: its place goes, or waits again."""
        place = await self.find(job_id)
        if place is None or place.run != run:
            return
        if place.again:
            await self._set(
                job_id, "state = 'waiting', again = false, resuming = false, node = NULL, engine_job = NULL"
            )
        else:
            await self._delete(job_id)

    async def suspend(self, job_id: str, run: int) -> None:
        """Let a run wait for its client; a pending request to resume it is withdrawn."""
        place = await self.find(job_id)
        if place is not None and place.run == run:
            await self._set(job_id, "state = 'suspended', resuming = false")

    async def resume(self, job_id: str, run: int, *, has_room: bool, limit: int | None) -> bool:
        """Let a suspended run go on if its node has room and its key's limit allows it; else it is the next one."""
        place = await self.find(job_id)
        if place is None or place.run != run or place.state is PlaceState.RUNNING:
            return True
        if has_room and (limit is None or await self._count_running(place.key_id) < limit):
            await self._set(job_id, "state = 'running', resuming = false")
            return True
        if not place.resuming:
            await self._set(job_id, "resuming = true")
        return False

    async def cancel(self, job_id: str, reason: str) -> CancelResult:
        """Withdraw a job that waits, or request the stop of its run."""
        place = await self.find(job_id)
        if place is None:
            return "unknown"
        if place.has_claim:
            if place.again:
                await self._set(job_id, "again = false")
                return "withdrawn"
            await self._set(job_id, "stop_reason = coalesce(stop_reason, %s)", reason)
            return "stopping"
        await self._take_back(place)
        await self._delete(job_id)
        return "withdrawn"

    async def _count_running(self, key_id: str) -> int:
        cursor = await self.connection.execute(
            "SELECT count(*) AS running FROM queue_places WHERE key_id = %s AND state IN ('ready', 'running')",
            (key_id,),
        )
        row = await cursor.fetchone()
        return int(row["running"]) if row else 0

    async def _count_resuming(self, key_id: str) -> int:
        cursor = await self.connection.execute(
            "SELECT count(*) AS resuming FROM queue_places WHERE key_id = %s AND resuming", (key_id,)
        )
        row = await cursor.fetchone()
        return int(row["resuming"]) if row else 0

    # --- all of them -----------------------------------------------------------------------

    async def want(self, node: str, capacity: int, free: int, claimed: Collection[int] = ()) -> None:
        """Set how many more jobs a node would start now: `free` without its runs that are not among those `claimed`.

        Runs that were chosen for it beyond that wait again.
        """
        values = {"node": node, "capacity": capacity, "free": free, "claimed": list(claimed)}
        for place in await read_places(self.connection, _WANT, values):
            await self._take_back(place)

    async def take_back_ready(self, node: str) -> None:
        """Let the runs that were chosen for a node wait again."""
        query: LiteralString = f"SELECT {_COLUMNS} FROM queue_places WHERE node = %s AND state = 'ready'"  # noqa: S608
        for place in await read_places(self.connection, query, (node,)):
            await self._take_back(place)

    async def leave(self, node: str) -> None:
        """Forget a node that stops, unless it has left runs for its next start: they end if that does not come."""
        await self.want(node, 0, 0)
        await self.connection.execute(
            "DELETE FROM queue_nodes WHERE node = %s AND NOT EXISTS (SELECT 1 FROM queue_places WHERE node = %s)",
            (node, node),
        )

    async def reap(self, judge: str) -> Sequence[LostRun]:
        """Move the claims of dead nodes to `judge`, which ends their runs, and return them. What was only chosen waits.

        The age of a lease counts from the start of the database's server if that is later: its outage kills nobody.
        """
        await self.connection.execute(
            "DELETE FROM queue_nodes WHERE lost_at < clock_timestamp() - make_interval(secs => %s)",
            (FORGET_SECONDS,),
        )
        cursor = await self.connection.execute(
            "UPDATE queue_nodes SET lost_at = clock_timestamp(), wanted = 0 WHERE node <> %s AND "  # noqa: S608
            + is_dead("%s")
            + " RETURNING node",
            (judge, self._dead_seconds),
        )
        return await self.take_over([str(row["node"]) for row in await cursor.fetchall()], judge)

    async def take_over(
        self, nodes: Sequence[str], judge: str, *, spared: Collection[str] = ()
    ) -> Sequence[LostRun]:
        """Move the claims of nodes to `judge` and return them; a job that was only chosen for one waits again.

        Those of jobs that are `spared` stay as they are.
        """
        query: LiteralString = f"SELECT {_COLUMNS} FROM queue_places WHERE node = ANY(%s)"  # noqa: S608
        lost = []
        for place in await read_places(self.connection, query, (list(nodes),)):
            if place.job_id in spared:
                continue
            if place.state is PlaceState.READY:
                await self._take_back(place)
                continue
            await self._set(
                place.job_id, "state = 'lost', node = %s, engine_job = NULL, resuming = false", judge
            )
            lost.append(place)
        numbers = await self._read_job_runs([place.job_id for place in lost])
        return [LostRun(each.job_id, each.node, each.run, numbers.get(each.job_id, 0)) for each in lost]

    async def _read_job_runs(self, job_ids: Sequence[str]) -> Mapping[str, int]:
        """Return the numbers of the newest runs of jobs whose claims were taken: no other begins before their end."""
        if not job_ids:
            return {}
        cursor = await self.connection.execute(_JOB_RUNS, (list(job_ids),))
        return {str(row["id"]): int(row["number"]) for row in await cursor.fetchall()}

    async def choose(
        self, limit_of: Callable[[str], int | None], can_start: Callable[[str], Awaitable[bool]]
    ) -> None:
        """Choose jobs for the nodes that want some, in order, and give them to the engine.

        `limit_of` returns a key's limit of jobs that run at once. `can_start` returns False for a job that has to wait.
        """
        full_keys: list[str] = []
        blocked: list[str] = []
        while (found := await self._next_place(full_keys, blocked)) is not None:
            place, node = found
            limit = limit_of(place.key_id)
            if limit is not None:
                taken = await self._count_running(place.key_id) + await self._count_resuming(place.key_id)
                if taken >= limit:
                    full_keys.append(place.key_id)
                    continue
            if not await can_start(place.job_id):
                blocked.append(place.job_id)
                continue
            self.last_run += 1
            engine_job = await self._engine.enqueue(self.connection, node, place.job_id, self.last_run)
            await self._set(
                place.job_id,
                "state = 'ready', run = %s, node = %s, engine_job = %s, stop_reason = NULL",
                self.last_run,
                node,
                engine_job,
            )

    async def _next_place(self, full_keys: Sequence[str], blocked: Sequence[str]) -> tuple[Place, str] | None:
        """Return the first place that may start, and the fitting node: its former one, or who wants most more."""
        query: LiteralString = f"""WITH wanting AS MATERIALIZED (
                SELECT * FROM ({_WANTING}) AS each WHERE missing > 0)
            SELECT {_COLUMNS}, (SELECT wanting.node FROM wanting WHERE {_FITS}
                ORDER BY (wanting.node = {_FORMER_NODE}) IS TRUE DESC,
                    missing DESC, cardinality(wanting.labels), wanting.node LIMIT 1) AS chosen
            FROM queue_places AS it
            WHERE EXISTS (SELECT 1 FROM wanting)  -- it is looked at once, before any place
                AND state = 'waiting' AND key_id <> ALL(%s) AND job_id <> ALL(%s)
                AND EXISTS (SELECT 1 FROM wanting WHERE {_FITS})
                AND NOT EXISTS (SELECT 1 FROM queue_places AS other
                    WHERE other.directory = it.directory AND other.state <> 'waiting')
                AND NOT EXISTS (SELECT 1 FROM queue_places AS parent WHERE parent.job_id = it.parent_id)
            ORDER BY goes_on DESC, priority DESC, sequence, job_id LIMIT 1"""  # noqa: S608
        cursor = await self.connection.execute(query, (self._dead_seconds, list(full_keys), list(blocked)))
        row = await cursor.fetchone()
        if row is None:
            return None
        node = str(row.pop("chosen"))
        return _to_place(**row), node


async def read_places(
    connection: Connection, query: LiteralString, values: Sequence[object] | Mapping[str, object] = ()
) -> list[Place]:
    """Return the places of a query for their columns."""
    async with connection.cursor(row_factory=kwargs_row(_to_place)) as cursor:
        await cursor.execute(query, values)
        return await cursor.fetchall()


def _to_place(*, state: str, labels: Sequence[str], not_on_nodes: Sequence[str], **others: Any) -> Place:
    return Place(state=PlaceState(state), labels=tuple(labels), not_on_nodes=tuple(not_on_nodes), **others)


async def read_some(connection: Connection, job_ids: Collection[str]) -> list[Place]:
    """Return the places of these jobs."""
    query: LiteralString = f"SELECT {_COLUMNS} FROM queue_places WHERE job_id = ANY(%s)"  # noqa: S608
    return await read_places(connection, query, (list(job_ids),))


async def read_all(connection: Connection) -> tuple[int, list[Place]]:
    """Return all places, and the number of a change that they contain."""
    change = await read_change(connection)
    query: LiteralString = f"SELECT {_COLUMNS} FROM queue_places"  # noqa: S608
    return change, await read_places(connection, query)


async def read_change(connection: Connection) -> int:
    """Return the number of the last change."""
    row = await (await connection.execute("SELECT change FROM queue_turn")).fetchone()
    return int(row["change"]) if row else 0


async def list_unplaced(connection: Connection) -> Sequence[str]:
    """Return the ids of the jobs that are stored as queued and have no place."""
    cursor = await connection.execute(_UNPLACED)
    return [str(row["id"]) for row in await cursor.fetchall()]


@asynccontextmanager
async def turn(
    connection: Connection, engine: EngineJobs, *, dead_seconds: float = DEAD_SECONDS
) -> AsyncIterator[PlacesTransaction]:
    """Open a transaction that changes places, and announce its changes; an error rolls it back."""
    async with connection.transaction():
        cursor = await connection.execute(_LOCK_TURN)
        cursor.nextset()
        row = await cursor.fetchone()
        assert row is not None  # noqa: S101  # `SCHEMA` inserts it
        it = PlacesTransaction(connection, engine, row["change"] + 1, row["run"], dead_seconds=dead_seconds)
        yield it
        if it.touched:
            text = announcement(it.change, it.touched)
            await connection.execute(_ANNOUNCE, (it.change, it.last_run, CHANNEL, text))


def announcement(change: int, job_ids: Iterable[str]) -> str:
    """Return the text of a notification: the change's number, and the jobs of its places unless they are many."""
    names = sorted(job_ids)
    return json.dumps({"change": change, "jobs": names if len(names) <= _MAX_ANNOUNCED else None})
