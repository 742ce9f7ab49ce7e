"""The worker of a node: recovery at its start, claims and maintenance, drain at its stop."""

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from steadyhand.errors import SteadyhandError, StoreUnavailable
from steadyhand.events import EventDraft, StateChanged
from steadyhand.job import Outcome, OutcomeType, State
from steadyhand.outcome import StopReason
from steadyhand.ports import Claim
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.job_retention import Retention
from steadyhand.worker.parked import MAX_PARKED, park_deadline, waits_for_credential
from steadyhand.worker.recovery import PARKED, Recovery
from steadyhand.worker.results import unparked_job
from steadyhand.worker.run_executor import HARVEST_SECONDS, QUEUED, RunExecutor

MAINTENANCE_SECONDS = 1.0


class Worker:
    """Claims jobs from the queue and runs each in a task of its own."""

    def __init__(self, deps: WorkerDeps) -> None:
        self._deps = deps
        self._executor = RunExecutor(deps)
        self._recovery = Recovery(deps, self._executor)
        self._retention = Retention(deps)
        self._store = deps.store
        self._queue = deps.queue
        self._clock = deps.config.clock
        self._active = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._log = structlog.get_logger("steadyhand.worker")

    def warm_processes(self) -> Mapping[str, Any] | None:
        """Return the counts of the processes that wait for jobs; None if no agent has them."""
        return self._executor.warm_pool.summary()

    async def recover(self) -> None:
        """Recover after a stop or a crash: end unfinished runs as `interrupted` and fill the queue."""
        await self._recovery.recover_all()

    # --- operation -------------------------------------------------------------------------

    async def run(self) -> None:
        """Claim and run jobs until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._maintain(), name="tidy")
            group.create_task(self._retention.run(), name="retention")
            group.create_task(self._executor.waiting_runs.run(), name="waiting runs")
            group.create_task(self._executor.warm_pool.run(), name="warm pool")
            while True:
                claim = await self._queue.claim()
                self._active += 1
                self._idle.clear()
                group.create_task(self._run_claim(claim), name=f"job {claim.job.id}")

    async def _run_claim(self, claim: Claim) -> None:
        try:
            await self._executor.execute(claim)
        finally:
            await self._queue.release(claim)
            self._active -= 1
            if not self._active:
                self._idle.set()

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

    async def _end_expired(self) -> None:
        for job_id in await self._queue.list_expired(self._clock()):
            if await self._queue.cancel(job_id) == "withdrawn":
                job = await self._store.get(job_id)
                if job is not None:
                    await self._executor.end_job(job, Outcome(OutcomeType.EXPIRED), expected=QUEUED)

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
                await self._executor.end_job(job, outcome, expected=PARKED)
                continue
            drafts = [
                EventDraft(job.run, now, StateChanged(job.state, State.QUEUED, reason="the wait is over"))
            ]
            job = await self._deps.event_log.update_job(
                job_id, PARKED, lambda old: unparked_job(old, now), drafts
            )
            await self._queue.requeue(job)

    def _has_credential(self, agent: str) -> bool:
        """Return True unless the model's service rejects the credential of an agent; a start takes it as good."""
        gateway = self._deps.gateway
        return gateway is None or gateway.credential_rejected_until(self._deps.catalog.agent(agent)) is None

    # --- shutdown --------------------------------------------------------------------------

    async def drain(self) -> None:
        """Stop claiming; let runs end by themselves for `drain_seconds`, then stop them."""
        self._draining = True
        self._queue.drain()
        self._executor.warm_pool.close()
        await self._until_idle(self._deps.config.drain_seconds)
        if self._active:
            self._log.info("drain.stopping", active=self._active)
            self._queue.stop_all(StopReason.SHUTDOWN)
            await self._until_idle(HARVEST_SECONDS + 10)

    async def _until_idle(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return
