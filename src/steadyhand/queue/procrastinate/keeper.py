"""The upkeep of a node: it writes its lease, hears of others' changes, and ends the runs that dead nodes held."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog
from psycopg import OperationalError

from steadyhand.clock import utc_now
from steadyhand.errors import SteadyhandError
from steadyhand.ports.nodes import NodeCounts, NodeFigures, NodeInfo
from steadyhand.queue.procrastinate.engine import Connection, ProcrastinateEngine
from steadyhand.queue.procrastinate.handed_runs import end_run
from steadyhand.queue.procrastinate.lease import CUT_OFF_SECONDS, DEAD_SECONDS, WRITE_SECONDS, Lease
from steadyhand.queue.procrastinate.node_rows import write_heartbeat
from steadyhand.queue.procrastinate.place import LostRun, PlaceState
from steadyhand.queue.procrastinate.places import PlacesTransaction
from steadyhand.queue.procrastinate.places_copy import PlacesCopy
from steadyhand.queue.procrastinate.turns import Turns, connect

NUDGE_SECONDS = 0.25
"""The time after which a run that was chosen for this node and did not start is announced to it again."""

STUCK_SECONDS = 5.0
"""The time after which a run that did not start is taken back, so that another node can have it."""

_CLOSE_SECONDS = 2.0
_CUT_OFF_PAUSE_SECONDS = 0.5
_END_AGAIN_SECONDS = 2.0
_REFUSALS = ("Connection refused", "the database system is")
"""Parts of the errors by which the database's host says that nobody can reach the database now."""


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """The times of the lease, in seconds; tests shorten them."""

    write: float = WRITE_SECONDS
    cut_off: float = CUT_OFF_SECONDS
    dead: float = DEAD_SECONDS


async def _nudge(engine: ProcrastinateEngine, node: str, turn: PlacesTransaction) -> None:
    await engine.nudge(turn.connection, node)


async def _take_back(job_id: str, run: int, turn: PlacesTransaction) -> None:
    await turn.take_back(job_id, run)


