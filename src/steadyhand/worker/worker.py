"""The life of a node: it claims jobs, recovers on the way in, tidies in between, and drains on the way out."""

import asyncio
import time

import structlog

from steadyhand.errors import SteadyhandError
from steadyhand.events import Draft, StateChanged
from steadyhand.job import Begin, Job, OutcomeType, State, Verdict
from steadyhand.outcome import Stop
from steadyhand.ports import Claim, Filter
from steadyhand.retry import again, goes_on
from steadyhand.worker.parked import MOST_PARKED, last_moment
from steadyhand.worker.results import unparked
from steadyhand.worker.run_executor import HARVEST_SECONDS, QUEUED, RUNNING, Parts, Runs

TIDY_SECONDS = 1.0
RETENTION_SECONDS = 300.0
PARKED = frozenset({State.PARKED})
_PAGE = 200


class Worker:
    """Runs the jobs that the queue hands out, each in a task of its own."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._runs = Runs(parts)
        self._store = parts.store
        self._queue = parts.queue
        self._checkouts = parts.checkouts
        self._clock = parts.tending.clock
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._log = structlog.get_logger("steadyhand.worker")

    # --- the way in ------------------------------------------------------------------------

    async def recover(self) -> None:
        """Put right what an earlier life left: its runs are `interrupted`, its queue waits again."""
        for job in await self._store.in_states(RUNNING):
            run = job.runs[-1] if job.runs else None
            if run is not None and run.supervisor is not None and run.supervisor_started is not None:
                await self._parts.tending.sweep(run.supervisor, run.supervisor_started)
            await self._runs.end(
                job, Verdict(OutcomeType.INTERRUPTED, "The service stopped without warning."), planned=False
            )
            self._log.warning("job.interrupted", job=job.id)
        for job in await self._to_take_up():
            await self._take_up(job, job.at_start or "fresh")
        for job in await self._store.in_states(PARKED):
            self._parts.parking.put(job)
        queued = await self._store.in_states(QUEUED)
        await self._checkouts.sweep(await self._going_on())
        for job in queued:
            await self._queue.readmit(job)

    async def _to_take_up(self) -> list[Job]:
        """Give the interrupted jobs that wait for this start, oldest first."""
        found: list[Job] = []
        which, cursor = Filter(states=frozenset({State.INTERRUPTED})), None
        while True:
            page = await self._store.page(which, _PAGE, cursor)
            found += [job for job in page.jobs if job.at_start is not None]
            cursor = page.next_cursor
            if cursor is None:
                return found[::-1]

    async def _take_up(self, job: Job, begin: Begin) -> None:
        now = self._clock()
        drafts = [Draft(job.run, now, StateChanged(job.state, State.QUEUED, reason=begin))]
        await self._parts.recorder.change(
            job.id, frozenset({State.INTERRUPTED}), lambda old: again(old, begin, now), drafts
        )
        self._log.info("job.taken_up", job=job.id, begin=begin)

    async def _going_on(self) -> set[str]:
        """Give the jobs in whose checkout a run may go on."""
        found = set()
        for job_id in await self._checkouts.kept():
            job = await self._store.get(job_id)
            if job is not None and goes_on(job):
                found.add(job_id)
        return found

    # --- in between ------------------------------------------------------------------------

    async def run(self) -> None:
        """Claim and run until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tidy(), name="tidy")
            while True:
                claim = await self._queue.claim()
                self._active += 1
                self._idle.clear()
                group.create_task(self._work(claim), name=f"job {claim.job.id}")

    async def _work(self, claim: Claim) -> None:
        try:
            await self._runs.work(claim)
        finally:
            await self._queue.done(claim)
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def _tidy(self) -> None:
        swept = -RETENTION_SECONDS
        while True:
            try:
                await self._expire()
                await self._unpark()
                if time.monotonic() - swept >= RETENTION_SECONDS:
                    swept = time.monotonic()
                    await self._let_go_of_checkouts()
                    await self._forget_old()
            except (SteadyhandError, OSError):
                self._log.exception("tidy.failed")
            await asyncio.sleep(TIDY_SECONDS)

    async def _expire(self) -> None:
        for job_id in await self._queue.overdue(self._clock()):
            if await self._queue.cancel(job_id) == "withdrawn":
                job = await self._store.get(job_id)
                if job is not None:
                    await self._runs.end(job, Verdict(OutcomeType.EXPIRED), expected=QUEUED)

    async def _unpark(self) -> None:
        """Queue the jobs whose wait for the model is over; one that has waited for too long ends."""
        now = self._clock()
        for job_id in self._parts.parking.due(now):
            job = await self._store.get(job_id)
            if job is None or job.state is not State.PARKED:
                continue  # it was cancelled, or deleted after that
            if now >= last_moment(job):
                verdict = Verdict(
                    OutcomeType.TIMEOUT, f"The model's rate limit held it up for {MOST_PARKED.days} days."
                )
                await self._runs.end(job, verdict, expected=PARKED)
                continue
            drafts = [Draft(job.run, now, StateChanged(job.state, State.QUEUED, reason="the wait is over"))]
            job = await self._parts.recorder.change(job_id, PARKED, lambda old: unparked(old, now), drafts)
            await self._queue.readmit(job)

    async def _let_go_of_checkouts(self) -> None:
        """Drop the checkouts of ended jobs that have waited long enough for a run to go on in them."""
        keep = self._parts.tending.keep_checkouts
        if keep is None:
            return
        for job_id in await self._checkouts.kept():
            job = await self._store.get(job_id)
            if job is None or not job.state.ended or job.finished_at is None:
                continue
            if not goes_on(job) or job.finished_at < self._clock() - keep:
                await self._checkouts.drop(job_id)

    async def _forget_old(self) -> None:
        tending, now = self._parts.tending, self._clock()
        await self._checkouts.trim(now, tending.keep_transcripts, tending.max_bytes)
        if tending.keep_jobs is None:
            return
        before = now - tending.keep_jobs
        for job_id in await self._store.ended_before(before, 200):
            await self._checkouts.forget(job_id)
            await self._store.delete(job_id)

    # --- the way out -----------------------------------------------------------------------

    async def drain(self) -> None:
        """Claim nothing more; let runs end by themselves for the grace period, then stop them."""
        self._queue.drain()
        await self._until_idle(self._parts.tending.drain_seconds)
        if self._active:
            self._log.info("drain.stopping", active=self._active)
            self._queue.stop_all(Stop.SHUTDOWN)
            await self._until_idle(HARVEST_SECONDS + 10)

    async def _until_idle(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return
