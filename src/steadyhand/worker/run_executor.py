"""The executor of one claimed job: prepare the checkout, run the agent, decide the outcome, store the result."""

import asyncio
import uuid
from contextlib import AsyncExitStack, ExitStack, nullcontext
from dataclasses import replace
from functools import partial

import structlog

from steadyhand.agents import Workspace
from steadyhand.errors import (
    Conflict,
    NotFound,
    RunError,
    SessionGone,
    SpawnError,
    SteadyhandError,
    WorkspaceError,
)
from steadyhand.events import (
    EventDraft,
)
from steadyhand.job import Job, Outcome, OutcomeType, State
from steadyhand.log_context import set_log_fields
from steadyhand.outcome import RunEvidence, StopReason, decide_outcome
from steadyhand.ports import (
    Checkout,
    Claim,
    OrphanedRun,
    StopSignal,
    phases_reported_to,
)
from steadyhand.retry import is_resumable
from steadyhand.worker.agent_runs import AgentRuns
from steadyhand.worker.answered import keep_early_outcome
from steadyhand.worker.deadline import RunDeadline
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.job_end import JobEnder
from steadyhand.worker.live_start import adopt_checkout
from steadyhand.worker.parent_process import ParentProcesses
from steadyhand.worker.parents import find_ancestor
from steadyhand.worker.results import (
    RunResult,
    cost_difference_warning,
    failed_outcome,
    with_left_out_events,
)
from steadyhand.worker.run_event_writer import RunEventWriter
from steadyhand.worker.run_harvest import harvest_run
from steadyhand.worker.run_phases import RunPhases
from steadyhand.worker.run_scope import RunScope
from steadyhand.worker.run_start import start_events, started_job
from steadyhand.worker.stoppable import (
    read_patiently,
    repeat_after_outage,
    run_until_stopped,
)
from steadyhand.worker.take_up import StoredEvents, TakenUp
from steadyhand.worker.waiting_runs import WaitingRuns
from steadyhand.worker.warm_pool import WarmPool
from steadyhand.worker.warm_slot import WarmSlot

QUEUED = frozenset({State.QUEUED})