class Keeper:
    """Keeps the lease of a node and its copy of the places.

    `on_lost` is awaited for each job whose node died and the number of its newest run then, before its place is free
    again, and again later if it raises; `on_cut_off` is called while others may take this node for dead.
    """

    def __init__(
        self,
        url: str,
        engine: ProcrastinateEngine,
        turns: Turns,
        copy: PlacesCopy,
        *,
        info: NodeInfo,
        get_figures: Callable[[], NodeFigures],
        timing: LeaseTiming,
        on_lost: Callable[[str, int], Awaitable[None]],
        on_cut_off: Callable[[], None],
    ) -> None:
        self._url = url
        self._engine = engine
        self._turns = turns
        self._copy = copy
        self._info = info
        self._node = info.name
        self._get_figures = get_figures
        self._started_at = utc_now()
        self.counts = NodeCounts(0)
        """The nodes as the last heartbeat found them."""
        self._timing = timing
        self._on_lost = on_lost
        self._on_cut_off = on_cut_off
        self._lease = Lease(time.monotonic(), timing.cut_off, timing.dead)
        self._writes = True
        self._is_out = False
        self._reap_due = asyncio.Event()
        self._places_changed = asyncio.Event()
        self._lost: list[LostRun] = []
        self.capacity_elsewhere = 0
        """The slots of the other nodes, as of the last lease."""
        self._log = structlog.get_logger("steadyhand.queue")

    def start(self, group: asyncio.TaskGroup) -> Sequence[asyncio.Task[None]]:
        """Start to keep them, and return the tasks, which run until they are cancelled."""
        upkeep = (self._keep_lease(), self._watch_lease(), self._end_runs(), self._nudge())
        return [group.create_task(each) for each in upkeep]

    @property
    def is_cut_off(self) -> bool:
        """True while others may take this node for dead."""
        return self._lease.is_cut_off(time.monotonic())

    async def announce(self, connection: Connection) -> None:
        """Write the first heartbeat, with the labels, before the node wants its first job."""
        await write_heartbeat(
            connection, self._info, self._get_figures(), self._started_at, self._timing.dead
        )

    def stop_writing(self) -> None:
        """Write the lease no more, as a node that is cut off; for tests."""
        self._writes = False

    # --- the lease -------------------------------------------------------------------------

    async def _keep_lease(self) -> None:
        connection: Connection | None = None
        try:
            while True:
                connection = await self._write_lease(connection)
                await asyncio.sleep(self._timing.write)
        finally:
            if connection is not None:
                await connection.close()

    async def _watch_lease(self) -> None:
        """Stop the agents as soon as the lease is too old: a write of it may hang meanwhile."""
        is_cut_off = False
        while True:
            now = time.monotonic()
            if self._lease.is_cut_off(now):
                if not is_cut_off:
                    self._log.error("queue.cut_off", node=self._node)
                is_cut_off = True
                self._on_cut_off()
                await asyncio.sleep(_CUT_OFF_PAUSE_SECONDS)
            else:
                is_cut_off = False
                await asyncio.sleep(self._lease.seconds_left(now))

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
                answer = await write_heartbeat(
                    connection, self._info, self._get_figures(), self._started_at, self._timing.dead
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
        self.counts = answer.counts
        if self._is_out:
            self._is_out = False
            self._engine.restart()
        self.capacity_elsewhere = answer.capacity_elsewhere
        if self._copy.is_behind(answer.change):
            self._turns.refresh()
        if answer.is_new:
            self._turns.ask()  # nothing was chosen for it meanwhile
        if answer.has_dead and self._lease.may_judge(time.monotonic()):
            self._reap_due.set()
        return connection

    # --- the runs of dead nodes ------------------------------------------------------------

    async def take_over_own(self, spared: Collection[str] = ()) -> None:
        """End the runs that this node held when it was killed, without those of jobs that are `spared`."""
        lost = await self._turns.submit(lambda turn: turn.take_over([self._node], self._node, spared=spared))
        self._note_lost(lost)
        await self._end_lost()

    async def _end_runs(self) -> None:
        """End the runs of dead nodes. It is a task of its own, since an outage may hold it up and not the lease."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_AGAIN_SECONDS if self._lost else None):
                    await self._reap_due.wait()
            if self._reap_due.is_set():
                self._reap_due.clear()
                self._note_lost(await self._turns.submit(lambda turn: turn.reap(self._node)))
            await self._end_lost()

    def _note_lost(self, lost: Sequence[LostRun]) -> None:
        for each in lost:
            self._log.warning("queue.run_lost", job_id=each.job_id, node=each.node, run=each.run)
        self._lost += lost

    async def _end_lost(self) -> None:
        """End what is lost; an end that fails is tried again later, and its place stays until then."""
        lost, self._lost = self._lost, []
        for each in lost:
            try:
                await self._on_lost(each.job_id, each.job_run)
                await self._turns.submit(partial(end_run, each.job_id, each.run))
            except SteadyhandError as error:
                self._log.warning("queue.lost_run_not_ended", job_id=each.job_id, error=error.detail)
                self._lost.append(each)

    # --- the changes of others -------------------------------------------------------------

    def hear(self, payload: str | None) -> None:
        """Receive the notification of a change; None stands for any that was missed."""
        if payload is None:
            self._turns.refresh()
            return
        change = json.loads(payload)
        if not self._copy.has(change["change"]):
            self._turns.refresh(change["jobs"], change["change"])

    def note_changes(self) -> None:
        """Note that the copy has changed: runs may have been chosen for this node."""
        self._places_changed.set()

    async def _nudge(self) -> None:
        rounds: dict[int, int] = {}
        while True:
            if not rounds:
                await self._places_changed.wait()
            self._places_changed.clear()
            await asyncio.sleep(NUDGE_SECONDS)
            ready = [place for place in self._copy.of_node(self._node) if place.state is PlaceState.READY]
            rounds = {place.run: rounds.get(place.run, 0) + 1 for place in ready}
            for place in ready:
                if rounds[place.run] * NUDGE_SECONDS > STUCK_SECONDS:
                    self._log.warning("queue.run_not_taken", job_id=place.job_id, run=place.run)
                    self._turns.submit(partial(_take_back, place.job_id, place.run))
            if any(count > 1 for count in rounds.values()):
                self._turns.submit(partial(_nudge, self._engine, self._node))
