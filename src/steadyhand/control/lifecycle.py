"""The verbs that move a job on: cancelled, run again, gone on with, forgotten."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from steadyhand.control.requests import Caller, ResumeOptions
from steadyhand.control.submit import JobSubmitter
from steadyhand.errors import Conflict, InvalidRequest
from steadyhand.events import EventBody, EventDraft, StateChanged
from steadyhand.job import (
    ENDED,
    MICROS_PER_DOLLAR,
    Job,
    Outcome,
    OutcomeType,
    State,
    transition,
)
from steadyhand.outcome import error_info
from steadyhand.ports import UsageQuery
from steadyhand.retry import is_resumable, requeued


def _unchanged(job: Job) -> Job:
    return job


class JobLifecycle(JobSubmitter):
    """What moves jobs."""

    # --- moving ----------------------------------------------------------------------------

    async def cancel(self, caller: Caller, job_id: str) -> Job:
        """Cancel: a queued job at once, a running one as soon as nothing of it is alive."""
        caller.require_scope("cancel")
        job = await self.get(caller, job_id)
        if job.state.ended:
            return job
        state = await self._queue.cancel(job_id)
        if state == "stopping":
            return await self.get(caller, job_id)
        return await self._cancel_inactive(job)

    async def _cancel_inactive(self, job: Job) -> Job:
        verdict = Outcome(OutcomeType.CANCELLED)
        now = self._clock()
        drafts = [EventDraft(job.run, now, StateChanged(job.state, State.CANCELLED, outcome=verdict.type))]
        try:
            changed = await self._recorder.update_job(
                job.id,
                frozenset({State.QUEUED, State.PARKED, State.WAITING}),
                lambda old: replace(
                    old,
                    state=transition(old.state, State.CANCELLED),
                    outcome=verdict,
                    error=error_info(verdict),
                    finished_at=now,
                ),
                drafts,
            )
        except Conflict:
            return await self._store.get(job.id) or job
        if is_resumable(job):
            await self._checkouts.discard(job.id)
        return changed

    async def retry(self, caller: Caller, job_id: str, after_run: int | None = None) -> Job:
        """Queue an ended job for a new run from the start; with `after_run` a repeat of the call is harmless."""
        caller.require_scope("submit")
        job = await self.get(caller, job_id)
        if _is_repeat(job, after_run):
            return job
        return await self._requeue(caller, job, "retry", lambda old, now: requeued(old, "fresh", now))

    async def resume(self, caller: Caller, job_id: str, request: ResumeOptions) -> Job:
        """Queue an ended job for a new run in the same session and checkout, perhaps with more to spend or to say.

        Raises `Conflict` (`invalid_state`) when it has not ended or has no session, `InvalidRequest` for a budget
        that is no more than was spent.
        """
        caller.require_scope("submit")
        job = await self.get(caller, job_id)
        return job if _is_repeat(job, request.after_run) else await self._resume(caller, job, request)

    async def _resume(
        self,
        caller: Caller,
        job: Job,
        request: ResumeOptions,
        *earlier_events: EventBody,
        update: Callable[[Job], Job] = _unchanged,
    ) -> Job:
        """Do `resume`; `before` is what happened just before it, and `noted` what else changes with it."""
        budget = job.budget_micros if request.budget_micros is None else request.budget_micros
        self._check_max_budget(budget)
        spent = await self._budget_spent(job)
        if budget <= spent:
            raise InvalidRequest.at(
                "/budget_usd", f"has to be above the {spent / MICROS_PER_DOLLAR:.6f} that the job has spent"
            )
        if not job.run or not await asyncio.to_thread(self._checkouts.job_paths(job.id).config_dir.is_dir):
            raise Conflict("The job has left no session to go on with; retry it.")

        def resumed(old: Job, now: datetime) -> Job:
            old = update(old)
            return replace(requeued(old, "resume", now), budget_micros=budget, continue_prompt=request.prompt)

        return await self._requeue(caller, job, "resume", resumed, earlier_events)

    async def _budget_spent(self, job: Job) -> int:
        """Give what a job's budget has paid for: a retry began it anew. Past the gateway each run has it to itself."""
        if job.cost.source != "ledger":
            return 0
        (row,) = await self._ledger.usage(UsageQuery(job_id=job.id, since_run=job.since_run))
        return row.total.micros

    async def _requeue(
        self,
        caller: Caller,
        job: Job,
        reason: str,
        change: Callable[[Job, datetime], Job],
        earlier_events: Sequence[EventBody] = (),
    ) -> Job:
        if not job.state.ended:
            raise Conflict(f"The job is {job.state}; only an ended job can be run again.")
        await self.charge_request(caller, job.agent, job.workspace)
        now = self._clock()
        bodies = [*earlier_events, StateChanged(job.state, State.QUEUED, reason=reason)]
        drafts = [EventDraft(job.run, now, body) for body in bodies]
        job = await self._recorder.update_job(job.id, ENDED, lambda old: change(old, now), drafts)
        await self._queue.requeue(job)
        return job

    async def delete(self, caller: Caller, job_id: str) -> None:
        """Forget an ended job and all that was kept of it."""
        caller.require_scope("cancel")
        job = await self.get(caller, job_id)
        if not job.state.ended:
            raise Conflict(f"The job is {job.state}; cancel it first.")
        await self._store.delete(job_id)
        await self._checkouts.delete_job(job_id)


def _is_repeat(job: Job, after_run: int | None) -> bool:
    """Say whether a job was run again already since the run that the caller knows of.

    Raises `Conflict` when that very run is under way.
    """
    if after_run is None or job.run < after_run:
        return False
    if job.run > after_run or job.state is State.QUEUED:
        return True
    if not job.state.ended:
        raise Conflict(f"The job is {job.state}; only an ended job can be run again.")
    return False
