"""The firing of one tick: the request for its job, with the rights that the schedule's key has now."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from steadyhand.control import Caller, Control, Submission
from steadyhand.errors import RetryLater
from steadyhand.job import Job
from steadyhand.ports import (
    ApiKey,
    JobTemplate,
    Schedule,
    SchedulePause,
    ScheduleStore,
    TickClaim,
    TickDraft,
)
from steadyhand.schedules.caps import find_reached_cap
from steadyhand.schedules.cron import CronExpression
from steadyhand.schedules.template import PreviousJob, TickFields, fill


@dataclass(frozen=True, slots=True)
class ScheduleDeps:
    """The parts of the service that schedules use. `find_key` returns a valid key, or None."""

    control: Control
    store: ScheduleStore
    get_job: Callable[[str], Awaitable[Job | None]]
    find_key: Callable[[str], ApiKey | None]
    clock: Callable[[], datetime]
    on_ticks: Callable[[str, int], None] = lambda _result, _count: None
    """Counts ticks by their result, `fired` or `skipped`."""
    on_pause: Callable[[str], None] = lambda _reason: None
    """Counts schedules that pause themselves, by the reason."""

    def caller_of(self, key_id: str) -> Caller | None:
        """Return the caller of a key with the scopes that it has now; None if it is not valid."""
        key = self.find_key(key_id)
        return None if key is None else Caller(key.id, key.scopes)

    def check_caps(self, schedule: Schedule) -> SchedulePause | None:
        """Return the pause of a schedule that has reached a cap."""
        return find_reached_cap(schedule, self.clock())


def expression_of(schedule: Schedule) -> CronExpression:
    """Return the expression of a schedule, which was checked when it was stored."""
    return CronExpression(schedule.spec.cron, schedule.spec.timezone)


def build_submission(template: JobTemplate, fields: TickFields | None = None) -> Submission:
    """Return the request for the job of a tick; without fields, with the template's own text."""
    spec = replace(template.spec, origin="schedule")
    if fields is not None:
        title = spec.title
        spec = replace(
            spec, prompt=fill(spec.prompt, fields), title=None if title is None else fill(title, fields)
        )
    return Submission(
        spec=spec,
        agent=template.agent,
        workspace=template.workspace,
        ref=template.ref,
        budget_micros=template.budget_micros,
        timeout_seconds=template.timeout_seconds,
        idle_timeout_seconds=template.idle_timeout_seconds,
        on_interrupt=template.on_interrupt,
        publish=template.publish,
    )


class TickFirer:
    """Submits the jobs of ticks."""

    def __init__(self, deps: ScheduleDeps) -> None:
        self._deps = deps

    async def fire(
        self,
        schedule: Schedule,
        caller: Caller,
        tick: TickDraft,
        next_at: datetime | None,
        waiting: int | None = None,
    ) -> Job:
        """Submit the job of a tick, which is claimed in the same transaction. Raise as `Control.submit` does."""
        submission = build_submission(schedule.spec.job, await self._fields(schedule, tick.scheduled_at))
        submission = await self._with_rest_of_cap(schedule, caller, submission)
        claim = TickClaim(schedule.id, schedule.revision, tick, next_at, waiting)
        added = await self._deps.control.submit(caller, submission, claim=claim)
        self._deps.on_ticks("fired", 1)
        structlog.get_logger("steadyhand.schedules").info(
            "schedule.fired",
            schedule=schedule.name,
            job=added.job.id,
            kind=tick.kind,
            scheduled_at=tick.scheduled_at.isoformat(),
        )
        return added.job

    async def _fields(self, schedule: Schedule, scheduled_at: datetime) -> TickFields:
        previous = None
        for tick in await self._deps.store.newest_fired([schedule.id]):
            job = None if tick.job_id is None else await self._deps.get_job(tick.job_id)
            if job is not None:
                outcome = None if job.outcome is None else str(job.outcome.type)
                previous = PreviousJob(job.id, job.state.value, outcome)
        zone = expression_of(schedule).zone
        return TickFields(schedule.name, scheduled_at, zone, schedule.runs + 1, previous)

    async def _with_rest_of_cap(
        self, schedule: Schedule, caller: Caller, submission: Submission
    ) -> Submission:
        """Return the request with a budget that is no more than what the cap in dollars leaves.

        Raise `RetryLater` (`cap_reserved`) if the budgets of the jobs that have not ended take all of it.
        """
        cap = schedule.spec.max_micros
        if cap is None:
            return submission
        open_ticks = await self._deps.store.list_open_ticks(schedule.id)
        rest = cap - schedule.spent_micros - sum(tick.budget_micros for tick in open_ticks)
        if rest <= 0:
            raise RetryLater(
                "The budgets of its jobs that have not ended take the rest of its cap.", code="cap_reserved"
            )
        budget = (await self._deps.control.check_submission(caller, submission)).budget_micros
        return replace(submission, budget_micros=min(budget, rest))
