"""One job's way through a run: begin, place, drive, judge, keep."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import structlog

from steadyhand.agents import Agent, Catalogue, Workspace
from steadyhand.errors import Conflict, NotFound, RunError, SpawnError, SteadyhandError, WorkspaceError
from steadyhand.event_log import Journal, Recorder
from steadyhand.events import CallsAnswered, CallsWaiting, Draft, StateChanged, Warned, rfc3339
from steadyhand.job import Job, Notice, OutcomeType, Run, State, Usage, Verdict, advance
from steadyhand.job_warnings import WarningCode
from steadyhand.outcome import OUTCOMES, Evidence, Stop, judge
from steadyhand.ports import (
    Ask,
    Attendance,
    Call,
    Checkouts,
    Claim,
    ClientCall,
    Gateway,
    Harvest,
    Ledger,
    Place,
    Queue,
    Report,
    Runner,
    RunSpec,
    Spent,
    StopSignal,
    Store,
    Tokens,
    UsageQuery,
    Work,
)
from steadyhand.retry import goes_on
from steadyhand.tool_calls import Exchange
from steadyhand.worker.parents import before, earlier_files
from steadyhand.worker.parked import Parking
from steadyhand.worker.results import Ran, differs, ended, parked, with_run, with_spent
from steadyhand.worker.stoppable import attempt, until_stopped

RUNNING = frozenset({State.RUNNING})
QUEUED = frozenset({State.QUEUED})
HARVEST_SECONDS = 45
_TURNED_AWAY = frozenset(
    {OutcomeType.RATE_LIMITED, OutcomeType.AGENT_ERROR, OutcomeType.MODEL_ERROR, OutcomeType.NO_RESULT}
)
"""What a run looks like that the model's rate limit has stopped."""


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
    keep_checkouts: timedelta | None = timedelta(days=1)
    """How long an ended job's checkout waits for a run that goes on in it."""
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run needs of the service. Without a gateway agents reach the model, and all else, by themselves."""

    store: Store
    queue: Queue
    checkouts: Checkouts
    runners: Mapping[str, Runner]
    recorder: Recorder
    catalogue: Catalogue
    tending: Tending
    ledger: Ledger
    gateway: Gateway | None = None
    parking: Parking = field(default_factory=Parking)
    exchange: Exchange = field(default_factory=Exchange)


class Runs:
    """Takes claimed jobs through their runs; each call of `work` sees one to its end."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._clock = parts.tending.clock
        self._in_place: dict[str, asyncio.Lock] = {}
        self._log = structlog.get_logger("steadyhand.worker")

    async def work(self, claim: Claim) -> None:
        """Run a claimed job; whatever goes wrong is its end, not the node's."""
        log = self._log.bind(job=claim.job.id, slot=claim.slot)
        try:
            await self._run(claim)
        except (Conflict, NotFound) as gone:
            log.info("job.moved_elsewhere", reason=gone.detail)
        except Exception:  # the boundary of a job
            log.exception("job.failed_internally")
            await self._end_after_fault(claim.job.id)

    async def _end_after_fault(self, job_id: str) -> None:
        try:
            job = await self._parts.store.get(job_id)
            if job is not None and not job.state.ended:
                await self.end(job, Verdict(OutcomeType.INTERNAL), expected=frozenset({job.state}))
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
        workspace = self._parts.catalogue.workspace(job.workspace)
        return workspace if job.ref is None else replace(workspace, ref=job.ref)

    async def _run_in(self, claim: Claim, workspace: Workspace) -> None:
        # What the run alone has of secrets is known until all that it left is kept.
        with ExitStack() as secrets:
            await self._run_at(claim, workspace, secrets)

    async def _run_at(self, claim: Claim, workspace: Workspace, secrets: ExitStack) -> None:
        job = await self._begin(claim)
        stop = claim.stop
        left = max(0.0, job.timeout_seconds - job.used_seconds)
        deadline = asyncio.get_running_loop().call_later(left, stop.request, Stop.DEADLINE)
        place: Place | None = None
        try:
            place = await self._prepare(job, workspace, claim)
            if place is None:
                job = await self.end(job, judge(Evidence(stop=stop.reason)))
                if not goes_on(job):
                    await self._parts.checkouts.drop(job.id)
                return
            job = await self._placed(job, place)
            ran = await self._drive(job, place, stop, secrets)
        except WorkspaceError as error:
            await self.end(job, Verdict(OutcomeType.WORKSPACE, error.detail))
            return
        except SpawnError as error:
            await self.end(job, Verdict(OutcomeType.NOT_STARTED, error.detail))
            if place is not None:
                await self._release(place)
            return
        finally:
            deadline.cancel()
        await self._finish(job, place, ran)

    # --- up to the run ---------------------------------------------------------------------

    async def _begin(self, claim: Claim) -> Job:
        now = self._clock()
        number = claim.job.run + 1
        parts = self._parts
        parent = await before(parts.store, parts.checkouts, claim.job) if number == 1 else None
        session = str(uuid.uuid4())
        draft = Draft(number, now, StateChanged(State.QUEUED, State.RUNNING))
        run = Run(number, State.RUNNING, started_at=now, node=parts.tending.node)
        return await parts.recorder.change(
            claim.job.id,
            QUEUED,
            lambda old: replace(
                old,
                state=advance(old.state, State.RUNNING),
                started_at=now,
                since_run=old.since_run if old.begin == "resume" else number,
                parent_job_id=old.parent_job_id if parent is None else parent.id,
                commit=old.commit if parent is None else parent.commit,
                session_id=(parent.session_id if parent else None)
                or (old.session_id if old.begin == "resume" else None)
                or session,
                runs=(*old.runs, run),
            ),
            [draft],
        )

    async def _prepare(self, job: Job, workspace: Workspace, claim: Claim) -> Place | None:
        if claim.stop.reason is not None:
            return None
        checkouts = self._parts.checkouts
        place = await until_stopped(checkouts.prepare(job, workspace, claim.slot), claim.stop)
        return None if place is None else replace(place, slot=claim.slot)

    async def _placed(self, job: Job, place: Place) -> Job:
        if place.commit is None and not place.notices:
            return job
        now = self._clock()
        drafts = [Draft(job.run, now, Warned(notice.code, notice.message)) for notice in place.notices]
        return await self._parts.recorder.change(
            job.id,
            RUNNING,
            lambda old: replace(
                old, commit=place.commit or old.commit, warnings=(*old.warnings, *place.notices)
            ),
            drafts,
        )

    # --- the run ---------------------------------------------------------------------------

    async def _drive(self, job: Job, place: Place, stop: StopSignal, secrets: ExitStack) -> Ran:
        parts = self._parts
        journal = Journal(parts.recorder, job.id, job.run, self._clock)
        agent = parts.catalogue.agent(job.agent)
        earlier = await earlier_files(parts.store, job)
        if agent.definition is None and agent.name in place.definitions:
            agent = replace(agent, definition=agent.name)
        async with asyncio.TaskGroup() as group:
            group.create_task(journal.write(), name=f"journal {job.id}")

            def spawned(pid: int, started: int) -> None:
                group.create_task(self._note_supervisor(job, pid, started), name=f"supervisor {job.id}")

            try:
                async with self._let_out(Work(job, agent, place), journal) as attendance:
                    told: Mapping[str, str] = {}
                    if attendance is not None:
                        told = attendance.environment
                        secrets.enter_context(parts.recorder.redactor.lent(attendance.secrets))
                    spec = RunSpec(
                        job=job,
                        number=job.run,
                        agent=agent,
                        place=place,
                        environment={**parts.tending.environment(agent, place), **told, **agent.env},
                        spawned=spawned,
                        listening=None if attendance is None else attendance.listening,
                        ask=self._asking(job, journal) if job.tools else None,
                        earlier=earlier,
                    )
                    result = await attempt(parts.runners[agent.runner].run(spec, journal.emit, stop))
                    ran = result if isinstance(result, RunError) else await _counted(result, attendance)
            finally:
                await journal.close()
        if isinstance(ran, RunError):
            raise ran
        if ran.spent is None:
            await self._keep_reported(job, agent, ran.report)
        return ran

    async def _keep_reported(self, job: Job, agent: Agent, report: Report) -> None:
        """Keep what a run past the gateway cost by the agent's own word: in the ledger, and against shared budgets."""
        result = report.evidence.result
        if result is None or result.cost_micros is None:
            return
        said = result.usage or Usage()
        tokens = Tokens(
            said.input_tokens,
            said.output_tokens,
            said.cache_read_input_tokens,
            said.cache_creation_input_tokens,
        )
        call = Call(
            id=uuid.uuid4().hex,
            job_id=job.id,
            run=job.run,
            api_key_id=job.api_key_id,
            agent=job.agent,
            provider=agent.provider,
            model=job.model or agent.model or "",
            at=self._clock(),
            settled=True,
            tokens=tokens,
            micros=result.cost_micros,
            source="reported",
        )
        await self._parts.ledger.keep_call(call)
        if self._parts.gateway is not None:
            self._parts.gateway.count(call)

    def _let_out(self, work: Work, journal: Journal) -> AbstractAsyncContextManager[Attendance | None]:
        gateway = self._parts.gateway
        return nullcontext() if gateway is None else gateway.attend(work, journal.emit)

    def _asking(self, job: Job, journal: Journal) -> Ask:
        exchange = self._parts.exchange

        async def ask(calls: Sequence[ClientCall]) -> Mapping[str, str]:
            told = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in calls]
            # They wait before anybody is told of them: whoever is told may answer at once.
            with exchange.waiting(job.id, calls) as waiting:
                await journal.emit(CallsWaiting(told))
                return await waiting.results(exchange.seconds)

        return ask

    async def _note_supervisor(self, job: Job, pid: int, started: int) -> None:
        try:
            await self._parts.store.change(
                job.id,
                RUNNING,
                lambda old: with_run(old, supervisor=pid, supervisor_started=started),
            )
        except (Conflict, NotFound):
            self._log.debug("supervisor.not_noted", job=job.id)

    # --- after the run ---------------------------------------------------------------------

    async def _finish(self, job: Job, place: Place, ran: Ran) -> None:
        report = ran.report
        harvest = await self._harvest(place)
        verdict = judge(report.evidence)
        difference = differs(ran)
        notices = (*report.notices, *harvest.notices, *([] if difference is None else [difference]))
        parks = ran.wall is not None and verdict.type in _TURNED_AWAY
        # Until its end is written down the job may go on: only then is it known what to keep.
        keeping = False
        try:
            # Handed in one after the other without a wait between, the two share a commit.
            async with asyncio.TaskGroup() as group:
                group.create_task(self._parts.store.keep_output(job.id, job.run, report.output))
                ending = group.create_task(
                    self._park(job, verdict, ran, harvest, notices)
                    if parks
                    else self.end(job, verdict, ran=ran, harvest=harvest, notices=notices)
                )
            keeping = goes_on(ending.result())
        finally:
            await (self._parts.checkouts.keep(place) if keeping else self._release(place))

    async def _harvest(self, place: Place) -> Harvest:
        try:
            async with asyncio.timeout(HARVEST_SECONDS):
                return await self._parts.checkouts.harvest(place)
        except (WorkspaceError, TimeoutError) as error:
            self._log.warning("harvest.failed", error=str(error))
            return Harvest(
                None, (Notice(WarningCode.HARVEST_FAILED, "What the agent changed could not be kept."),)
            )

    async def _release(self, place: Place) -> None:
        try:
            await self._parts.checkouts.release(place)
        except (WorkspaceError, OSError):
            self._log.exception("release.failed", job=place.files.root.name)

    async def end(
        self,
        job: Job,
        verdict: Verdict,
        *,
        expected: frozenset[State] = RUNNING,
        ran: Ran | None = None,
        harvest: Harvest | None = None,
        notices: tuple[Notice, ...] = (),
        planned: bool = True,
    ) -> Job:
        """Write down what a job came to, in one commit with its last event; `planned` is false after a crash."""
        if verdict.type == OutcomeType.INTERRUPTED and await self._waits_for_results(job):
            # It could not go on by itself: whoever has the results resumes it.
            verdict = Verdict(OutcomeType.UNANSWERED, verdict.detail)
        self._parts.queue.ending(job.id)
        now = self._clock()
        target = OUTCOMES[verdict.type].state
        drafts = [Draft(job.run, now, Warned(notice.code, notice.message)) for notice in notices]
        drafts.append(
            Draft(job.run, now, StateChanged(job.state, target, outcome=verdict.type, reason=verdict.detail))
        )
        counted = await self._counted_of(job) if ran is None else None

        def update(old: Job) -> Job:
            changed = ended(old, verdict, now, ran=ran, harvest=harvest, planned=planned)
            if counted is not None:
                changed = with_spent(changed, counted, counted.calls)
            return replace(changed, warnings=(*old.warnings, *notices))

        return await self._parts.recorder.change(job.id, expected, update, drafts)

    async def _counted_of(self, job: Job) -> Spent | None:
        """Give what the ledger has of a run whose end nobody saw; null when it made no call."""
        if self._parts.gateway is None or job.state is not State.RUNNING:
            return None
        (row,) = await self._parts.ledger.usage(UsageQuery(job_id=job.id, since_run=job.run))
        return row.spent if row.spent.calls else None

    async def _waits_for_results(self, job: Job) -> bool:
        """Say whether the newest run's last calls of its caller's tools are unanswered."""
        waits, after = False, 0
        while job.tools and (batch := await self._parts.store.events(job.id, after)):
            for event in batch:
                if event.type in (CallsWaiting.type, CallsAnswered.type):
                    waits = event.type == CallsWaiting.type and event.run == job.run
            after = batch[-1].seq
        return waits

    async def _park(
        self, job: Job, verdict: Verdict, ran: Ran, harvest: Harvest, notices: tuple[Notice, ...]
    ) -> Job:
        """Write down that a job waits for the model's rate limit, with its session and checkout kept."""
        assert ran.wall is not None  # noqa: S101  # asked by the caller
        self._parts.queue.ending(job.id)
        now, until = self._clock(), ran.wall
        drafts = [Draft(job.run, now, Warned(notice.code, notice.message)) for notice in notices]
        change = StateChanged(
            job.state,
            State.PARKED,
            outcome=verdict.type,
            reason="the model's rate limit",
            parked_until=rfc3339(until),
        )

        def update(old: Job) -> Job:
            changed = parked(old, until, verdict, now, ran=ran, harvest=harvest)
            return replace(changed, warnings=(*old.warnings, *notices))

        job = await self._parts.recorder.change(
            job.id, RUNNING, update, [*drafts, Draft(job.run, now, change)]
        )
        self._parts.parking.put(job)
        return job


async def _counted(report: Report, attendance: Attendance | None) -> Ran:
    """Add what the gateway knows of a run that has ended."""
    if attendance is None:
        return Ran(report)
    spent = await attendance.settled()
    evidence = replace(report.evidence, spent_out=attendance.spent_out)
    # What an agent cost that never asked the gateway is known by its own word alone; that is no zero.
    return Ran(replace(report, evidence=evidence), spent if spent.calls else None, attendance.wall)
