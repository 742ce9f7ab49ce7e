"""Operations on all jobs that a filter selects: cancel, retry, resume. A call changes a bounded number of jobs.

Each job is changed by the operation on a single job, with its checks, so a call that was cut off leaves no job half
changed and can be sent again. `as_of` makes that harmless: jobs that came or were changed since then are left alone.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from steadyhand.control.deps import ControlDeps
from steadyhand.control.lifecycle import JobLifecycle
from steadyhand.control.queries import JobQueries
from steadyhand.control.requests import Caller, ResumeOptions
from steadyhand.errors import CallerError, InvalidRequest, RetryLater, SteadyhandError, StoreUnavailable
from steadyhand.job import ENDED, Job, State
from steadyhand.ports import JobFilter, JobPage, Scope

MAX_BULK_JOBS = 200
"""The most jobs of one call."""
_AT_ONCE = 8
"""Jobs that are changed at the same time; after each such group a call may stop."""

ACTIVE = frozenset(State) - ENDED
UNSUCCESSFUL = ENDED - {State.COMPLETED, State.CANCELLED}
"""The states from which jobs run again without a state in the filter: nobody wanted them to end so."""

Operation = Callable[[Job], Awaitable[Job]]


@dataclass(frozen=True, slots=True)
class JobSelection:
    """A selection of jobs. `cursor` is that of the call before; `limit` is at most `MAX_BULK_JOBS`.

    With `job_ids` these are its jobs, in place of a page of the list: those of them that the filter matches. With
    `as_of`, the time of an earlier call, jobs are left alone that were accepted, queued or ended since then. With
    `dry_run` nothing is changed.
    """

    job_filter: JobFilter
    limit: int = MAX_BULK_JOBS
    cursor: str | None = None
    as_of: datetime | None = None
    dry_run: bool = False
    job_ids: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class BulkItem:
    """A job as it is now, or with `error` as it was when it was selected."""

    job: Job
    error: SteadyhandError | None = None


@dataclass(frozen=True, slots=True)
class BulkResult:
    """The jobs of a call, newest first. `next_cursor` is that of the next call if `has_more` is True.

    `stopped_by` is the error for which a call stopped before its end: the next one begins at the same place.
    """

    as_of: datetime
    dry_run: bool
    matched: int
    items: Sequence[BulkItem]
    next_cursor: str | None
    has_more: bool
    stopped_by: RetryLater | StoreUnavailable | None = None


class BulkOperations:
    """Cancels, retries and resumes the jobs of a filter."""

    def __init__(self, deps: ControlDeps, queries: JobQueries, lifecycle: JobLifecycle) -> None:
        self._deps = deps
        self._queries = queries
        self._lifecycle = lifecycle

    async def cancel_jobs(self, caller: Caller, selection: JobSelection) -> BulkResult:
        """Cancel the jobs of a filter that have not ended."""
        states = _states(selection, ACTIVE, ACTIVE)

        async def cancel(job: Job) -> Job:
            return job if selection.dry_run else await self._lifecycle.cancel(caller, job.id, states)

        return await self._run(caller, "cancel", selection, states, cancel)

    async def retry_jobs(self, caller: Caller, selection: JobSelection) -> BulkResult:
        """Queue the ended jobs of a filter for a new run from the start.

        A job that was run again since it was selected is left as it is.
        """

        async def retry(job: Job) -> Job:
            if not selection.dry_run:
                return await self._lifecycle.retry(caller, job.id, after_run=job.run)
            await self._lifecycle.check_retry(job)
            return job

        return await self._run(caller, "submit", selection, _states(selection, ENDED, UNSUCCESSFUL), retry)

    async def resume_jobs(
        self, caller: Caller, selection: JobSelection, options: ResumeOptions
    ) -> BulkResult:
        """Queue the ended jobs of a filter for a new run in their sessions; the `after_run` of `options` is not used.

        A job that was run again since it was selected is left as it is.
        """

        async def resume(job: Job) -> Job:
            if not selection.dry_run:
                return await self._lifecycle.resume(caller, job.id, replace(options, after_run=job.run))
            await self._lifecycle.check_resume(caller, job, options)
            return job

        return await self._run(caller, "submit", selection, _states(selection, ENDED, UNSUCCESSFUL), resume)

    async def _run(
        self,
        caller: Caller,
        scope: Scope,
        selection: JobSelection,
        states: frozenset[State],
        operation: Operation,
    ) -> BulkResult:
        caller.require_scope(scope)
        as_of = selection.as_of or self._deps.clock()
        job_filter = replace(selection.job_filter, states=states)
        if selection.as_of is not None and (
            job_filter.created_before is None or job_filter.created_before > as_of
        ):
            job_filter = replace(job_filter, created_before=as_of)
        limit = min(selection.limit, MAX_BULK_JOBS)
        if selection.job_ids is None:
            page = await self._queries.list_jobs(caller, job_filter, limit, selection.cursor)
        else:
            page = await self._list_selected(caller, job_filter, selection.job_ids[:limit])
        jobs = [job for job in page.jobs if selection.as_of is None or not _changed_since(job, as_of)]
        items: list[BulkItem] = []
        for at in range(0, len(jobs), _AT_ONCE):
            items += await _run_group(jobs[at : at + _AT_ONCE], operation)
            stop = next((item.error for item in items if _stops(item.error)), None)
            if isinstance(stop, RetryLater | StoreUnavailable):
                return BulkResult(
                    as_of,
                    selection.dry_run,
                    len(jobs),
                    items,
                    selection.cursor,
                    has_more=True,
                    stopped_by=stop,
                )
        return BulkResult(
            as_of, selection.dry_run, len(jobs), items, page.next_cursor, page.next_cursor is not None
        )

    async def _list_selected(self, caller: Caller, job_filter: JobFilter, job_ids: Sequence[str]) -> JobPage:
        pages = [
            await self._queries.list_jobs(caller, replace(job_filter, id_prefix=job_id), 1, None)
            for job_id in dict.fromkeys(job_ids)
        ]
        return JobPage([job for page in pages for job in page.jobs], None)


async def _run_group(jobs: Sequence[Job], operation: Operation) -> list[BulkItem]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_run_one(job, operation)) for job in jobs]
    return [task.result() for task in tasks]


async def _run_one(job: Job, operation: Operation) -> BulkItem:
    try:
        return BulkItem(await operation(job))
    except (CallerError, StoreUnavailable) as error:
        return BulkItem(job, error)


def _stops(error: SteadyhandError | None) -> bool:
    """Return True for an error that each further job would meet as well."""
    return isinstance(error, RetryLater | StoreUnavailable)


def _states(
    selection: JobSelection, possible: frozenset[State], default: frozenset[State]
) -> frozenset[State]:
    """Return the states of the jobs to change; raise `InvalidRequest` if the filter has others alone."""
    states = selection.job_filter.states
    if not states:
        return default
    if not states & possible:
        names = ", ".join(state for state in State if state in possible)
        raise InvalidRequest.at("/state", f"has none of the states in which this can be done: {names}")
    return states & possible


def _changed_since(job: Job, moment: datetime) -> bool:
    """Return True if a job ended at this time or later, or was queued by a request then."""
    if job.state.ended:
        return job.finished_at is not None and job.finished_at >= moment
    # A run that goes on after it was parked is no new one; its time counts on.
    return job.queued_at is not None and job.queued_at >= moment and not job.used_seconds
