"""The upkeep of a node: it writes its lease, hears of others' changes, and ends the runs that dead nodes held."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog
from psycopg import OperationalError

from steadyhand.queue.procrastinate.engine import Connection, ProcrastinateEngine
from steadyhand.queue.procrastinate.lease import CUT_OFF_SECONDS, DEAD_SECONDS, WRITE_SECONDS, Lease
from steadyhand.queue.procrastinate.place import Place, PlaceState
from steadyhand.queue.procrastinate.places import CHANNEL, PlacesTransaction, write_lease
from steadyhand.queue.procrastinate.places_copy import PlacesCopy
from steadyhand.queue.procrastinate.turns import Turns, connect

NUDGE_SECONDS = 0.25
"""The time after which a run that was chosen for this node and did not start is announced to it again."""

STUCK_SECONDS = 5.0
"""The time after which a run that did not start is taken back, so that another node can have it."""

_RECONNECT_SECONDS = 1.0
_CLOSE_SECONDS = 2.0
_REFUSALS = ("Connection refused", "the database system is")
"""Parts of the errors by which the database's host says that nobody can reach the database now."""


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """The times of the lease, in seconds; tests shorten them."""

    write: float = WRITE_SECONDS
    cut_off: float = CUT_OFF_SECONDS
    dead: float = DEAD_SECONDS


async def _end(job_id: str, run: int, turn: PlacesTransaction) -> None:
    await turn.end(job_id, run)


async def _nudge(engine: ProcrastinateEngine, node: str, turn: PlacesTransaction) -> None:
    await engine.nudge(turn.connection, node)


async def _take_back(job_id: str, run: int, turn: PlacesTransaction) -> None:
    await turn.take_back(job_id, run)


class Keeper:
    """Keeps the lease of a node and its copy of the places.

    `on_lost` is awaited for each job whose node died, before its place is free again; `on_cut_off` is called while
    others may take this node for dead.
    """

    def __init__(
        self,
        url: str,
        engine: ProcrastinateEngine,
        turns: Turns,
        copy: PlacesCopy,
        *,
        node: str,
        capacity: int,
        timing: LeaseTiming,
        on_lost: Callable[[str], Awaitable[None]],
        on_cut_off: Callable[[], None],
    ) -> None:
        self._url = url
        self._engine = engine
        self._turns = turns
        self._copy = copy
        self._node = node
        self._capacity = capacity
        self._timing = timing
        self._on_lost = on_lost
        self._on_cut_off = on_cut_off
        self._lease = Lease(time.monotonic(), timing.cut_off, timing.dead)
        self._writes = True
        self._is_out = False
        self._log = structlog.get_logger("steadyhand.queue")

    def start(self, group: asyncio.TaskGroup) -> Sequence[asyncio.Task[None]]:
        """Start to keep them, and return the tasks, which run until they are cancelled."""
        return [group.create_task(each) for each in (self._keep_lease(), self._listen(), self._nudge())]

    def stop_writing(self) -> None:
        """Write the lease no more, as a node that is cut off; for tests."""
        self._writes = False

    # --- the lease -------------------------------------------------------------------------

    async def _keep_lease(self) -> None:
        connection: Connection | None = None
        try:
            while True:
                connection = await self._write_lease(connection)
                if self._lease.is_cut_off(time.monotonic()):
                    self._log.error("queue.cut_off", node=self._node)
                    self._on_cut_off()
                await asyncio.sleep(self._timing.write)
        finally:
            if connection is not None:
                await connection.close()

    async def _write_lease(self, connection: Connection | None) -> Connection | None:
        """Write the lease once, and judge others if it may; return the connection, None after an error."""
        began = time.monotonic()
        if not self._writes:
            self._lease.note_failed(began, refused=False)
            return connection
        try:
            async with asyncio.timeout(self._timing.dead / 4):
                if connection is None:
                    connection = await connect(self._url, autocommit=True)
                change, has_dead = await write_lease(
                    connection, self._node, self._capacity, self._timing.dead
                )
        except (OperationalError, TimeoutError) as error:
            refused = any(part in str(error) for part in _REFUSALS)
            self._lease.note_failed(began, refused=refused)
            if not self._is_out:
                self._log.warning("queue.lease_failed", error=str(error), refused=refused)
            self._is_out = True
            if connection is not None:
                with suppress(OperationalError, TimeoutError):
                    async with asyncio.timeout(_CLOSE_SECONDS):
                        await connection.close()
            return None
        self._lease.note_written(began, time.monotonic())
        if self._is_out:
            self._is_out = False
            self._engine.restart()
        if self._copy.is_behind(change):
            self._turns.refresh(None)
        if has_dead and self._lease.may_judge(time.monotonic()):
            await self._reap()
        return connection

    async def take_over_own(self) -> None:
        """End the runs that this node held when it was killed."""
        await self._end_lost(await self._turns.submit(lambda turn: turn.take_over([self._node], self._node)))

    async def _reap(self) -> None:
        await self._end_lost(await self._turns.submit(lambda turn: turn.reap(self._node)))

    async def _end_lost(self, lost: Sequence[Place]) -> None:
        for place in lost:
            self._log.warning("queue.run_lost", job_id=place.job_id, node=place.node, run=place.run)
            await self._on_lost(place.job_id)
            await self._turns.submit(partial(_end, place.job_id, place.run))

    # --- the changes of others -------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            with suppress(OperationalError):
                async with await connect(self._url, autocommit=True) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    self._turns.refresh(None)
                    async for notification in connection.notifies():
                        self._hear(notification.payload)
            await asyncio.sleep(_RECONNECT_SECONDS)

    def _hear(self, payload: str) -> None:
        change = json.loads(payload)
        if not self._copy.has(change["change"]):
            self._turns.refresh(change["jobs"], change["change"])

    async def _nudge(self) -> None:
        rounds: dict[int, int] = {}
        while True:
            await asyncio.sleep(NUDGE_SECONDS)
            ready = [place for place in self._copy.of_node(self._node) if place.state is PlaceState.READY]
            rounds = {place.run: rounds.get(place.run, 0) + 1 for place in ready}
            for place in ready:
                if rounds[place.run] * NUDGE_SECONDS > STUCK_SECONDS:
                    self._log.warning("queue.run_not_taken", job_id=place.job_id, run=place.run)
                    self._turns.submit(partial(_take_back, place.job_id, place.run))
            if any(count > 1 for count in rounds.values()):
                self._turns.submit(partial(_nudge, self._engine, self._node))
