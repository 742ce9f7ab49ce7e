"""`ports.Queue` for one of many nodes: its slots and claims are in memory, the order of all jobs is in Postgres."""

import asyncio
import heapq
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Literal

import sqlalchemy
import structlog

from steadyhand.errors import Conflict, RetryLater, StoreError
from steadyhand.events import EventDraft
from steadyhand.job import Job, State
from steadyhand.outcome import StopReason
from steadyhand.placement import ANYWHERE, Placement
from steadyhand.ports import AddResult, Claim, IdempotencyKey, KeyBacklog, QueueLoad
from steadyhand.ports.nodes import NodeFigures, NodeInfo
from steadyhand.ports.schedules import TickClaim
from steadyhand.queue.new_jobs import NewJobs, RunDurations, draining_refusal, full_refusal
from steadyhand.queue.procrastinate.cancelling import cancel_until_done
from steadyhand.queue.procrastinate.claimed_runs import ClaimedRuns
from steadyhand.queue.procrastinate.cluster_nodes import ClusterNodes
from steadyhand.queue.procrastinate.engine import ListenTo, ProcrastinateEngine
from steadyhand.queue.procrastinate.engine_runs import READ_AGAIN_SECONDS, EngineRuns
from steadyhand.queue.procrastinate.handed_runs import (
    HandedRun,
    PlacesStore,
    adopt,
    announce,
    change_nothing,
    give_back,
    ignore_lost,
    resume,
    suspend,
)
from steadyhand.queue.procrastinate.keeper import Keeper, LeaseTiming
from steadyhand.queue.procrastinate.new_places import NewPlaces, read_load
from steadyhand.queue.procrastinate.node_rows import begin, install_tables
from steadyhand.queue.procrastinate.place import Place, PlaceState
from steadyhand.queue.procrastinate.places import (
    CHANNEL,
    HELD,
    PlacesTransaction,
    list_unplaced,
    read_all,
)
from steadyhand.queue.procrastinate.places_copy import PlacesCopy
from steadyhand.queue.procrastinate.turns import Turns, connect

_LOOK_SECONDS = 2.0
"""The time for a look at the stored places before a new job is refused."""

_LEAVE_SECONDS = 5.0
"""The time for a node that stops to say so; without it others notice by its lease."""


