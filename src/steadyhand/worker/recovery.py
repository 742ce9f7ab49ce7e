"""Recovery of jobs that nobody holds: at the start of the service, and after an outage of the store.

A write that failed may have been made, and an end may be lost. So after an outage this compares what the store says
with what this process holds. A job is changed only if its state and its run are still those that were compared.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog

from steadyhand.cancellations import Cancellations
from steadyhand.errors import Conflict, NotFound
from steadyhand.events import EventDraft, StateChanged
from steadyhand.job import Job, Outcome, OutcomeType, State
from steadyhand.ports import Claim, JobFilter, OrphanedRun
from steadyhand.retry import is_resumable, requeued
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.job_end import RUNNING
from steadyhand.worker.results import node_death_outcome
from steadyhand.worker.run_executor import QUEUED, RunExecutor
from steadyhand.worker.take_up import StoredEvents
from steadyhand.worker.warm_slot import read_supervisor

PARKED = frozenset({State.PARKED})
INTERRUPTED = frozenset({State.INTERRUPTED})
NOT_RUNNING = frozenset({State.QUEUED, State.PARKED, State.WAITING})
_PAGE_SIZE = 200


@dataclass(frozen=True, slots=True)
class _Seen:
    """A job as the store had it when it was compared."""

    job_id: str
    state: State
    run: int


class Recovery:
    """Hands every job of the store that has not ended over to its holder in this process."""

    def __init__(self, deps: WorkerDeps, executor: RunExecutor) -> None:
        self._deps = deps
        self._executor = executor
        self._store = deps.store
        self._queue = deps.queue
        self._failures = deps.store.failures
        self._lost_ends = 0
        self.taken_up: list[tuple[Claim, OrphanedRun | None]] = []
        """The runs of an earlier service that go on, each with its claim; None for one whose agent had not started."""
        self._log = structlog.get_logger("steadyhand.worker")

    async def recover_all(self) -> None:
        """Recover at the start, when this process holds nothing: end unfinished runs and fill the queue."""
        for paths in await self._deps.checkouts.list_ahead():
            supervisor = read_supervisor(paths)
            if supervisor is not None:
                await self._deps.config.kill_leftovers(*supervisor)
        orphans = {(each.job_id, each.run): each for each in self._deps.orphans}
        for job in await self._store.list_in_states(RUNNING):
            if self._is_own(job):
                await self._recover_running(job, orphans.get((job.id, job.run)))
        known = {id(orphan) for _, orphan in self.taken_up}
        for orphan in self._deps.orphans:  # those whose jobs have ended meanwhile
            if id(orphan) not in known:
                await self._end_orphan(orphan)
        await self._queue.recovered()
        await self.requeue_interrupted()
        for job in await self._store.list_in_states(PARKED):
            self._deps.parked.add(job)
            self._deps.metrics.parked.add(job.id)
        queued = [] if self._queue.is_shared else await self._store.list_in_states(QUEUED)
        spared = {claim.job.id for claim, _ in self.taken_up}
        await self._deps.checkouts.remove_leftovers(spared | await self._resumable_job_ids())
        for job in queued:
            await self._queue.requeue(job)
        await self._queue.repair()

    def _is_own(self, job: Job) -> bool:
        """Return True if this node has to end a running job that it does not hold. Others may use the same store."""
        return not self._queue.is_shared or (bool(job.runs) and job.runs[-1].node == self._deps.config.node)

    async def _recover_running(self, job: Job, orphan: OrphanedRun | None) -> None:
        claim = await self._claim_again(job, orphan)
        if claim is not None:
            if orphan is not None and job.spec.tools:
                self._deps.tool_calls.expect(job.id)
            self.taken_up.append((claim, orphan))
            return
        if orphan is not None:
            await self._end_orphan(orphan)
        try:
            if (job.id, job.run) in self._deps.ended_after_stop:
                await self._interrupt(job, "The service stopped, and none was there in time.", planned=True)
            else:
                await self._interrupt(job, "The service stopped without warning.")
        except (Conflict, NotFound):
            if not self._queue.is_shared:
                raise
            self._log.info("job.moved_elsewhere", job=job.id)  # another node took this one for dead

    async def _claim_again(self, job: Job, orphan: OrphanedRun | None) -> Claim | None:
        """Claim a job whose run an earlier service left; None if the run cannot go on."""
        if self._deps.held_runs is None or job.as_answered.state.ended:
            return None
        if orphan is None:
            return self._queue.adopt(job, None) if await self._has_only_begun(job) else None
        slot = orphan.facts.get("slot")
        return self._queue.adopt(job, slot) if isinstance(slot, int) else None

    async def _has_only_begun(self, job: Job) -> bool:
        """Return True if the agent of a run had not started, and nothing is lost if the run begins with its checkout.

        A run that would be held has a record before its agent gets the prompt.
        """
        agent = self._deps.catalog.agent(job.agent)
        if self._deps.held_runs is None or agent.warm or agent.live_seconds:
            return False
        run = job.runs[-1]
        if job.begin != "fresh" or run.supervisor is not None or (job.id, job.run) in self._deps.lost_runs:
            return False
        stored = await StoredEvents.read(self._store, job)
        return "starting" not in stored.phases and not stored.warnings

    async def _end_orphan(self, orphan: OrphanedRun) -> None:
        if self._deps.held_runs is not None:
            await self._deps.held_runs.end(orphan)

    async def reconcile(self) -> None:
        """Recover the jobs that nobody holds, once a write or a read has failed and the store answers again."""
        failures, lost_ends = self._store.failures, self._executor.lost_ends
        if self._store.outage is not None or (failures, lost_ends) == (self._failures, self._lost_ends):
            return
        for seen in [each async for each in self._unheld_jobs()]:
            try:
                await self._give_to_holder(seen)
            except (Conflict, NotFound):
                self._log.debug("job.moved_elsewhere", job=seen.job_id)
        await self.requeue_interrupted()
        # Stored before the first read: a failure since then starts another round.
        self._failures, self._lost_ends = failures, lost_ends

    async def write_cancels(self) -> None:
        """Store the cancels that the store did not take at once."""
        for job_id in self._cancellations.postponed():
            job = await self._store.get(job_id)
            if job is not None and job.state in NOT_RUNNING:
                await self._executor.ender.end(job, Outcome(OutcomeType.CANCELLED), expected=NOT_RUNNING)
                if is_resumable(job):
                    await self._deps.checkouts.discard(job_id)
            elif job is not None and job.state is State.RUNNING:
                await self._queue.cancel(job_id)
            self._cancellations.end(job_id)

    @property
    def _cancellations(self) -> Cancellations:
        return self._deps.cancellations

    async def _unheld_jobs(self) -> AsyncIterator[_Seen]:
        job_filter, cursor = JobFilter(states=RUNNING | QUEUED | PARKED), None
        while True:
            page = await self._store.list_jobs(job_filter, _PAGE_SIZE, cursor)
            for job in page.jobs:
                if not self._is_held(job.id):
                    yield _Seen(job.id, job.state, job.run)
            cursor = page.next_cursor
            if cursor is None:
                return

    def _is_held(self, job_id: str) -> bool:
        return (
            self._queue.holds(job_id)
            or self._deps.parked.contains(job_id)
            or self._cancellations.contains(job_id)
        )

    async def _give_to_holder(self, seen: _Seen) -> None:
        job = await self._store.get(seen.job_id)
        # No await from here to the change: nobody else takes the job meanwhile.
        if job is None or (job.state, job.run) != (seen.state, seen.run) or self._is_held(seen.job_id):
            return
        if job.state is State.RUNNING and not self._is_own(job):
            return
        self._log.warning("job.recovered", job=job.id, state=job.state)
        if job.state is State.RUNNING:
            await self._interrupt(job, "The service lost the run while its store failed.")
        elif job.state is State.PARKED:
            self._deps.parked.add(job)
        else:
            await self._queue.requeue(job)

    async def _interrupt(self, job: Job, reason: str, *, planned: bool = False) -> None:
        run = job.runs[-1] if job.runs else None
        if run is not None and run.supervisor is not None and run.supervisor_started is not None:
            await self._deps.config.kill_leftovers(run.supervisor, run.supervisor_started)
        if job.as_answered.state.ended:
            await self._executor.ender.end_answered(job)
            return
        # Without other nodes it is the operator who starts it again and again.
        is_death = self._queue.is_shared and not planned
        outcome = node_death_outcome(job, reason) if is_death else Outcome(OutcomeType.INTERRUPTED, reason)
        await self._executor.ender.end(job, outcome, planned=planned)
        self._log.warning("job.interrupted", job=job.id)

    async def requeue_interrupted(self) -> None:
        """Queue the interrupted jobs whose `on_interrupt` says so, the oldest first. Of several nodes one does it."""
        for job in await self._store.list_restarted():
            start_mode, now = job.at_start or "fresh", self._deps.config.clock()
            drafts = [EventDraft(job.run, now, StateChanged(job.state, State.QUEUED, reason=start_mode))]
            try:
                changed = await self._deps.event_log.update_job(
                    job.id,
                    INTERRUPTED,
                    lambda old, mode=start_mode, at=now: requeued(old, mode, at),  # type: ignore[misc]  # bound at once
                    drafts,
                )
            except (Conflict, NotFound):
                continue  # a caller was faster
            self._log.info("job.taken_up", job=job.id, begin=start_mode)
            await self._queue.requeue(changed)

    async def _resumable_job_ids(self) -> set[str]:
        """Return the ids of the jobs whose retained checkout a run may resume."""
        job_ids = set()
        for job_id in await self._deps.checkouts.list_retained():
            job = await self._store.get(job_id)
            if job is not None and is_resumable(job):
                job_ids.add(job_id)
        return job_ids