class RunExecutor:
    """Runs claimed jobs; each call of `execute` runs one to its end."""

    def __init__(self, deps: WorkerDeps) -> None:
        self._deps = deps
        config = deps.config
        self.ender = JobEnder(deps, self._workspace)
        self.waiting_runs = WaitingRuns(
            deps.queue,
            config.max_waiting_runs,
            config.max_waiting_runs_per_key,
            count_surplus=self._count_surplus_runs,
        )
        self.warm_pool = WarmPool(deps, self._workspace, waiting_runs=self.waiting_runs.staying)
        self.parent_processes = ParentProcesses(deps, self.warm_pool)
        self.agent_runs = AgentRuns(deps, self.warm_pool, self.waiting_runs)
        self._clock = deps.config.clock
        self.lost_ends = 0
        """The number of runs so far that ended without a final state in the store: `Recovery` has to look at them."""
        self._log = structlog.get_logger("steadyhand.worker")

    def _count_surplus_runs(self) -> int:
        return self.warm_pool.surplus_runs()

    async def execute(
        self, claim: Claim, orphan: OrphanedRun | None = None, *, has_begun: bool = False
    ) -> None:
        """Run a claimed job, or go on with its run that an earlier service left.

        With `has_begun` that run has been stored and its agent has not started. An error ends the job, not the worker.
        """
        set_log_fields(claim.job.log_fields)  # each claim has a task of its own
        log = self._log.bind(job=claim.job.id, slot=claim.slot)
        try:
            await (self._run(claim, has_begun=has_begun) if orphan is None else self._take_up(claim, orphan))
        except (Conflict, NotFound) as error:
            log.info("job.moved_elsewhere", reason=error.detail)
        except Exception as error:  # the boundary of a job
            if isinstance(error, ExceptionGroup) and error.split((Conflict, NotFound))[1] is None:
                log.info("job.moved_elsewhere", reason="while its end was stored")
                return
            log.exception("job.failed_internally")
            await self._end_after_internal_error(claim)

    async def _end_after_internal_error(self, claim: Claim) -> None:
        job_id = claim.job.id
        try:
            job = await read_patiently(lambda: self._deps.store.get(job_id))
            if job is not None and not job.state.ended and self._is_own(job, claim):
                if job.as_answered.state.ended:
                    await self.ender.end_answered(job)
                    return
                await self.ender.end(job, Outcome(OutcomeType.INTERNAL), expected=frozenset({job.state}))
        except SteadyhandError:
            self.lost_ends += 1
            self._log.exception("job.end_not_kept", job=job_id)

    def _is_own(self, job: Job, claim: Claim) -> bool:
        """Return True unless another node holds a job by now, whose run would be ended with the one of this claim."""
        if not self._deps.queue.is_shared:
            return True
        if job.state is State.RUNNING:
            return job.runs[-1].node == self._deps.config.node and self._deps.queue.holds(job.id)
        return job.state is State.QUEUED and job.run == claim.job.run

    async def _run(self, claim: Claim, *, has_begun: bool = False) -> None:
        """Run a claimed job from its start to its stored end.

        The stack ends after all that the run has left is stored: then the secrets of the run are forgotten.
        """
        workspace = self._workspace(claim.job)
        async with (
            nullcontext() if has_begun else self.warm_pool.claimed(claim.job) as slot,
            AsyncExitStack() as stack,
        ):
            try:
                job = claim.job if has_begun else await self._begin(claim, slot)
            except SessionGone as error:
                await self.ender.end(
                    claim.job, Outcome(OutcomeType.NO_SESSION, error.detail), expected=QUEUED
                )
                return
            taken_up = await self._read_beginning(job) if has_begun else None
            scope = await self._open_scope(job, claim, stack, taken_up)
            events = scope.events
            checkout: Checkout | None = None
            try:
                checkout = await self._take_over(job, slot, claim)
                if checkout is None:
                    checkout = await self._prepare_checkout(job, workspace, claim, slot)
                if checkout is None:
                    await self._end_before_start(job, claim.stop, events)
                    return
                if slot is not None and slot.is_unstarted:
                    await adopt_checkout(self._deps, slot, job, checkout)
                result = await self.agent_runs.run(job, checkout, scope)
            except WorkspaceError as error:
                is_gone = isinstance(error, SessionGone)
                outcome_type = OutcomeType.NO_SESSION if is_gone else OutcomeType.WORKSPACE
                await self.ender.end(job, failed_outcome(outcome_type, error), events=events)
                return
            except SpawnError as error:
                await self._end_unstarted(job, checkout, error, claim.stop, events)
                return
            finally:
                scope.deadline.cancel()
            await self._finish(job, checkout, result, events)
            if slot is not None and slot.agent is not None and slot.is_kept:
                slot.agent.end_hold()
            elif self._deps.held_runs is not None:
                await self._deps.held_runs.remove(job.id, job.run)

    async def _read_beginning(self, job: Job) -> TakenUp:
        """Return the stored events of a run whose agent has not started."""
        stored = await read_patiently(lambda: StoredEvents.read(self._deps.store, job))
        self._log.info("run.taken_up", job=job.id, run=job.run, ended=False)
        return TakenUp(None, stored, self._clock)

    async def _take_up(self, claim: Claim, orphan: OrphanedRun) -> None:
        """Go on with a run that an earlier service left, to its stored end."""
        job, held_runs = claim.job, self._deps.held_runs
        assert held_runs is not None  # noqa: S101  # they were found by it
        stored = await read_patiently(lambda: StoredEvents.read(self._deps.store, job))
        self._log.info("run.taken_up", job=job.id, run=job.run, ended=orphan.exit is not None)
        async with AsyncExitStack() as stack:
            results = await held_runs.read_results(job.id, job.run)
            taken_up = TakenUp(orphan, stored, self._clock, results)
            scope = await self._open_scope(job, claim, stack, taken_up)
            try:
                checkout = await self._deps.checkouts.rejoin(job, self._workspace(job))
                checkout = replace(checkout, slot=orphan.place)
                result = await self.agent_runs.run(job, checkout, scope)
            except RunError as error:
                await held_runs.end(orphan)
                self._log.warning("run.not_taken_up", job=job.id, run=job.run, error=error.detail)
                outcome = Outcome(OutcomeType.INTERRUPTED, "The service stopped without warning.")
                await self.ender.end(job, outcome, planned=False, events=scope.events)
                self.lost_ends += 1  # it goes on by the rules of the start
                return
            finally:
                self._deps.tool_calls.forget_expected(job.id)
                scope.deadline.cancel()
            await self._finish(job, checkout, result, scope.events)
            await held_runs.remove(job.id, job.run)

    def _workspace(self, job: Job) -> Workspace:
        workspace = self._deps.catalog.workspace(job.workspace)
        return workspace if job.ref is None else replace(workspace, ref=job.ref)

    async def _open_scope(
        self, job: Job, claim: Claim, stack: AsyncExitStack, taken_up: TakenUp | None = None
    ) -> RunScope:
        """Begin to store the events of a run and to count its time."""
        event_log = self._deps.event_log
        secrets = stack.enter_context(ExitStack())
        steps = 0 if taken_up is None else taken_up.stored.steps
        events = RunEventWriter(
            event_log,
            job.id,
            job.run,
            self._clock,
            on_overflow=partial(claim.stop.request, StopReason.STORE),
            on_refused=partial(claim.stop.request, StopReason.SHUTDOWN),
            steps=steps,
        )
        await stack.enter_async_context(events.running())
        stored_phases = () if taken_up is None else taken_up.stored.phases
        phases = RunPhases(event_log, job, self._clock, events.emit, stored_phases)
        stack.enter_context(phases_reported_to(phases))
        seconds_left = max(0.0, job.timeout_seconds - job.used_seconds)
        if taken_up is not None:
            seconds_left = taken_up.seconds_left(job)
        waited = 0.0 if taken_up is None else taken_up.stored.waited_seconds
        deadline = RunDeadline(claim.stop, seconds_left, waited)
        return RunScope(claim, events, deadline, secrets, taken_up)

    async def _end_unstarted(
        self,
        job: Job,
        checkout: Checkout | None,
        error: SpawnError,
        stop: StopSignal,
        events: RunEventWriter,
    ) -> None:
        """End a job whose agent did not start; a stop that was requested meanwhile decides the outcome."""
        outcome = failed_outcome(OutcomeType.NOT_STARTED, error)
        if stop.reason is not None:
            outcome = decide_outcome(RunEvidence(stop_reason=stop.reason))
        job = await self.ender.end(job, outcome, events=events)
        if checkout is not None:
            await (
                self._deps.checkouts.retain(checkout) if is_resumable(job) else self.ender.release(checkout)
            )

    async def _end_before_start(self, job: Job, stop: StopSignal, events: RunEventWriter) -> None:
        outcome = decide_outcome(RunEvidence(stop_reason=stop.reason))
        job = await self.ender.end(job, outcome, events=events)
        if not is_resumable(job):
            await self._deps.checkouts.discard(job.id)

    # --- before the run --------------------------------------------------------------------

    async def _take_over(self, job: Job, slot: WarmSlot | None, claim: Claim) -> Checkout | None:
        """Return the checkout of a waiting process for a job; None if there is none that can be used."""
        if slot is None or slot.agent is None or claim.stop.reason is not None:
            return None
        return await self.warm_pool.hand_over(slot, job)

    async def _begin(self, claim: Claim, slot: WarmSlot | None) -> Job:
        """Store that a run begins, while the process that waited for it wakes up. Raise as `_mark_running`."""
        if slot is None or slot.agent is None:
            return await self._mark_running(claim, slot)
        job, failure = claim.job, None
        async with asyncio.TaskGroup() as group:
            group.create_task(self.warm_pool.wake(slot), name=f"wake {job.id}")  # it has a bound of its own
            try:
                job = await self._mark_running(claim, slot)
            except SteadyhandError as error:  # raised below, as it is: the group would wrap it
                failure = error
        if failure is not None:
            raise failure
        return job

    async def _mark_running(self, claim: Claim, slot: WarmSlot | None) -> Job:
        """Store that a run begins. Raise `SessionGone` if the conversation that it continues is deleted."""
        deps, job, now = self._deps, claim.job, self._clock()
        held = None if slot is None else slot.live_job
        ancestor = await read_patiently(lambda: find_ancestor(deps.store, deps.checkouts, job, held))
        if slot is not None and not slot.holds(ancestor):
            slot.released.set()  # its parent has had another run since, whose turn the process does not know
        if ancestor is not None:
            deps.tracing.run_continues(job.id, ancestor.job)
        warm_agent = None if slot is None else slot.agent
        node = deps.config.node
        session_id = str(uuid.uuid4()) if warm_agent is None else warm_agent.session_id
        started = await deps.event_log.update_job(
            job.id,
            QUEUED,
            lambda old: started_job(old, now, ancestor, node=node, new_session_id=session_id),
            [EventDraft(job.run + 1, now, body) for body in start_events(ancestor)],
        )
        if ancestor is not None and held is None:
            self.parent_processes.continued_here(ancestor.job)
        return started

    async def _prepare_checkout(
        self, job: Job, workspace: Workspace, claim: Claim, slot: WarmSlot | None
    ) -> Checkout | None:
        if claim.stop.reason is not None:
            return None
        number = slot.number if slot is not None and slot.is_unstarted else claim.slot
        checkouts = self._deps.checkouts
        checkout = await run_until_stopped(
            repeat_after_outage(self._deps.store, job.id, lambda: checkouts.prepare(job, workspace, number)),
            claim.stop,
        )
        return None if checkout is None else replace(checkout, slot=number)

    # --- after the run ---------------------------------------------------------------------

    async def _finish(self, job: Job, checkout: Checkout, result: RunResult, events: RunEventWriter) -> None:
        result = with_left_out_events(result, events.left_out)
        result, harvest = await harvest_run(self.ender, self.warm_pool, job, checkout, result)
        report = result.report
        outcome = decide_outcome(report.evidence)
        cost_warning = cost_difference_warning(result)
        warnings = (*report.warnings, *harvest.warnings, *([] if cost_warning is None else [cost_warning]))
        if result.early_outcome is not None:
            outcome, warnings = keep_early_outcome(result.early_outcome, outcome, report, warnings)
        park_until = result.park_until(outcome)
        # The checkout is kept if the job is resumable, which its stored end decides.
        resumable = False
        if report.process_kept:
            self.warm_pool.expect_turn(job)
        try:
            # Passed to the store one after the other without a wait between, the two share a commit.
            async with asyncio.TaskGroup() as group:
                group.create_task(self._deps.store.save_output(job.id, job.run, report.output))
                ending = group.create_task(
                    self.ender.park(job, outcome, result, harvest, warnings, events=events)
                    if park_until is not None
                    else self.ender.end(
                        job, outcome, result=result, harvest=harvest, warnings=warnings, events=events
                    )
                )
            resumable = is_resumable(ending.result())
            if report.evidence.stop_reason is StopReason.STORE:
                self.lost_ends += 1  # it goes on by the rules of the start
        finally:
            await self._put_away(job, checkout, result, resumable=resumable)

    async def _put_away(self, job: Job, checkout: Checkout, result: RunResult, *, resumable: bool) -> None:
        """Keep the checkout for a run that resumes the job, or with its process for the next job, or remove it."""
        slot = self.warm_pool.slot_of(job.id)
        if resumable:
            await self._deps.checkouts.retain(checkout)
        elif slot is None or not result.report.process_kept or not await self.warm_pool.keep(slot, job):
            if slot is not None:
                await self.warm_pool.end_process(slot)
            await self.ender.release(checkout)
