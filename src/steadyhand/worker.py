"""Claims jobs and runs them: check out, run, judge, keep; drains on the way out and recovers on the way in."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

import structlog

from steadyhand.agents import Agent, Catalogue, Workspace
from steadyhand.errors import Conflict, NotFound, RunError, SpawnError, SteadyhandError, WorkspaceError
from steadyhand.events import Draft, StateChanged, Warned
from steadyhand.job import Job, Notice, Run, State, Verdict, advance
from steadyhand.outcome import OUTCOMES, Evidence, Result, Stop, fault_of, judge
from steadyhand.ports import (
    Attendance,
    Checkouts,
    Claim,
    Gateway,
    Harvest,
    Place,
    Queue,
    Report,
    Runner,
    RunSpec,
    StopSignal,
    Store,
    Work,
)
from steadyhand.record import Journal, Recorder

_T = TypeVar("_T")
_RUNNING = frozenset({State.RUNNING})
_QUEUED = frozenset({State.QUEUED})
HARVEST_SECONDS = 45
TIDY_SECONDS = 1.0
RETENTION_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Tending:
    """What a worker is told of its node. `environment` gives what the service grants an agent's process."""

    node: str
    clock: Callable[[], datetime]
    environment: Callable[[Agent, Place], Mapping[str, str]]
    sweep: Callable[[int, int], Awaitable[object]]
    """Ends what is left of a run of an earlier life: the supervisor's pid and its start time."""
    drain_seconds: float = 30
    keep_jobs: timedelta | None = timedelta(days=90)
    keep_transcripts: timedelta | None = timedelta(days=30)
    max_bytes: int | None = None


