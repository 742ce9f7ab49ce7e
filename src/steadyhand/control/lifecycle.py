"""Operations that change the state of a job: cancel, retry, resume, delete."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from weakref import WeakValueDictionary

import structlog

from steadyhand.control.ceilings import Ceilings
from steadyhand.control.deps import ControlDeps
from steadyhand.control.queries import JobQueries
from steadyhand.control.requests import Caller, ResumeOptions, unchanged
from steadyhand.control.submit import JobSubmitter
from steadyhand.errors import Conflict, InvalidRequest, RetryLater, StoreUnavailable, WorkspaceError
from steadyhand.events import EventBody, EventDraft, StateChanged
from steadyhand.job import (
    ENDED,
    Job,
    Outcome,
    OutcomeType,
    State,
    transition,
)
from steadyhand.money import format_dollars
from steadyhand.outcome import error_info
from steadyhand.ports import UsageQuery
from steadyhand.retry import is_resumable, requeued


class JobLifecycle:
    """Cancels, retries, resumes and deletes jobs."""

    def __init__(self, deps: ControlDeps, queries: JobQueries, submitter: JobSubmitter) -> None:
        self._deps = deps
        self._queries = queries
        self._submitter = submitter
        self._run_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def cancel(self, caller: Caller, job_id: str, states: frozenset[State] | None = None) -> Job:
        """Cancel a job: a queued one at once, a running one as soon as none of its processes is alive.

        During an outage of the store the job does not run any more, and the cancel is stored later. With `states` a
        job that is in none of them by now is left alone; raise `Conflict`.
        """
        caller.require_scope("cancel")
        job = await self._queries.get(caller, job_id)
        if states is not None and job.state not in states:
            raise Conflict(f"The job is {job.state} by now.")
        if job.state.ended:
            return job
        cancellations = self._deps.cancellations
        cancellations.begin(job_id)
        try:
            if await self._deps.queue.cancel(job_id) == "stopping":
                job = await self._queries.get(caller, job_id)
            else:
                job = await self._cancel_inactive(job)
        except StoreUnavailable:
            cancellations.postpone(job_id)
            return job
        except BaseException:  # also if the caller is gone: its cancel still holds
            cancellations.postpone(job_id)
            raise
        cancellations.end(job_id)
        return job

    async def _cancel_inactive(self, job: Job) -> Job:
        outcome = Outcome(OutcomeType.CANCELLED)
        now = self._deps.clock()
        drafts = [EventDraft(job.run, now, StateChanged(job.state, State.CANCELLED, outcome=outcome.type))]
        try:
            cancelled = await self._deps.event_log.update_job(
                job.id,
                frozenset({State.QUEUED, State.PARKED, State.WAITING}),
                lambda old: replace(
                    old,
                    state=transition(old.state, State.CANCELLED),
                    outcome=outcome,
                    error=error_info(outcome),
                    finished_at=now,
                ),
                drafts,
            )
        except Conflict:
            return await self._deps.store.get(job.id) or job
        if is_resumable(job):
            await self._deps.checkouts.discard(job.id)
        return cancelled

    async def retry(self, caller: Caller, job_id: str, after_run: int | None = None) -> Job:
        """Queue an ended job for a new run from the start; with `after_run` a repeat of the call is harmless.

        A turn starts again from the session of the job before it. Raise `Conflict` if that job is deleted.
        """

        async def start_run(job: Job) -> Job:
            await self.check_retry(job)
            return await self._requeue(
                caller, job, "retry", lambda old, now: requeued(_same_run(old, after_run), "fresh", now)
            )

        return await self._run_once(caller, job_id, after_run, start_run)

    async def check_retry(self, job: Job) -> None:
        """Raise `Conflict` if a job has not ended, or if what a new run of it begins with is deleted."""
        _require_ended(job)
        parent_id = None if job.spec.history else job.parent_job_id
        if parent_id is not None and await self._deps.store.get(parent_id) is None:
            raise Conflict(f"The job {parent_id}, whose conversation this one continues, is deleted.")

    async def resume(self, caller: Caller, job_id: str, request: ResumeOptions) -> Job:
        """Queue an ended job for a new run in the same session and checkout, with another budget or prompt if asked.

        Raise `Conflict` (`invalid_state`) if the job has not ended or has no session, and `InvalidRequest` if the
        budget is not above the amount that the job has spent.
        """

        async def start_run(job: Job) -> Job:
            return await self.resume_job(
                caller, job, request, update=lambda old: _same_run(old, request.after_run)
            )

        return await self._run_once(caller, job_id, request.after_run, start_run)

    async def _run_once(
        self,
        caller: Caller,
        job_id: str,
        after_run: int | None,
        start_run: Callable[[Job], Awaitable[Job]],
    ) -> Job:
        """Start a new run unless there was one since `after_run`; return the job as it then is."""
        caller.require_scope("submit")
        lock = self._run_locks.setdefault(job_id, asyncio.Lock())
        async with lock:  # one after another, so that repeats are recognized and not charged
            job = await self._queries.get(caller, job_id)
            if _is_repeat(job, after_run):
                return job
            try:
                return await start_run(job)
            except Conflict:
                # Another process may have been faster.
                job = await self._queries.get(caller, job_id)
                if after_run is None or not _is_repeat(job, after_run):
                    raise
                return job

    async def resume_job(
        self,
        caller: Caller,
        job: Job,
        request: ResumeOptions,
        *earlier_events: EventBody,
        update: Callable[[Job], Job] = unchanged,
        goes_on: bool = False,
    ) -> Job:
        """Resume a job as `resume` does, without a check of scopes.

        `earlier_events` are stored just before the change of state. `update` changes the job in the same commit. A job
        that goes on runs before the queue.
        """
        budget = await self.check_resume(caller, job, request)

        def resumed(old: Job, now: datetime) -> Job:
            changed = replace(requeued(update(old), "resume", now), budget_micros=budget)
            return changed if request.prompt is None else replace(changed, continue_prompt=request.prompt)

        return await self._requeue(caller, job, "resume", resumed, earlier_events, goes_on=goes_on)

    async def check_resume(self, caller: Caller, job: Job, request: ResumeOptions) -> int:
        """Return the budget of a resumed job; raise `InvalidRequest` or `Conflict` as `resume` does."""
        _require_ended(job)
        ceiling = self._submitter.ceilings(caller, self._deps.catalog.agent(job.agent)).budget
        budget = (
            ceiling.lower(job.budget_micros)
            if request.budget_micros is None
            else ceiling.check(request.budget_micros)
        )
        spent = await self._budget_spent(job)
        if budget <= spent:
            raise InvalidRequest.at(
                "/budget_usd", f"has to be above the {format_dollars(spent)} that the job has spent"
            )
        if not job.run or not await self._deps.checkouts.has_session(job.id):
            raise Conflict("The job has left no session to resume; retry it.")
        return budget

    async def _budget_spent(self, job: Job) -> int:
        """Return the micro-dollars that count against the job's budget.

        A retry starts the budget anew. Without the gateway each run has the whole budget.
        """
        if job.cost.source != "ledger":
            return 0
        (row,) = await self._deps.ledger.usage(UsageQuery(job_id=job.id, since_run=job.since_run))
        return row.total.micros

    async def _requeue(
        self,
        caller: Caller,
        job: Job,
        reason: str,
        change: Callable[[Job, datetime], Job],
        earlier_events: Sequence[EventBody] = (),
        *,
        goes_on: bool = False,
    ) -> Job:
        _require_ended(job)
        ceilings = self._submitter.ceilings(caller, self._deps.catalog.agent(job.agent))
        model = ceilings.default_model(job.spec.model)
        charge = await self._submitter.charge_request(caller, job.agent, job.workspace)
        now = self._deps.clock()

        def changed(old: Job) -> Job:
            return _lowered(change(old, now), ceilings, model)

        bodies = [*earlier_events, StateChanged(job.state, State.QUEUED, reason=reason)]
        drafts = [EventDraft(job.run, now, body) for body in bodies]
        # The limit on waiting jobs is that of the caller: an admin may run the job of another key again.
        as_new = job.api_key_id == caller.key_id
        try:
            job = await self._deps.event_log.update_job(job.id, ENDED, changed, drafts, as_new=as_new)
        except RetryLater:
            charge.undo()
            raise
        if caller.traceparent is not None:
            self._deps.tracing.queued_again(job.id, caller.traceparent)
        await self._deps.queue.requeue(job, goes_on=goes_on)
        return job

    async def delete(self, caller: Caller, job_id: str) -> None:
        """Delete an ended job and all its files. Raise `Conflict` if it has not ended, or a turn waits for it.

        Files that cannot be removed now, and those on other nodes, are removed by retention.
        """
        caller.require_scope("cancel")
        job = await self._queries.get(caller, job_id)
        if not job.state.ended:
            raise Conflict(f"The job is {job.state}; cancel it first.")
        await self._deps.store.delete(job_id)
        try:
            await self._deps.checkouts.delete_job(job_id)
        except (WorkspaceError, OSError) as error:  # the job is deleted, and retention removes the rest
            structlog.get_logger("steadyhand.jobs").warning("files.left", job=job_id, error=str(error))


def _lowered(job: Job, ceilings: Ceilings, model: str | None) -> Job:
    """Return a job with this model, and its figures lowered to ceilings that may be newer than the job."""
    return replace(
        job,
        spec=replace(job.spec, model=model),
        budget_micros=ceilings.budget.lower(job.budget_micros),
        timeout_seconds=ceilings.timeout.lower(job.timeout_seconds),
    )


def _same_run(job: Job, after_run: int | None) -> Job:
    """Return the job itself; raise `Conflict` if it has had another run since `after_run`."""
    if after_run is not None and job.run != after_run:
        raise Conflict(f"The job has had {job.run} runs.")
    return job


def _is_repeat(job: Job, after_run: int | None) -> bool:
    """Return True if the job was run again already since the run `after_run`.

    Raise `Conflict` if that run has not ended, or has not begun.
    """
    if after_run is None:
        return False
    if job.run < after_run:
        raise Conflict(f"The job has had {job.run} runs; there was no run {after_run}.")
    if job.run > after_run or job.state is State.QUEUED:
        return True
    _require_ended(job)
    return False


def _require_ended(job: Job) -> None:
    if not job.state.ended:
        raise Conflict(f"The job is {job.state}; only an ended job can be run again.")
