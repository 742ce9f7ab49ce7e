"""The executor of one claimed job: prepare the checkout, run the agent, decide the outcome, store the result."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import structlog

from steadyhand.agents import Agent, Workspace
from steadyhand.errors import (
    Conflict,
    NotFound,
    RunError,
    SessionGone,
    SpawnError,
    SteadyhandError,
    WorkspaceError,
)
from steadyhand.event_log import RunEventWriter
from steadyhand.events import (
    EventDraft,
    PhaseStarted,
    StateChanged,
    WarningEvent,
    format_rfc3339,
)
from steadyhand.job import Job, JobWarning, Outcome, OutcomeType, State
from steadyhand.job_warnings import WarningCode
from steadyhand.outcome import OUTCOMES, RunEvidence, StopReason, decide_outcome
from steadyhand.ports import (
    CallClientTools,
    Checkout,
    Claim,
    Harvest,
    RunAccess,
    RunContext,
    RunReport,
    RunSpec,
    StopSignal,
    UsageQuery,
    UsageTotal,
    phases_reported_to,
)
from steadyhand.retry import is_resumable
from steadyhand.tool_calls import ToolCallState
from steadyhand.worker.answered import EarlyAnswer, keep_early_outcome, may_answer_early
from steadyhand.worker.client_tool_caller import ClientToolCaller
from steadyhand.worker.deadline import RunDeadline
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.parents import find_ancestor, find_earlier_files
from steadyhand.worker.results import (
    RunResult,
    cost_difference_warning,
    ended_job,
    failed_outcome,
    park_reason,
    parked_job,
    require_run,
    update_newest_run,
    with_counted_usage,
    with_left_out_events,
)
from steadyhand.worker.run_cost import reported_call, with_metered_usage
from steadyhand.worker.run_phases import RunPhases, with_running_phase
from steadyhand.worker.run_start import start_events, started_job
from steadyhand.worker.stoppable import catch_run_error, read_patiently, run_until_stopped
from steadyhand.worker.waiting_runs import WaitingRuns
from steadyhand.worker.warm_pool import WarmPool
from steadyhand.worker.warm_slot import WarmSlot

RUNNING = frozenset({State.RUNNING})
QUEUED = frozenset({State.QUEUED})
HARVEST_SECONDS = 45
"""The time that a harvest usually takes at most; a shutdown waits for it."""
MAX_HARVEST_SECONDS = 1500
"""The last limit of a harvest. The checkouts have a nearer one, which grows with what comes out."""
_LOST_CHANGES = JobWarning(WarningCode.HARVEST_FAILED, "The agent's changes could not be kept.")
_T = TypeVar("_T")


class RunExecutor:
    """Runs claimed jobs; each call of `execute` runs one to its end."""

    def __init__(self, deps: WorkerDeps) -> None:
        self._deps = deps
        config = deps.config
        self.waiting_runs = WaitingRuns(deps.queue, config.max_waiting_runs, config.max_waiting_runs_per_key)
        self.warm_pool = WarmPool(deps, self._workspace)
        self._clock = deps.config.clock
        self.lost_ends = 0
        """The number of runs so far that ended without a final state in the store: `Recovery` has to look at them."""
        self._log = structlog.get_logger("steadyhand.worker")

    async def execute(self, claim: Claim) -> None:
        """Run a claimed job. An error ends the job, not the worker."""
        log = self._log.bind(job=claim.job.id, slot=claim.slot)
        try:
            await self._run(claim)
        except (Conflict, NotFound) as error:
            log.info("job.moved_elsewhere", reason=error.detail)
        except Exception:  # the boundary of a job
            log.exception("job.failed_internally")
            await self._end_after_internal_error(claim.job.id)

    async def _end_after_internal_error(self, job_id: str) -> None:
        try:
            job = await read_patiently(lambda: self._deps.store.get(job_id))
            if job is not None and not job.state.ended:
                if job.as_answered.state.ended:
                    await self.end_answered(job)
                    return
                await self.end_job(job, Outcome(OutcomeType.INTERNAL), expected=frozenset({job.state}))
        except SteadyhandError:
            self.lost_ends += 1
            self._log.exception("job.end_not_kept", job=job_id)

    async def _run(self, claim: Claim) -> None:
        """Run a claimed job from its start to its stored end.

        The stack ends after all that the run has left is stored: then the secrets of the run are forgotten.
        """
        workspace = self._workspace(claim.job)
        async with self.warm_pool.claimed(claim.job) as slot, AsyncExitStack() as stack:
            try:
                job = await self._mark_running(claim, slot)
            except SessionGone as error:
                await self.end_job(claim.job, Outcome(OutcomeType.NO_SESSION, error.detail), expected=QUEUED)
                return
            stack.enter_context(phases_reported_to(RunPhases(self._deps.event_log, job, self._clock)))
            seconds_left = max(0.0, job.timeout_seconds - job.used_seconds)
            deadline = RunDeadline(claim.stop, seconds_left)
            checkout: Checkout | None = None
            try:
                checkout = await self._take_over(job, slot, claim)
                if checkout is None:
                    checkout = await self._prepare_checkout(job, workspace, claim)
                if checkout is None:
                    await self._end_before_start(job, claim.stop)
                    return
                job = await self._record_checkout(job, checkout)
                result = await self._run_agent(job, claim, checkout, deadline, stack)
            except WorkspaceError as error:
                is_gone = isinstance(error, SessionGone)
                outcome_type = OutcomeType.NO_SESSION if is_gone else OutcomeType.WORKSPACE
                await self.end_job(job, failed_outcome(outcome_type, error))
                return
            except SpawnError as error:
                await self._end_unstarted(job, checkout, error, claim.stop)
                return
            finally:
                deadline.cancel()
            await self._finish(job, checkout, result)

    def _workspace(self, job: Job) -> Workspace:
        workspace = self._deps.catalog.workspace(job.workspace)
        return workspace if job.ref is None else replace(workspace, ref=job.ref)

    async def _end_unstarted(
        self, job: Job, checkout: Checkout | None, error: SpawnError, stop: StopSignal
    ) -> None:
        """End a job whose agent did not start; a stop that was requested meanwhile decides the outcome."""
        outcome = failed_outcome(OutcomeType.NOT_STARTED, error)
        if stop.reason is not None:
            outcome = decide_outcome(RunEvidence(stop_reason=stop.reason))
        job = await self.end_job(job, outcome)
        if checkout is not None:
            await (self._deps.checkouts.retain(checkout) if is_resumable(job) else self._release(checkout))

    async def _end_before_start(self, job: Job, stop: StopSignal) -> None:
        job = await self.end_job(job, decide_outcome(RunEvidence(stop_reason=stop.reason)))
        if not is_resumable(job):
            await self._deps.checkouts.discard(job.id)

    # --- before the run --------------------------------------------------------------------

    async def _take_over(self, job: Job, slot: WarmSlot | None, claim: Claim) -> Checkout | None:
        """Return the checkout of a waiting process for a job; None if there is none that can be used."""
        if slot is None or claim.stop.reason is not None:
            return None
        return await self.warm_pool.hand_over(slot, job)

    async def _mark_running(self, claim: Claim, slot: WarmSlot | None) -> Job:
        """Store that a run begins. Raise `SessionGone` if the conversation that it continues is deleted."""
        deps, job, now = self._deps, claim.job, self._clock()
        ancestor = await read_patiently(lambda: find_ancestor(deps.store, deps.checkouts, job))
        warm_agent = None if slot is None else slot.agent
        node = deps.config.node
        session_id = str(uuid.uuid4()) if warm_agent is None else warm_agent.session_id
        return await deps.event_log.update_job(
            job.id,
            QUEUED,
            lambda old: started_job(old, now, ancestor, node=node, new_session_id=session_id),
            [EventDraft(job.run + 1, now, body) for body in start_events(ancestor)],
        )

    async def _prepare_checkout(self, job: Job, workspace: Workspace, claim: Claim) -> Checkout | None:
        if claim.stop.reason is not None:
            return None
        checkouts = self._deps.checkouts
        checkout = await run_until_stopped(
            self._repeat_after_outage(job, lambda: checkouts.prepare(job, workspace, claim.slot)), claim.stop
        )
        return None if checkout is None else replace(checkout, slot=claim.slot)

    async def _record_checkout(self, job: Job, checkout: Checkout) -> Job:
        if checkout.commit is None and not checkout.warnings:
            return job
        now = self._clock()
        drafts = [
            EventDraft(job.run, now, WarningEvent(warning.code, warning.message))
            for warning in checkout.warnings
        ]
        return await self._deps.event_log.update_job(
            job.id,
            RUNNING,
            lambda old: replace(
                old, commit=checkout.commit or old.commit, warnings=(*old.warnings, *checkout.warnings)
            ),
            drafts,
        )

    # --- the run ---------------------------------------------------------------------------

    async def _run_agent(
        self,
        job: Job,
        claim: Claim,
        checkout: Checkout,
        deadline: RunDeadline,
        stack: AsyncExitStack,
    ) -> RunResult:
        """Run the agent and return its result.

        The gateway, the event writer and the tasks end with this; the secrets of the run end with `stack`.
        """
        deps, stop, slot = self._deps, claim.stop, self.warm_pool.slot_of(job.id)
        event_writer = RunEventWriter(
            deps.event_log,
            job.id,
            job.run,
            self._clock,
            on_overflow=partial(stop.request, StopReason.STORE),
        )
        agent = deps.catalog.agent(job.agent)
        if agent.definition is None and agent.name in checkout.definitions:
            agent = replace(agent, definition=agent.name)
        context = RunContext(job, agent, checkout)
        session_files = await read_patiently(lambda: find_earlier_files(deps.store, job))
        async with asyncio.TaskGroup() as group:
            group.create_task(event_writer.run(), name=f"journal {job.id}")

            def spawned(pid: int, started: int) -> None:
                group.create_task(self._save_supervisor(job, pid, started), name=f"supervisor {job.id}")

            storing: list[asyncio.Task[None]] = []
            try:
                async with AsyncExitStack() as open_gateway:
                    # It reads what the job has spent.
                    access = await read_patiently(
                        lambda: open_gateway.enter_async_context(
                            self._open_gateway(context, event_writer, slot)
                        )
                    )
                    if access is not None:
                        stack.enter_context(deps.event_log.redactor.lent(access.secrets))
                    spec = self._run_spec(
                        context,
                        access,
                        ClientToolCaller(deps, self.waiting_runs, claim, event_writer, deadline),
                        on_spawned=spawned,
                        earlier_files=session_files,
                    )
                    early = EarlyAnswer(deps.event_log, event_writer, job, access, self._clock)

                    def answered(evidence: RunEvidence) -> None:
                        storing.append(group.create_task(early.store(evidence), name=f"answer {job.id}"))

                    if may_answer_early(job):
                        spec = replace(spec, on_answer=answered)
                    await event_writer.emit(PhaseStarted("starting"))
                    runner = deps.runners[agent.runner] if slot is None or slot.agent is None else slot.agent
                    report = await catch_run_error(
                        runner.run(spec, with_running_phase(event_writer.emit), stop)
                    )
                    if storing:
                        await asyncio.wait(storing)
                    if early.outcome is None:
                        await event_writer.emit(PhaseStarted("harvesting"))
                    result = (
                        report if isinstance(report, RunError) else await with_metered_usage(report, access)
                    )
            finally:
                await event_writer.close()
        if isinstance(result, RunError):
            raise result
        if result.usage is None:
            await self._save_reported_call(job, agent, result.report)
        result = replace(
            result,
            waited_seconds=deadline.waited_seconds,
            early_outcome=early.outcome,
            before_early=early.before,
        )
        return with_left_out_events(result, event_writer.left_out)

    def _run_spec(
        self,
        context: RunContext,
        access: RunAccess | None,
        call_client_tools: CallClientTools,
        *,
        on_spawned: Callable[[int, int], None],
        earlier_files: Sequence[Mapping[str, Any]],
    ) -> RunSpec:
        job, agent, checkout = context.job, context.agent, context.checkout
        return RunSpec(
            job=job,
            number=job.run,
            agent=agent,
            checkout=checkout,
            environment=self._deps.config.environment_for(agent, checkout),
            on_spawned=on_spawned,
            model_access=None if access is None else access.model_access,
            on_listening=None if access is None else access.on_listening,
            call_client_tools=call_client_tools if job.spec.tools else None,
            keep_process=self.warm_pool.may_keep(job),
            earlier_files=earlier_files,
            background_seconds=(
                self._deps.catalog.defaults.background_seconds
                if agent.background_seconds is None
                else agent.background_seconds
            ),
        )

    async def _save_reported_call(self, job: Job, agent: Agent, report: RunReport) -> None:
        """Store the cost that the agent reports of a run without the gateway, and count it against shared budgets."""
        call = reported_call(job, agent, report, self._clock())
        if call is None:
            return
        await self._deps.ledger.save_call(call)
        if self._deps.gateway is not None:
            self._deps.gateway.count_unmetered_call(call)

    def _open_gateway(
        self, context: RunContext, event_writer: RunEventWriter, slot: WarmSlot | None
    ) -> AbstractAsyncContextManager[RunAccess | None]:
        if slot is not None and slot.access is not None:
            return slot.access.open_run(context, event_writer.emit)
        gateway = self._deps.gateway
        return nullcontext() if gateway is None else gateway.open_run(context, event_writer.emit)

    async def _save_supervisor(self, job: Job, pid: int, started: int) -> None:
        try:
            await self._deps.store.update_job(
                job.id,
                RUNNING,
                lambda old: update_newest_run(old, supervisor=pid, supervisor_started=started),
                hold=True,
            )
        except (Conflict, NotFound):
            self._log.debug("supervisor.not_noted", job=job.id)

    # --- after the run ---------------------------------------------------------------------

    async def _finish(self, job: Job, checkout: Checkout, result: RunResult) -> None:
        report = result.report
        harvest = await self._harvest(job, checkout)
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
                    self._park(job, outcome, result, harvest, warnings)
                    if park_until is not None
                    else self.end_job(job, outcome, result=result, harvest=harvest, warnings=warnings)
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
            await self._release(checkout)

    async def end_answered(self, job: Job) -> None:
        """End a job that the service lost after its answer was stored: keep its changes, or tell of their loss."""
        workspace, outcome = self._workspace(job), job.outcome
        assert outcome is not None  # noqa: S101  # it is stored with the answer
        checkout = None
        try:
            checkout = await self._deps.checkouts.reopen(job, workspace)
        except WorkspaceError as error:
            self._log.warning("harvest.failed", job=job.id, error=str(error))
        if checkout is not None:
            harvest = await self._harvest(job, checkout)
        elif workspace.repository is None:
            harvest = Harvest(None)
        else:
            harvest = Harvest(None, (_LOST_CHANGES,))
        try:
            await self.end_job(job, outcome, harvest=harvest, warnings=harvest.warnings, planned=False)
        finally:
            if checkout is not None:
                await self._release(checkout)

    async def _harvest(self, job: Job, checkout: Checkout) -> Harvest:
        async def harvest() -> Harvest:
            async with asyncio.timeout(MAX_HARVEST_SECONDS):
                return await self._deps.checkouts.harvest(checkout)

        try:
            return await self._repeat_after_outage(job, harvest)
        except (WorkspaceError, OSError) as error:
            self._log.warning("harvest.failed", error=str(error))
            return Harvest(None, (_LOST_CHANGES,))

    async def _repeat_after_outage(self, job: Job, work: Callable[[], Awaitable[_T]]) -> _T:
        """Return the result of work on files. If it fails in an outage of the store, wait for the end and do it again.

        The disk that is full for one is full for the other, and the store's answer says when it no longer is.
        """
        failures = self._deps.store.failures
        while True:
            try:
                return await work()
            except (WorkspaceError, OSError):
                await self._deps.store.append_events(job.id, (), hold=True)
                if self._deps.store.failures == failures:
                    raise
                failures = self._deps.store.failures

    async def _release(self, checkout: Checkout) -> None:
        try:
            await self._deps.checkouts.release(checkout)
        except (WorkspaceError, OSError):
            self._log.exception("release.failed", job=checkout.paths.root.name)

    async def end_job(
        self,
        job: Job,
        outcome: Outcome,
        *,
        expected: frozenset[State] = RUNNING,
        result: RunResult | None = None,
        harvest: Harvest | None = None,
        warnings: tuple[JobWarning, ...] = (),
        planned: bool = True,
    ) -> Job:
        """Store the outcome of a job, in one commit with its last event. `planned` is False after a crash."""
        if outcome.type == OutcomeType.INTERRUPTED and await read_patiently(
            lambda: self._has_open_tool_calls(job)
        ):
            # The agent cannot continue without the results: the client that has them resumes the job.
            outcome = Outcome(OutcomeType.UNANSWERED, outcome.detail)
        self._deps.queue.mark_ending(job.id)
        now = self._clock()
        target = OUTCOMES[outcome.type].state
        drafts = [
            EventDraft(job.run, now, WarningEvent(warning.code, warning.message)) for warning in warnings
        ]
        drafts.append(
            EventDraft(
                job.run, now, StateChanged(job.state, target, outcome=outcome.type, reason=outcome.detail)
            )
        )
        ledger_total = await read_patiently(lambda: self._counted_usage(job)) if result is None else None

        def update(old: Job) -> Job:
            require_run(old, job.run)
            changed = ended_job(old, outcome, now, result=result, harvest=harvest, planned=planned)
            if ledger_total is not None:
                changed = with_counted_usage(changed, ledger_total, ledger_total.calls)
            return replace(changed, warnings=(*old.warnings, *warnings))

        return await self._deps.event_log.update_job(job.id, expected, update, drafts)

    async def _counted_usage(self, job: Job) -> UsageTotal | None:
        """Return the ledger's usage of a run that has no result; None if it made no call, or it is stored already."""
        if self._deps.gateway is None or job.state is not State.RUNNING or job.outcome is not None:
            return None
        (row,) = await self._deps.ledger.usage(UsageQuery(job_id=job.id, since_run=job.run))
        return row.total if row.total.calls else None

    async def _has_open_tool_calls(self, job: Job) -> bool:
        """Return True if the newest run waits for results of its client's tools."""
        return bool(job.spec.tools and (await ToolCallState.read(self._deps.store, job.id)).open_ids(job.run))

    async def _park(
        self,
        job: Job,
        outcome: Outcome,
        result: RunResult,
        harvest: Harvest,
        warnings: tuple[JobWarning, ...],
    ) -> Job:
        """Store that a job waits for a rate limit or a credential; its session and checkout are kept."""
        until = result.park_until(outcome)
        assert until is not None  # noqa: S101  # checked by the caller
        self._deps.queue.mark_ending(job.id)
        now = self._clock()
        drafts = [
            EventDraft(job.run, now, WarningEvent(warning.code, warning.message)) for warning in warnings
        ]
        change = StateChanged(
            job.state,
            State.PARKED,
            outcome=outcome.type,
            reason=park_reason(outcome),
            parked_until=format_rfc3339(until),
        )

        def update(old: Job) -> Job:
            require_run(old, job.run)
            changed = parked_job(old, until, outcome, now, result=result, harvest=harvest)
            return replace(changed, warnings=(*old.warnings, *warnings))

        job = await self._deps.event_log.update_job(
            job.id, RUNNING, update, [*drafts, EventDraft(job.run, now, change)]
        )
        self._deps.parked.add(job)
        return job