class Worker:
    """Runs the jobs that the queue hands out, each in a task of its own."""

    def __init__(
        self,
        *,
        store: Store,
        queue: Queue,
        checkouts: Checkouts,
        runners: Mapping[str, Runner],
        recorder: Recorder,
        catalogue: Catalogue,
        tending: Tending,
        gateway: Gateway | None = None,
    ) -> None:
        """Join the parts; without a gateway agents reach the model, and all else, by themselves."""
        self._gateway = gateway
        self._store = store
        self._queue = queue
        self._checkouts = checkouts
        self._runners = runners
        self._recorder = recorder
        self._catalogue = catalogue
        self._tending = tending
        self._clock = tending.clock
        self._in_place: dict[str, asyncio.Lock] = {}
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._log = structlog.get_logger("steadyhand.worker")

    # --- the life of a node ----------------------------------------------------------------

    async def recover(self) -> None:
        """Put right what an earlier life left: its runs are `interrupted`, its queue waits again."""
        for job in await self._store.in_states(_RUNNING):
            run = job.runs[-1] if job.runs else None
            if run is not None and run.supervisor is not None and run.supervisor_started is not None:
                await self._tending.sweep(run.supervisor, run.supervisor_started)
            await self._end(job, Verdict("interrupted", "The service stopped without warning."))
            self._log.warning("job.interrupted", job=job.id)
        queued = await self._store.in_states(_QUEUED)
        await self._checkouts.sweep()
        for job in queued:
            await self._queue.readmit(job)

    async def run(self) -> None:
        """Claim and run until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tidy(), name="tidy")
            while True:
                claim = await self._queue.claim()
                self._active += 1
                self._idle.clear()
                group.create_task(self._work(claim), name=f"job {claim.job.id}")

    async def drain(self) -> None:
        """Claim nothing more; let runs end by themselves for the grace period, then stop them."""
        self._queue.drain()
        await self._until_idle(self._tending.drain_seconds)
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

    async def _tidy(self) -> None:
        swept = -RETENTION_SECONDS
        while True:
            try:
                await self._expire()
                if time.monotonic() - swept >= RETENTION_SECONDS:
                    swept = time.monotonic()
                    await self._forget_old()
            except (SteadyhandError, OSError):
                self._log.exception("tidy.failed")
            await asyncio.sleep(TIDY_SECONDS)

    async def _expire(self) -> None:
        for job_id in await self._queue.overdue(self._clock()):
            if await self._queue.cancel(job_id) == "withdrawn":
                job = await self._store.get(job_id)
                if job is not None:
                    await self._end(job, Verdict("expired"), expected=_QUEUED)

    async def _forget_old(self) -> None:
        tending, now = self._tending, self._clock()
        await self._checkouts.trim(now, tending.keep_transcripts, tending.max_bytes)
        if tending.keep_jobs is None:
            return
        before = now - tending.keep_jobs
        for job_id in await self._store.ended_before(before, 200):
            await self._checkouts.forget(job_id)
            await self._store.delete(job_id)

    # --- one job ---------------------------------------------------------------------------

    async def _work(self, claim: Claim) -> None:
        log = self._log.bind(job=claim.job.id, slot=claim.slot)
        try:
            await self._run(claim)
        except (Conflict, NotFound) as gone:
            log.info("job.moved_elsewhere", reason=gone.detail)
        except Exception:  # the boundary of a job: whatever went wrong is its end, not the node's
            log.exception("job.failed_internally")
            await self._end_after_fault(claim.job.id)
        finally:
            await self._queue.done(claim)
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def _end_after_fault(self, job_id: str) -> None:
        try:
            job = await self._store.get(job_id)
            if job is not None and not job.state.ended:
                await self._end(job, Verdict("internal"), expected=frozenset({job.state}))
        except SteadyhandError:
            self._log.exception("job.end_not_kept", job=job_id)

    async def _run(self, claim: Claim) -> None:
        workspace = self._workspace(claim.job)
        if workspace.mode != "in_place" or workspace.repository is None:
            await self._run_in(claim, workspace)
            return
        lock = self._in_place.setdefault(workspace.repository, asyncio.Lock())
        held = await until_stopped(lock.acquire(), claim.stop)
        try:
            await self._run_in(claim, workspace)
        finally:
            if held:
                lock.release()

    def _workspace(self, job: Job) -> Workspace:
        workspace = self._catalogue.workspace(job.workspace)
        return workspace if job.ref is None else replace(workspace, ref=job.ref)

    async def _run_in(self, claim: Claim, workspace: Workspace) -> None:
        job = await self._begin(claim)
        stop = claim.stop
        deadline = asyncio.get_running_loop().call_later(job.timeout_seconds, stop.request, Stop.DEADLINE)
        place: Place | None = None
        try:
            place = await self._prepare(job, workspace, claim)
            if place is None:
                await self._end(job, judge(Evidence(stop=stop.reason)))
                return
            job = await self._placed(job, place)
            report = await self._drive(job, place, stop)
        except WorkspaceError as error:
            await self._end(job, Verdict("workspace", error.detail))
            return
        except SpawnError as error:
            await self._end(job, Verdict("not_started", error.detail))
            if place is not None:
                await self._release(place)
            return
        finally:
            deadline.cancel()
        await self._finish(job, place, report)

    async def _prepare(self, job: Job, workspace: Workspace, claim: Claim) -> Place | None:
        if claim.stop.reason is not None:
            return None
        place = await until_stopped(self._checkouts.prepare(job, workspace, claim.slot), claim.stop)
        return None if place is None else replace(place, slot=claim.slot)

    async def _begin(self, claim: Claim) -> Job:
        now = self._clock()
        number = claim.job.run + 1
        session = str(uuid.uuid4())
        draft = Draft(number, now, StateChanged(State.QUEUED, State.RUNNING))
        run = Run(number, State.RUNNING, started_at=now, node=self._tending.node)
        return await self._recorder.change(
            claim.job.id,
            _QUEUED,
            lambda old: replace(
                old,
                state=advance(old.state, State.RUNNING),
                started_at=now,
                session_id=session,
                runs=(*old.runs, run),
            ),
            [draft],
        )

    async def _placed(self, job: Job, place: Place) -> Job:
        if place.commit is None and not place.notices:
            return job
        now = self._clock()
        drafts = [Draft(job.run, now, Warned(notice.code, notice.message)) for notice in place.notices]
        return await self._recorder.change(
            job.id,
            _RUNNING,
            lambda old: replace(
                old, commit=place.commit or old.commit, warnings=(*old.warnings, *place.notices)
            ),
            drafts,
        )

    async def _drive(self, job: Job, place: Place, stop: StopSignal) -> Report:
        journal = Journal(self._recorder, job.id, job.run, self._clock)
        agent = self._catalogue.agent(job.agent)
        if agent.definition is None and agent.name in place.definitions:
            agent = replace(agent, definition=agent.name)
        runner = self._runners[agent.runner]
        async with asyncio.TaskGroup() as group:
            group.create_task(journal.write(), name=f"journal {job.id}")

            def spawned(pid: int, started: int) -> None:
                group.create_task(self._note_supervisor(job, pid, started), name=f"supervisor {job.id}")

            try:
                async with self._let_out(Work(job, agent, place), journal) as attendance:
                    told = {} if attendance is None else attendance.environment
                    spec = RunSpec(
                        job=job,
                        number=job.run,
                        agent=agent,
                        place=place,
                        environment={**self._tending.environment(agent, place), **told, **agent.env},
                        spawned=spawned,
                        listening=None if attendance is None else attendance.listening,
                    )
                    result = await attempt(runner.run(spec, journal.emit, stop))
            finally:
                await journal.close()
        if isinstance(result, RunError):
            raise result
        return result

    def _let_out(self, work: Work, journal: Journal) -> AbstractAsyncContextManager[Attendance | None]:
        return nullcontext() if self._gateway is None else self._gateway.attend(work, journal.emit)

    async def _note_supervisor(self, job: Job, pid: int, started: int) -> None:
        try:
            await self._store.change(
                job.id,
                _RUNNING,
                lambda old: _with_run(old, supervisor=pid, supervisor_started=started),
            )
        except (Conflict, NotFound):
            self._log.debug("supervisor.not_noted", job=job.id)

    async def _finish(self, job: Job, place: Place, report: Report) -> None:
        harvest = await self._harvest(place)
        verdict = judge(report.evidence)
        notices = (*report.notices, *harvest.notices)
        try:
            # Handed in one after the other without a wait between, the two share a commit.
            async with asyncio.TaskGroup() as group:
                group.create_task(self._store.keep_output(job.id, job.run, report.output))
                group.create_task(self._end(job, verdict, report=report, harvest=harvest, notices=notices))
        finally:
            await self._release(place)

    async def _harvest(self, place: Place) -> Harvest:
        try:
            async with asyncio.timeout(HARVEST_SECONDS):
                return await self._checkouts.harvest(place)
        except (WorkspaceError, TimeoutError) as error:
            self._log.warning("harvest.failed", error=str(error))
            return Harvest(None, (Notice("harvest_failed", "What the agent changed could not be kept."),))

    async def _release(self, place: Place) -> None:
        try:
            await self._checkouts.release(place)
        except (WorkspaceError, OSError):
            self._log.exception("release.failed", job=place.files.root.name)

    async def _end(
        self,
        job: Job,
        verdict: Verdict,
        *,
        expected: frozenset[State] = _RUNNING,
        report: Report | None = None,
        harvest: Harvest | None = None,
        notices: tuple[Notice, ...] = (),
    ) -> None:
        """Write down what a job came to, in one commit with its last event."""
        self._queue.ending(job.id)
        now = self._clock()
        target = OUTCOMES[verdict.type].state
        drafts = [Draft(job.run, now, Warned(notice.code, notice.message)) for notice in notices]
        drafts.append(
            Draft(job.run, now, StateChanged(job.state, target, outcome=verdict.type, reason=verdict.detail))
        )

        def update(old: Job) -> Job:
            ended = replace(
                old,
                state=advance(old.state, target),
                outcome=verdict,
                error=fault_of(verdict),
                finished_at=now,
                warnings=(*old.warnings, *notices),
            )
            if old.state is State.RUNNING:
                ended = _with_run(
                    ended,
                    state=target,
                    outcome=verdict,
                    finished_at=now,
                    exit_code=report.evidence.exit_code if report else None,
                )
            if harvest is not None and harvest.changes is not None:
                ended = replace(ended, changes=harvest.changes)
            return _with_report(ended, report) if report is not None else ended

        await self._recorder.change(job.id, expected, update, drafts)


def _with_run(job: Job, **values: Any) -> Job:
    return replace(job, runs=(*job.runs[:-1], replace(job.runs[-1], **values)))


def _with_report(job: Job, report: Report) -> Job:
    job = replace(job, session_id=report.session_id or job.session_id)
    result = report.evidence.result
    return job if result is None else _with_result(job, result)


def _with_result(job: Job, result: Result) -> Job:
    cost = job.cost
    if result.cost_micros is not None:
        total = cost.micros + result.cost_micros
        cost = replace(cost, micros=total, reported_micros=total)
    return replace(
        job,
        answer=result.text,
        structured_output=result.structured_output,
        usage=job.usage if result.usage is None else job.usage.plus(result.usage),
        cost=cost,
    )


async def attempt(work: Awaitable[_T]) -> _T | RunError:
    """Give what the work comes to, its `RunError` as a value: a task group would wrap it."""
    try:
        return await work
    except RunError as error:
        return error


async def until_stopped(work: Coroutine[Any, Any, _T], stop: StopSignal) -> _T | None:
    """Give what the work comes to, or null when a stop is asked for first; the work is then cancelled."""
    async with asyncio.TaskGroup() as group:
        job = group.create_task(attempt(work))
        asked = group.create_task(stop.wait())
        await asyncio.wait({job, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not job.done():
            job.cancel()
    if job.cancelled():
        return None
    result = job.result()
    if isinstance(result, RunError):
        raise result
    return result
