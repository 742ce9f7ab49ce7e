"""The worker of a node: recovery at its start, claims and maintenance, drain at its stop."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import structlog

from steadyhand.errors import Conflict, NotFound, SteadyhandError, StoreUnavailable
from steadyhand.events import EventDraft, StateChanged
from steadyhand.job import Job, Outcome, OutcomeType, State
from steadyhand.outcome import StopReason
from steadyhand.ports import Claim, OrphanedRun
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.job_end import HARVEST_SECONDS
from steadyhand.worker.job_retention import Retention
from steadyhand.worker.lost_runs import SWEEP_SECONDS, LostRuns
from steadyhand.worker.parked import MAX_PARKED, park_deadline, waits_for_credential
from steadyhand.worker.recovery import PARKED, Recovery
from steadyhand.worker.results import unparked_job
from steadyhand.worker.run_executor import QUEUED, RunExecutor

MAINTENANCE_SECONDS = 1.0
EARLIER_RUN_SECONDS = 120.0
"""The time for a run that was taken from this node to end: its agent is stopped, and what it did is not stored."""


class Worker:
    """Claims jobs from the queue and runs each in a task of its own."""

    def __init__(self, deps: WorkerDeps) -> None:
        self._deps = deps
        self._executor = RunExecutor(deps)
        self._recovery = Recovery(deps, self._executor)
        self._lost_runs = LostRuns(deps, self._executor, self._recovery)
        self._retention = Retention(deps)
        self._store = deps.store
        self._queue = deps.queue
        self._clock = deps.config.clock
        self._active = 0
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._draining = False
        self._left: set[str] = set()
        """The jobs whose runs go on without this process."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._log = structlog.get_logger("steadyhand.worker")

    def warm_processes(self) -> Mapping[str, Any] | None:
        """Return the counts of the processes that wait for jobs; None if no agent has them."""
        return self._executor.warm_pool.summary()

    def warm_agents(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the reports of the agents whose processes wait for jobs, by name."""
        return self._executor.warm_pool.agent_reports()

    async def recover(self) -> None:
        """Recover after a stop or a crash: end unfinished runs as `interrupted` and fill the queue."""
        await self._recovery.recover_all()

    async def end_lost_run(self, job_id: str, job_run: int) -> None:
        """End the run `job_run` of a job whose node died, on this one; the job then follows its `on_interrupt`."""
        await self._lost_runs.end_run(job_id, job_run)

    # --- operation -------------------------------------------------------------------------

    async def run(self) -> None:
        """Claim and run jobs until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._maintain(), name="tidy")
            group.create_task(self._retention.run(), name="retention")
            group.create_task(self._executor.waiting_runs.run(), name="waiting runs")
            group.create_task(self._executor.warm_pool.run(), name="warm pool")
            if self._queue.is_shared:
                group.create_task(self._sweep(), name="sweep")
            group.create_task(self._executor.parent_processes.run(), name="parent processes")
            for claim, orphan in self._recovery.taken_up:
                self._start(group, claim, orphan, has_begun=True)
            while True:
                self._start(group, await self._queue.claim())

    def _start(
        self,
        group: asyncio.TaskGroup,
        claim: Claim,
        orphan: OrphanedRun | None = None,
        *,
        has_begun: bool = False,
    ) -> None:
        self._active += 1
        self._idle.clear()
        earlier = self._tasks.get(claim.job.id)
        task = group.create_task(
            self._run_claim(claim, orphan, earlier, has_begun=has_begun), name=f"job {claim.job.id}"
        )
        self._tasks[claim.job.id] = task

    async def _run_claim(
        self, claim: Claim, orphan: OrphanedRun | None, earlier: asyncio.Task[None] | None, *, has_begun: bool
    ) -> None:
        job_id = claim.job.id
        try:
            if earlier is None or await self._earlier_ended(job_id, earlier):
                await self._executor.execute(claim, orphan, has_begun=has_begun)
        finally:
            is_left = job_id in self._left
            await (self._queue.leave(claim) if is_left else self._queue.release(claim))
            self._active -= 1
            if self._tasks.get(job_id) is asyncio.current_task():
                del self._tasks[job_id]
            self._executor.agent_runs.changed.set()
            if not self._active:
                self._idle.set()

    async def _earlier_ended(self, job_id: str, earlier: asyncio.Task[None]) -> bool:
        """Wait for the end of a run of the same job here; return False if it takes too long.

        Other nodes took this one for dead, ended the run and gave the job its next one, before this node came back. The
        two have the same folders, which the earlier run puts away at its end. A job that did not start is queued again.
        """
        self._log.info("run.waits_for_earlier", job=job_id)
        ended, _ = await asyncio.wait([earlier], timeout=EARLIER_RUN_SECONDS)
        if not ended:
            self._log.warning("run.earlier_goes_on", job=job_id)
        return bool(ended)

    async def _maintain(self) -> None:
        while True:
            try:
                await self._end_expired()
                await self._unpark()
                await self._recovery.write_cancels()
                if not self._draining:
                    await self._recovery.reconcile()
            except StoreUnavailable as error:
                self._log.debug("tidy.postponed", reason=error.detail)  # the store has logged the outage
            except (SteadyhandError, OSError):
                self._log.exception("tidy.failed")
                self._executor.lost_ends += 1  # a job may have been taken out of its place and not stored
            await asyncio.sleep(MAINTENANCE_SECONDS)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                if not self._draining:
                    await self._lost_runs.sweep()
            except StoreUnavailable as error:
                self._log.debug("sweep.postponed", reason=error.detail)
            except (SteadyhandError, OSError):
                self._log.exception("sweep.failed")

    async def _end_expired(self) -> None:
        for job_id in await self._queue.list_expired(self._clock()):
            if await self._queue.cancel(job_id) == "withdrawn":
                job = await self._store.get(job_id)
                if job is not None:
                    await self._executor.ender.end(job, Outcome(OutcomeType.EXPIRED), expected=QUEUED)

    async def _end_parked(self, job: Job, outcome: Outcome) -> None:
        try:
            await self._executor.ender.end(job, outcome, expected=PARKED)
        except (Conflict, NotFound):
            self._log.debug("job.moved_elsewhere", job=job.id)

    async def _unpark_job(self, job: Job, now: datetime) -> None:
        drafts = [EventDraft(job.run, now, StateChanged(job.state, State.QUEUED, reason="the wait is over"))]
        try:
            job = await self._deps.event_log.update_job(
                job.id, PARKED, lambda old: unparked_job(old, now), drafts
            )
        except (Conflict, NotFound):
            self._log.debug("job.moved_elsewhere", job=job.id)  # a caller or another node was faster
            return
        await self._queue.requeue(job)

    async def _unpark(self) -> None:
        """Queue the parked jobs whose wait is over; end those that have waited too long."""
        now = self._clock()
        self._deps.parked.release(self._has_credential, now)
        for job_id in self._deps.parked.pop_due(now):
            job = await self._store.get(job_id)
            if job is None or job.state is not State.PARKED:
                continue  # it was cancelled, and perhaps deleted
            if now >= park_deadline(job):
                obstacle = "a credential" if waits_for_credential(job) else "the model's rate limit"
                outcome = Outcome(
                    OutcomeType.TIMEOUT, f"The job waited {MAX_PARKED.days} days for {obstacle}."
                )
                await self._end_parked(job, outcome)
                continue
            await self._unpark_job(job, now)

    def _has_credential(self, agent: str) -> bool:
        """Return True unless the model's service rejects the credential of an agent; a start takes it as good."""
        gateway = self._deps.gateway
        return gateway is None or gateway.credential_rejected_until(self._deps.catalog.agent(agent)) is None

    # --- shutdown --------------------------------------------------------------------------

    def watch_drained(self, is_drained: Callable[[], bool]) -> None:
        """Let no process wait for jobs while this returns True: the node takes no new runs."""
        self._executor.warm_pool.is_drained = is_drained

    async def drain(self, *, accepts_jobs: bool = False) -> None:
        """Stop claiming; let runs end by themselves for `drain_seconds`, then stop them.

        Runs that may outlive the service are waited for no longer than the others, and left to the next service. With
        `accepts_jobs` that service also gets the jobs that come meanwhile.
        """
        self._draining = True
        self._queue.drain(accepts_jobs=accepts_jobs)
        self._executor.warm_pool.close()
        await self._until_left_alone(self._deps.config.drain_seconds)
        others = [job_id for job_id in self._tasks if job_id not in self._executor.agent_runs.leave_functions]
        if others:
            self._log.info("drain.stopping", active=len(others))
            for job_id in others:
                await self._queue.cancel(job_id, StopReason.SHUTDOWN)
            await self._until_left_alone(HARVEST_SECONDS + 10)
        await self._leave_runs()

    async def _leave_runs(self) -> None:
        """Leave the runs to the next service that may outlive this one."""
        if not self._executor.agent_runs.leave_functions:
            return
        if self._deps.gateway is not None:
            self._deps.gateway.leave_runs()
        for job_id, leave in list(self._executor.agent_runs.leave_functions.items()):
            if leave():
                self._log.info("run.left", job=job_id)
                self._left.add(job_id)
                self._tasks[job_id].cancel()
            else:
                await self._queue.cancel(job_id, StopReason.SHUTDOWN)
        await self._until_idle(HARVEST_SECONDS + 10)

    async def _until_left_alone(self, seconds: float) -> None:
        """Wait until all runs that go on may be left."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._executor.agent_runs.leave_functions.keys() >= self._tasks.keys():
                    self._executor.agent_runs.changed.clear()
                    await self._executor.agent_runs.changed.wait()

    async def _until_idle(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