class ProcrastinateQueue:
    """`ports.Queue`. Use it within `opened`. The parameters are those of `LocalQueue`; `capacity` is this node's.

    `listen_to` registers callbacks for the notifications of the database. `placement_of` returns the demands of a job
    on its node. `info` and `get_figures` are what this node's heartbeat tells of it. `nodes` are the nodes of all
    queues on this database.
    """

    def __init__(
        self,
        url: str,
        store: PlacesStore,
        *,
        node: str,
        capacity: int,
        max_queued: int,
        listen_to: ListenTo,
        max_suspended: int = 0,
        clock: Callable[[], float] = time.monotonic,
        paused: bool = False,
        can_start: Callable[[Job], bool] = lambda _: True,
        running_limit: Callable[[str], int | None] = lambda _: None,
        queued_limit: Callable[[str], int | None] = lambda _: None,
        directory_of: Callable[[Job], str | None] = lambda _: None,
        placement_of: Callable[[Job], Placement] = lambda _: ANYWHERE,
        info: NodeInfo | None = None,
        get_figures: Callable[[], NodeFigures] | None = None,
        on_accepted: Callable[[Job], None] = lambda _: None,
        timing: LeaseTiming = LeaseTiming(),  # noqa: B008  # it is frozen
        on_lost: Callable[[str, int], Awaitable[None]] = ignore_lost,
    ) -> None:
        self._store = store
        self._node = node
        self._max_queued = max_queued
        self._claiming = not paused
        self._draining = False
        self._accepts_jobs = True
        self._can_start = can_start
        self._running_limit = running_limit
        self._read_stored = partial(read_load, node)
        self._new_places = NewPlaces(
            store,
            running_limit=running_limit,
            queued_limit=queued_limit,
            directory_of=directory_of,
            placement_of=placement_of,
        )
        self._on_accepted = on_accepted
        self._claimed = ClaimedRuns(capacity, capacity + max_suspended, clock)
        self._capacity = capacity
        self._claimers = 0
        self._delivered: list[tuple[int, str, HandedRun]] = []
        self._just_stored: dict[str, Job] = {}
        """The jobs that this node has stored since its last transaction, which need not be read for that."""
        self._new_jobs = NewJobs(store, self._on_stored)
        self._durations = RunDurations()
        self._changed = asyncio.Event()
        self._copy = PlacesCopy(self._is_unclaimed)
        self._url = url
        self._log = structlog.get_logger("steadyhand.queue")
        self._engine_runs = EngineRuns(store, node, self._on_started)
        self._engine = ProcrastinateEngine(
            url,
            node,
            self._engine_runs.note,
            concurrency=2 * (capacity + max_suspended) + 2,
            listen_to=listen_to,
        )
        self._turns = Turns(
            url,
            self._engine,
            finish_turn=self._finish_turn,
            on_changes=self._on_changes,
            on_all=self._on_all,
            is_behind=self._copy.is_behind,
            dead_seconds=timing.dead,
        )
        self._keeper = Keeper(
            url,
            self._engine,
            self._turns,
            self._copy,
            info=info or NodeInfo(node, slots=capacity),
            get_figures=get_figures
            or (lambda: NodeFigures(len(self._claimed.running()), self.load().suspended)),
            timing=timing,
            on_lost=on_lost,
            on_cut_off=partial(self.stop_all, StopReason.SHUTDOWN),
        )
        listen_to(CHANNEL, self._keeper.hear)
        self.nodes = ClusterNodes(url, self._turns.submit, lambda: self._keeper.counts)

    # --- life ------------------------------------------------------------------------------

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Create the tables unless they are there, and take runs until the end of the context."""
        async with await connect(self._url) as connection:
            await install_tables(connection)
            # Each by itself: a transaction with both would hold one table while it waits for the other.
            await begin(connection, self._node)
            await connection.commit()
            await self._keeper.announce(connection)
            await connection.commit()
            self._copy.replace_all(*await read_all(connection))
        self._store.store_with_jobs(self._new_places.insert)
        self._store.check_changes(self._check_change)
        failure: Exception | None = None
        async with asyncio.TaskGroup() as group:
            keeping = self._keeper.start(group)
            tasks = [
                group.create_task(each)
                for each in (self._turns.run(), self._engine_runs.start_all(group, self._turns))
            ]
            tasks += keeping
            try:
                await self._turns.submit(lambda turn: turn.take_back_ready(self._node))
                # A node that only serves has nothing to hear from the engine.
                async with self._engine.working() if self._claimed.has_slots else nullcontext():
                    yield
                await cancel_until_done(keeping)  # no heartbeat comes after the leave
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LEAVE_SECONDS):
                        await self._turns.submit(lambda turn: turn.leave(self._node))
            except Exception as error:  # noqa: BLE001  # raised below, as it is: the group would wrap it
                failure = error
            finally:
                await cancel_until_done(tasks)
        if failure is not None:
            raise failure

    @property
    def is_shared(self) -> bool:
        """True: other nodes take jobs from the same queue."""
        return True

    async def recovered(self) -> None:
        """End the claims that this node held before its start and has not adopted."""
        adopted = [each.job.id for each in self._claimed]
        await self._turns.submit(change_nothing)  # what was adopted is stored by now
        await self._keeper.take_over_own(adopted)

    async def repair(self) -> None:
        """Queue the jobs that are stored as queued and have no place: their node died between the two."""
        if await self._turns.look(list_unplaced):
            await self._turns.submit(self._new_places.put_unplaced)

    def _check_change(
        self,
        as_new: bool,  # noqa: FBT001  # a callback's signature
        connection: sqlalchemy.Connection,
        before: Job,
        after: Job,
    ) -> None:
        """Refuse a change in the transaction that would store it.

        That is the begin of a run that this node may not start any more, and a job that counts as a new one if it is
        one too many of its key.
        """
        if as_new and after.state is State.QUEUED:
            self._new_places.check(connection, [after])
        if (before.state, after.state) == (State.QUEUED, State.RUNNING):
            held = connection.exec_driver_sql(HELD, (after.id, self._node)).first()
            if held is None:
                raise Conflict("The run was taken from this node.")

    # --- new jobs --------------------------------------------------------------------------

    async def enqueue(
        self,
        job: Job,
        drafts: Sequence[EventDraft],
        idempotency: IdempotencyKey | None = None,
        *,
        claim: TickClaim | None = None,
    ) -> AddResult:
        """Store a new job and its place, or raise `RetryLater` (`queue_full`, `draining`)."""
        refusal = self._refusal(self.load())
        if refusal is not None and self._accepts_jobs:
            refusal = self._refusal(
                await self._read_load()
            )  # the copy may be behind what the caller has seen
        return await self._new_jobs.add(job, drafts, idempotency, claim, refusal)

    async def _read_load(self) -> QueueLoad:
        """Return the load as it is stored, or as this node knows it if the database does not answer."""
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                stored = await self._turns.look(self._read_stored)
        except (TimeoutError, StoreError):
            return self.load()
        active = len(self._claimed.active()) + stored.active
        unclaimed = sum(self._is_unclaimed(place) for place in self._copy.of_node(self._node))
        return replace(self.load(), active=active, queued=stored.queued + unclaimed + len(self._new_jobs))

    def _on_stored(self, job: Job) -> None:
        self._on_accepted(job)
        self._just_stored[job.id] = job
        if self._copy.get(job.id) is None:  # else a transaction was quicker
            self._copy.apply({job.id: self._new_places.place_of(job)})
        self._turns.submit(partial(announce, job.id))

    def _refusal(self, load: QueueLoad) -> RetryLater | None:
        if not self._accepts_jobs:
            return draining_refusal()
        self._new_places.retry_after = self._estimate_retry_after()
        if load.active + load.queued < load.capacity + self._max_queued:
            return None
        return full_refusal(
            capacity=load.capacity, max_queued=self._max_queued, retry_after=self._estimate_retry_after()
        )

    def _estimate_retry_after(self) -> int:
        return self._durations.estimate_retry_after(self._claimed.longest_seconds())

    async def requeue(self, job: Job, *, goes_on: bool = False) -> None:
        """Enqueue a stored job by its priority and its acceptance; one that goes on comes before all others."""
        place = self._new_places.place_of(job, goes_on=goes_on)
        await self._turns.submit(lambda turn: turn.put(place))

    # --- claims ----------------------------------------------------------------------------

    async def claim(self) -> Claim:
        """Wait for the next job and a free slot, the lowest first, and return a claim of both."""
        self._claimers += 1
        try:
            self._turns.ask()
            while True:
                claim = self._hand_out()
                if claim is not None:
                    return claim
                await self._changed.wait()
        finally:
            self._claimers -= 1
            if self._claimers == 0:
                self._give_back_unclaimed()

    def _hand_out(self) -> Claim | None:
        """Return a claim of the run that was chosen first, once the engine has started it."""
        if not self._claiming or self._draining or not self._delivered or not self._claimed.can_claim:
            return None
        run, job_id, delivery = self._delivered[0]
        if any(place.run < run for place in self._copy.of_node(self._node) if self._is_pending(place)):
            return None
        heapq.heappop(self._delivered)
        claim = self._claimed.claim(delivery)
        self._copy.refresh(job_id)
        return claim

    def _is_pending(self, place: Place) -> bool:
        """Return True if a run was chosen for this node and has no claim yet."""
        return place.state is PlaceState.READY or self._is_unclaimed(place)

    def _is_unclaimed(self, place: Place) -> bool:
        if place.node != self._node or place.state is not PlaceState.RUNNING:
            return False
        return not self._claimed.has_run(place.run)

    def _give_back_unclaimed(self) -> None:
        """Let runs wait again that nobody waits for any more."""
        for run, job_id, _ in self._delivered:
            self._turns.submit(partial(give_back, job_id, run))
        self._delivered.clear()
        self._turns.ask()

    def _on_started(self, handed: HandedRun) -> None:
        """Keep a run that has started for the next claim."""
        heapq.heappush(self._delivered, (handed.run, handed.job.id, handed))
        if self._claimers == 0:
            self._give_back_unclaimed()
        self._wake()

    async def _finish_turn(self, turn: PlacesTransaction) -> None:
        """Resume what may go on, say what this node wants, and choose jobs for the nodes that want some."""
        free = self._claimed.room
        for delivery in list(self._claimed.resuming):
            limit = self._running_limit(delivery.job.api_key_id)
            if await turn.resume(delivery.job.id, delivery.run, has_room=free > 0, limit=limit):
                free -= 1
        room = self._claimed.room - len(self._claimed.resuming)
        free = min(self._claimers, room) if self._claiming and not self._draining else 0
        await turn.want(self._node, self._capacity, free, [each.run for each in self._claimed])
        await turn.choose(self._running_limit, self._may_start)
        self._just_stored.clear()

    async def _may_start(self, job_id: str) -> bool:
        try:
            job = self._just_stored.get(job_id) or await self._store.get(job_id)
        except StoreError:
            asyncio.get_running_loop().call_later(READ_AGAIN_SECONDS, self._turns.ask)
            return False
        return job is not None and self._can_start(job)

    def _on_changes(self, change: int | None, changes: Mapping[str, Place | None]) -> None:
        self._copy.apply(changes)
        if change is not None:
            self._copy.note(change)
        self._on_copy_changed()

    def _on_all(self, change: int, places: Sequence[Place]) -> None:
        self._copy.replace_all(change, places)
        self._on_copy_changed()

    def _on_copy_changed(self) -> None:
        self._keeper.note_changes()
        for delivery in self._claimed:
            place = self._copy.get(delivery.job.id)
            if delivery.run and (place is None or (place.run, place.node) != (delivery.run, self._node)):
                self._stop_lost(delivery)
            if place is None or place.run != delivery.run:
                continue
            if place.stop_reason is not None and delivery.claim is not None:
                delivery.claim.stop.request(StopReason(place.stop_reason))
            if place.state is PlaceState.RUNNING and delivery in self._claimed.resuming:
                self._go_on(delivery)
        if self._claimed.resuming:
            self._turns.ask()  # another node may have made room for a key
        self._wake()

    def _stop_lost(self, delivery: HandedRun) -> None:
        """Stop a run that others have ended, because they took this node for dead."""
        if delivery.claim is not None and delivery.claim.stop.reason is None:
            self._log.warning("queue.run_taken_away", job_id=delivery.job.id, run=delivery.run)
            delivery.claim.stop.request(StopReason.SHUTDOWN)

    def adopt(self, job: Job, slot: int | None) -> Claim | None:
        """Claim a job that runs already, in its slot or in any; None if there is no such free slot."""
        handed = self._claimed.adopt(job, slot)
        if handed is None:
            return None
        place = replace(self._new_places.place_of(job), state=PlaceState.RUNNING, node=self._node)
        self._copy.apply({job.id: place})
        self._turns.submit(partial(adopt, handed, place))
        return handed.claim

    def suspend(self, claim: Claim) -> None:
        """Let another job run in place of a claimed one until `resume`; a repeat withdraws a pending `resume`."""
        delivery = self._claimed.find(claim)
        if delivery is None:
            return
        self._claimed.suspend(delivery)
        self._turns.submit(partial(suspend, delivery))
        self._wake()

    def resume(self, claim: Claim) -> bool:
        """Request that a suspended claim runs again, before any waiting job; return True if it runs now.

        That of a key with a limit runs only once a transaction has counted the key's jobs on all nodes.
        """
        delivery = self._claimed.find(claim)
        if delivery is None or not delivery.suspended:
            return True
        self._claimed.ask_to_go_on(delivery)
        pending = sum(self._is_pending(place) for place in self._copy.of_node(self._node))
        is_first = self._claimed.resuming[0] is delivery
        has_room = pending < self._claimed.room
        if is_first and has_room and self._running_limit(delivery.job.api_key_id) is None:
            self._go_on(delivery)
            self._turns.submit(partial(resume, delivery))
            return True
        self._turns.ask()
        return False

    def _go_on(self, delivery: HandedRun) -> None:
        self._claimed.go_on(delivery)
        self._wake()

    async def wait_until_resumed(self, claim: Claim) -> None:
        """Wait until a claim, for which `resume` was called, runs again."""
        while (delivery := self._claimed.find(claim)) is not None and delivery.suspended:
            await self._changed.wait()

    def mark_ending(self, job_id: str) -> None:
        """Count the slot of a claimed job as free from now on; it is claimed again only after `release`."""
        self._claimed.mark_ending(job_id)

    async def release(self, claim: Claim) -> None:
        """Release the slot; a repeat is harmless."""
        delivery = self._claimed.find(claim)
        if delivery is None:
            return
        ended = self._turns.submit(lambda turn: turn.end(delivery.job.id, delivery.run))
        self._claimed.drop(delivery, claim.slot)
        self._durations.add(self._claimed.seconds_of(delivery))
        self._wake()
        await asyncio.shield(ended)

    async def leave(self, claim: Claim) -> None:
        """Drop a claim whose run goes on without this process; its place stays for the next start of this node."""
        delivery = self._claimed.find(claim)
        if delivery is not None:
            self._claimed.drop(delivery, claim.slot)

    async def cancel(
        self, job_id: str, reason: StopReason = StopReason.CANCEL
    ) -> Literal["withdrawn", "stopping", "unknown"]:
        """Remove a job from the queue, or request its run to stop, on any node."""
        place = self._copy.get(job_id)
        for delivery in self._claimed:
            is_lost = place is not None and delivery.run not in (
                0,
                place.run,
            )  # the job has another run by now
            if delivery.job.id != job_id or delivery.claim is None or is_lost:
                continue
            if not (place and place.again):
                delivery.claim.stop.request(reason)
                return "stopping"
        result = await self._turns.submit(lambda turn: turn.cancel(job_id, reason))
        self._drop_delivered(job_id)
        return result

    def _drop_delivered(self, job_id: str) -> None:
        for entry in [entry for entry in self._delivered if entry[1] == job_id]:
            place = self._copy.get(job_id)
            if place is None or place.run != entry[0]:
                self._delivered.remove(entry)
                heapq.heapify(self._delivered)

    # --- reads -----------------------------------------------------------------------------

    async def list_expired(self, now: datetime) -> Sequence[str]:
        """Return the ids of queued jobs that have waited longer than their `expires_in_seconds`, the next first."""
        return [place.job_id for place in self._copy.waiting() if place.is_expired(now)]

    def holds(self, job_id: str) -> bool:
        """Return True if a job has a place, or is being stored by `enqueue`."""
        return job_id in self._new_jobs or self._copy.get(job_id) is not None

    def position(self, job_id: str) -> int | None:
        """Return the position of a queued job, 1 for the next one; None if it is not queued."""
        return self._copy.position(job_id)

    def load(self) -> QueueLoad:
        """Return the load; a job that is not stored yet counts as queued."""
        active = len(self._claimed.active())
        active += sum(1 for _ in self._copy.running_elsewhere(self._node))
        queued = self._copy.waiting_count + len(self._new_jobs)
        return QueueLoad(active, queued, self._total_capacity, self._claimed.suspended_count())

    @property
    def _total_capacity(self) -> int:
        return self._capacity + self._keeper.capacity_elsewhere

    def oldest_queued_at(self) -> datetime | None:
        """Return the time since which the oldest waiting job is queued, or None."""
        return min((place.queued_at for place in self._copy.waiting()), default=None)

    @property
    def is_cut_off(self) -> bool:
        """True while other nodes may take this one for dead."""
        return self._keeper.is_cut_off

    def backlog(self, key_id: str) -> KeyBacklog:
        """Return the backlog of a key; the slot of an ending job counts as free."""
        waiting = sum(place.key_id == key_id for place in self._copy.waiting())
        load = self.load()
        startable = load.capacity - load.active
        limit = self._running_limit(key_id)
        if limit is not None:
            running = self._claimed.count_active()
            running.update(place.key_id for place in self._copy.running_elsewhere(self._node))
            startable = min(startable, limit - running[key_id])
        waiting += self._new_jobs.count(key_id)
        return KeyBacklog(waiting, max(0, startable), self._estimate_retry_after())

    def suspended_elsewhere(self, key_id: str) -> int:
        """Return the number of a key's claims on other nodes that wait for their client."""
        return self._copy.suspended_elsewhere(self._node, key_id)

    def active_jobs(self) -> Sequence[Job]:
        """Return the jobs claimed on this node, without the suspended ones, as they were when they were claimed."""
        return [each.job for each in self._claimed.running()]

    def recheck(self) -> None:
        """Check again which of the waiting jobs may start."""
        self._turns.ask()

    async def settle(self) -> None:
        """Wait until no transaction is due and each run that was chosen for this node has a claim; for tests."""
        await self._turns.submit(change_nothing)
        while any(self._is_pending(place) for place in self._copy.of_node(self._node)):
            await self._changed.wait()

    # --- the end ---------------------------------------------------------------------------

    def drain(self, *, accepts_jobs: bool = False) -> None:
        """Claim no more jobs, and accept none unless `accepts_jobs`; waiting jobs keep their places."""
        self._draining = True
        self._accepts_jobs = accepts_jobs
        self._turns.ask()

    async def close(self) -> None:
        """Drain, and wait until the store has answered to each new job; cancel what it does not answer in time."""
        self.drain()
        await self._new_jobs.close()

    def stop_all(self, reason: StopReason) -> None:
        """Request every run that is claimed on this node to stop."""
        self._claimed.stop_all(reason)

    def _wake(self) -> None:
        """Wake all that wait; each checks again before it waits."""
        self._changed.set()
        self._changed = asyncio.Event()
