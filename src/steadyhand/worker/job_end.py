"""The end of a job: the harvest of what it changed, its outcome in the store, and its checkout put away."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from steadyhand.agents import Workspace
from steadyhand.errors import WorkspaceError
from steadyhand.events import EventDraft, StateChanged, WarningEvent, format_rfc3339
from steadyhand.job import Job, JobWarning, Outcome, OutcomeType, State
from steadyhand.job_warnings import WarningCode
from steadyhand.outcome import OUTCOMES
from steadyhand.ports import Checkout, Harvest, UsageQuery, UsageTotal
from steadyhand.tool_calls import ToolCallState
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.results import (
    RunResult,
    ended_job,
    park_reason,
    parked_job,
    require_run,
    with_counted_usage,
)
from steadyhand.worker.run_event_writer import RunEventWriter
from steadyhand.worker.stoppable import read_patiently, repeat_after_outage

RUNNING = frozenset({State.RUNNING})
HARVEST_SECONDS = 45
"""The time that a harvest usually takes at most; a shutdown waits for it."""
MAX_HARVEST_SECONDS = 1500
"""The last limit of a harvest. The checkouts have a nearer one, which grows with what comes out."""
_LOST_CHANGES = JobWarning(WarningCode.HARVEST_FAILED, "The agent's changes could not be kept.")


class JobEnder:
    """Ends jobs: those whose run has ended, and those that never ran or were lost."""

    def __init__(self, deps: WorkerDeps, workspace_of: Callable[[Job], Workspace]) -> None:
        """Keep the dependencies. `workspace_of` returns the workspace of a job, at the job's ref."""
        self._deps = deps
        self._workspace_of = workspace_of
        self._clock = deps.config.clock
        self._log = structlog.get_logger("steadyhand.worker")

    # --- the outcome -----------------------------------------------------------------------

    async def end(
        self,
        job: Job,
        outcome: Outcome,
        *,
        expected: frozenset[State] = RUNNING,
        result: RunResult | None = None,
        harvest: Harvest | None = None,
        warnings: tuple[JobWarning, ...] = (),
        planned: bool = True,
        events: RunEventWriter | None = None,
    ) -> Job:
        """Store the outcome of a job, in one commit with its last event. `planned` is False after a crash.

        `events` are those of its run: what is not stored of them yet is in the same commit, before the end.
        """
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

        return await self._update_job(job, expected, update, drafts, events)

    async def _update_job(
        self,
        job: Job,
        expected: frozenset[State],
        update: Callable[[Job], Job],
        drafts: Sequence[EventDraft],
        events: RunEventWriter | None,
    ) -> Job:
        if events is not None:
            return await events.update_job(expected, update, drafts)
        return await self._deps.event_log.update_job(job.id, expected, update, drafts)

    async def park(
        self,
        job: Job,
        outcome: Outcome,
        result: RunResult,
        harvest: Harvest,
        warnings: tuple[JobWarning, ...],
        *,
        events: RunEventWriter,
    ) -> Job:
        """Store that a job waits for a rate limit or a credential; its session and checkout are kept.

        `events` are those of its run, as for `end`.
        """
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

        drafts.append(EventDraft(job.run, now, change))
        job = await self._update_job(job, RUNNING, update, drafts, events)
        self._deps.parked.add(job)
        return job

    # --- the checkout ----------------------------------------------------------------------

    async def harvest(self, job: Job, checkout: Checkout) -> Harvest:
        """Return what the agent changed. A harvest that fails is a warning: the answer is not lost with it."""

        async def work() -> Harvest:
            async with asyncio.timeout(MAX_HARVEST_SECONDS):
                return await self._deps.checkouts.harvest(checkout)

        try:
            return await repeat_after_outage(self._deps.store, job.id, work)
        except (WorkspaceError, OSError) as error:
            self._log.warning("harvest.failed", error=str(error))
            return Harvest(None, (_LOST_CHANGES,))

    async def release(self, checkout: Checkout) -> None:
        """Remove a checkout; a failure is logged, and the next start of the service removes it."""
        try:
            await self._deps.checkouts.release(checkout)
        except (WorkspaceError, OSError):
            self._log.exception("release.failed", job=checkout.paths.root.name)

    async def end_answered(self, job: Job) -> None:
        """End a job that the service lost after its answer was stored: keep its changes, or tell of their loss."""
        workspace, outcome = self._workspace_of(job), job.outcome
        assert outcome is not None  # noqa: S101  # it is stored with the answer
        checkout = None
        try:
            checkout = await self._deps.checkouts.reopen(job, workspace)
        except WorkspaceError as error:
            self._log.warning("harvest.failed", job=job.id, error=str(error))
        if checkout is not None:
            harvest = await self.harvest(job, checkout)
        elif workspace.repository is None:
            harvest = Harvest(None)
        else:
            harvest = Harvest(None, (_LOST_CHANGES,))
        try:
            await self.end(job, outcome, harvest=harvest, warnings=harvest.warnings, planned=False)
        finally:
            if checkout is not None:
                await self.release(checkout)

    async def _counted_usage(self, job: Job) -> UsageTotal | None:
        """Return the ledger's usage of a run that has no result; None if it made no call, or it is stored already."""
        if self._deps.gateway is None or job.state is not State.RUNNING or job.outcome is not None:
            return None
        (row,) = await self._deps.ledger.usage(UsageQuery(job_id=job.id, since_run=job.run))
        return row.total if row.total.calls else None

    async def _has_open_tool_calls(self, job: Job) -> bool:
        """Return True if the newest run waits for results of its client's tools."""
        return bool(job.spec.tools and (await ToolCallState.read(self._deps.store, job.id)).open_ids(job.run))
