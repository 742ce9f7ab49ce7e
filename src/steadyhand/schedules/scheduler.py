"""The loop of schedules: it settles the jobs that have ended, fires what is due, and waits for the next tick.

All state is in the store, so that a start goes on where the service stopped, and several services on one store share
the ticks. Nothing depends on the wait: the wall clock may jump at any time.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import islice

import structlog

from steadyhand.control import Caller
from steadyhand.errors import CallerError, Conflict, RetryLater, SteadyhandError, StoreError
from steadyhand.job import State
from steadyhand.ports import (
    MISSED_LIMIT,
    WAITING_LIMIT,
    JobEnd,
    Schedule,
    SchedulePause,
    ScheduleTick,
    TickDraft,
    TickKind,
)
from steadyhand.schedules.cron import CronExpression
from steadyhand.schedules.ended_jobs import EndedJobs
from steadyhand.schedules.firing import ScheduleDeps, TickFirer, expression_of

LATE = timedelta(seconds=30)
"""A tick that is handled later than this after its time was missed."""
LONGEST_WAIT_SECONDS = 10.0
"""The longest wait for the next tick, in which a jump of the wall clock goes unnoticed."""
RECHECK_SECONDS = 30.0
"""The time between two looks at all jobs that have not ended, of which another service may have ended some."""
RETRY_SECONDS = 2.0
"""The wait after a tick that the queue or a limit refused, and after a failure of the store."""
COUNT_LIMIT = 1_000
"""The most missed ticks that are counted."""
_SECOND = timedelta(seconds=1)
_FAILED_STATES = frozenset({State.FAILED, State.TIMEOUT, State.INTERRUPTED, State.ERROR})


class Scheduler:
    """Fires the ticks of all schedules. It belongs to one event loop."""

    def __init__(
        self, deps: ScheduleDeps, ended: EndedJobs, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._deps = deps
        self._store = deps.store
        self._firer = TickFirer(deps)
        self._monotonic = monotonic
        self._ended = ended
        self._rechecked_at: float | None = None
        self._refusals: dict[tuple[str, datetime], RetryLater] = {}
        self._log = structlog.get_logger("steadyhand.schedules")

    # --- the loop ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Fire what is due until cancelled. A failure of the store is waited for."""
        while True:
            self._ended.changed.clear()
            try:
                seconds = await self.step()
            except StoreError as error:
                self._log.warning("schedule.waits", reason=error.detail)
                seconds = RETRY_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._ended.changed.wait()

    async def step(self) -> float:
        """Settle what has ended and fire what is due; return the seconds to wait."""
        await self._settle()
        refused, began = False, self._deps.clock()
        next_at = await self._store.next_tick_at()
        if next_at is not None and next_at <= began:
            for schedule in await self._store.list_due_schedules(began):
                refused |= not await self._try(schedule, self._handle(schedule, began))
            next_at = await self._store.next_tick_at()
        refused |= not await self._fire_waiting()
        if refused:
            return RETRY_SECONDS
        if next_at is None:
            return LONGEST_WAIT_SECONDS
        return min(max((next_at - self._deps.clock()).total_seconds(), 0.0), LONGEST_WAIT_SECONDS)

    async def _try(self, schedule: Schedule, work: Awaitable[bool]) -> bool:
        """Return the result of work on one schedule. An error of ours pauses it, and stops no other."""
        try:
            return await work
        except _TickTakenError:  # another service has it, or its owner has just changed the schedule
            return True
        except StoreError:
            raise
        except Exception:  # noqa: BLE001  # the boundary of one schedule: the log has the cause
            self._log.exception("schedule.failed", schedule=schedule.name)
            detail = "An error of the service; its log has the cause."
            await self._pause(schedule, SchedulePause(self._deps.clock(), "internal", detail))
            return True

    # --- jobs that have ended ----------------------------------------------------------------

    async def _settle(self) -> None:
        ended, now = self._ended.ids.copy(), self._monotonic()
        if self._rechecked_at is None or now - self._rechecked_at >= RECHECK_SECONDS:
            self._rechecked_at = now
            ended |= {tick.job_id for tick in await self._store.list_open_ticks() if tick.job_id is not None}
        ends = [end for job_id in sorted(ended) if (end := await self._end_of(job_id)) is not None]
        if ends:
            for schedule in await self._store.settle_ticks(ends, self._deps.check_caps):
                self._tell_paused(schedule)
        self._ended.ids -= ended

    async def _end_of(self, job_id: str) -> JobEnd | None:
        job = await self._deps.get_job(job_id)
        if job is None:
            return JobEnd(job_id, None, None, None)
        if not job.is_final:
            return None
        outcome = None if job.outcome is None else job.outcome.type
        failed = None if job.state is State.CANCELLED else job.state in _FAILED_STATES
        return JobEnd(job_id, outcome, failed, job.cost.micros)

    # --- ticks that are due ------------------------------------------------------------------

    async def _handle(self, schedule: Schedule, now: datetime) -> bool:
        """Handle the due tick of a schedule; return False if it was refused for now.

        `now` is the time at which the due ones were read: a tick is not missed because many others came before it.
        """
        first = schedule.next_at
        assert first is not None  # noqa: S101  # it is due
        caller = self._deps.caller_of(schedule.api_key_id)
        pause = self._deps.check_caps(schedule)
        if caller is None:
            pause = key_revoked(schedule, self._deps.clock())
        if pause is not None or caller is None:
            await self._pause(schedule, pause)
            return True
        cron = expression_of(schedule)
        if now - first <= LATE:
            return await self._fire(schedule, caller, first, "cron", cron.next_after(first))
        return await self._catch_up(schedule, caller, cron, first, now - LATE)

    async def _catch_up(
        self, schedule: Schedule, caller: Caller, cron: CronExpression, first: datetime, until: datetime
    ) -> bool:
        """Skip those of the missed ticks that the schedule's policy does not fire, then fire the others."""
        kept, skipped, last = await asyncio.to_thread(self._plan_missed, schedule, cron, first, until)
        if skipped:
            refusal = self._refusals.pop((schedule.id, first), None)
            boundary = kept[0] if kept else cron.next_after(last)
            draft = TickDraft(
                skipped[-1],
                self._deps.clock(),
                "missed",
                "skipped",
                "missed" if refusal is None else refusal.code,
                None if refusal is None else refusal.detail,
                len(skipped),
            )
            await self._skip(schedule, [draft], boundary)
        for tick in kept:
            if not await self._fire(schedule, caller, tick, "missed", cron.next_after(tick)):
                return False
        return True

    def _plan_missed(
        self, schedule: Schedule, cron: CronExpression, first: datetime, until: datetime
    ) -> tuple[list[datetime], list[datetime], datetime]:
        """Return the missed ticks that fire, those that do not (at most `COUNT_LIMIT` of them), and the last one."""
        newest = cron.last_before(first - _SECOND, until, MISSED_LIMIT)
        last = newest[-1] if newest else first
        most = {"all": MISSED_LIMIT, "once": 1, "none": 0}[schedule.spec.missed]
        if schedule.spec.missed == "once":
            following = cron.next_after(last)
            if following is not None and following <= self._deps.clock():
                most = 0  # a tick that is not missed fires in their place
        kept = newest[-most:] if most else []
        end = kept[0] - _SECOND if kept else last
        skipped = list(islice(cron.ticks(first - _SECOND, end), COUNT_LIMIT))
        if skipped:
            skipped[-1] = newest[-most - 1] if len(newest) > most else skipped[-1]
        return kept, skipped, last

    async def _fire(
        self, schedule: Schedule, caller: Caller, tick: datetime, kind: TickKind, next_at: datetime | None
    ) -> bool:
        """Fire a tick, let it wait or skip it, by the schedule's policy; return False if it was refused for now."""
        now = self._deps.clock()
        open_ticks = await self._store.list_open_ticks(schedule.id)
        if open_ticks:
            await self._overlap(schedule, caller, TickDraft(tick, now, kind, "fired"), open_ticks, next_at)
            return True
        try:
            await self._firer.fire(schedule, caller, TickDraft(tick, now, kind, "fired"), next_at)
        except RetryLater as error:
            self._refusals[schedule.id, tick] = error
            if next_at is None or next_at > self._deps.clock():
                return False
            draft = TickDraft(tick, now, kind, "skipped", error.code, error.detail)
            await self._skip(schedule, [draft], next_at)
        except SteadyhandError as error:
            _raise_if_other(error)
            draft = TickDraft(tick, now, kind, "skipped", error.code, error.detail, failed=True)
            await self._skip(schedule, [draft], next_at)
        self._refusals.pop((schedule.id, tick), None)
        return True

    async def _overlap(
        self,
        schedule: Schedule,
        caller: Caller,
        draft: TickDraft,
        open_ticks: Sequence[ScheduleTick],
        next_at: datetime | None,
    ) -> None:
        waiting = [tick for tick in open_ticks if tick.result == "waiting"]
        running = [tick.job_id for tick in open_ticks if tick.job_id is not None]
        policy, at = schedule.spec.overlap, draft.at
        if policy == "skip" or (policy == "queue" and len(waiting) >= WAITING_LIMIT):
            detail = f"{len(waiting)} ticks wait already." if waiting else f"The job {running[0]} goes on."
            skipped = TickDraft(draft.scheduled_at, at, draft.kind, "skipped", "overlap", detail)
            await self._skip(schedule, [skipped], next_at)
            return
        if policy == "cancel_running":
            for tick in waiting:
                replaced = TickDraft(tick.scheduled_at, at, tick.kind, "skipped", "replaced")
                await self._drop(schedule, tick, replaced)
        waits = TickDraft(draft.scheduled_at, at, draft.kind, "waiting")
        await self._skip(schedule, [waits], next_at)
        if policy == "cancel_running":
            for job_id in running:
                await self._cancel(schedule, caller, job_id)

    async def _cancel(self, schedule: Schedule, caller: Caller, job_id: str) -> None:
        try:
            await self._deps.control.cancel(caller, job_id)
        except CallerError as error:  # the tick waits for the end of the job all the same
            self._log.warning(
                "schedule.not_cancelled", schedule=schedule.name, job=job_id, reason=error.detail
            )

    # --- ticks that wait ---------------------------------------------------------------------

    async def _fire_waiting(self) -> bool:
        """Fire the oldest waiting tick of each schedule whose jobs have ended; return False if one was refused."""
        open_ticks = await self._store.list_open_ticks()
        busy = {tick.schedule_id for tick in open_ticks if tick.result == "fired"}
        oldest: dict[str, ScheduleTick] = {}
        for tick in open_ticks:
            if tick.result == "waiting" and tick.schedule_id not in busy:
                oldest.setdefault(tick.schedule_id, tick)
        if not oldest:
            return True
        schedules = {schedule.id: schedule for schedule in await self._store.list_schedules()}
        accepted = True
        for schedule_id, tick in oldest.items():
            if schedule_id in schedules:
                schedule = schedules[schedule_id]
                accepted &= await self._try(schedule, self._fire_one_waiting(schedule, tick))
        return accepted

    async def _fire_one_waiting(self, schedule: Schedule, tick: ScheduleTick) -> bool:
        caller, now = self._deps.caller_of(schedule.api_key_id), self._deps.clock()
        pause = key_revoked(schedule, now) if caller is None else self._deps.check_caps(schedule)
        if pause is not None or caller is None:
            await self._pause(schedule, pause)
            return True
        draft = TickDraft(tick.scheduled_at, now, tick.kind, "fired")
        try:
            await self._firer.fire(schedule, caller, draft, None, tick.sequence)
        except RetryLater:
            return False
        except SteadyhandError as error:
            _raise_if_other(error)
            failed = TickDraft(
                tick.scheduled_at, now, tick.kind, "skipped", error.code, error.detail, failed=True
            )
            await self._drop(schedule, tick, failed)
        return True

    # --- what is stored ----------------------------------------------------------------------

    async def _skip(self, schedule: Schedule, ticks: Sequence[TickDraft], next_at: datetime | None) -> None:
        try:
            paused = await self._store.skip_ticks(schedule, ticks, next_at, self._deps.check_caps)
        except Conflict as error:
            raise _TickTakenError(error.detail) from error
        for tick in ticks:
            self._count(schedule.name, tick)
        if paused is not None:
            self._tell_paused(paused)

    async def _drop(self, schedule: Schedule, waiting: ScheduleTick, draft: TickDraft) -> None:
        paused = await self._store.drop_waiting(waiting.sequence, draft, self._deps.check_caps)
        self._count(schedule.name, draft)
        if paused is not None:
            self._tell_paused(paused)

    def _count(self, name: str, tick: TickDraft) -> None:
        if tick.result == "skipped":
            self._deps.on_ticks("skipped", tick.count)
            self._log.info(
                "schedule.skipped",
                schedule=name,
                reason=tick.reason,
                ticks=tick.count,
                scheduled_at=tick.scheduled_at.isoformat(),
            )

    async def _pause(self, schedule: Schedule, pause: SchedulePause | None) -> None:
        if pause is None:
            return
        paused = await self._store.pause_schedule(schedule.id, pause)
        if paused is not None:
            self._tell_paused(paused)

    def _tell_paused(self, schedule: Schedule) -> None:
        pause = schedule.paused
        if pause is not None:
            self._deps.on_pause(pause.reason)
            self._log.warning(
                "schedule.paused", schedule=schedule.name, reason=pause.reason, detail=pause.detail
            )


class _TickTakenError(SteadyhandError):
    """A tick that another service has taken, or whose schedule was changed meanwhile."""


def _raise_if_other(error: SteadyhandError) -> None:
    """Raise for an error that is not about the request for work."""
    if error.code == "tick_taken":
        raise _TickTakenError(error.detail) from error
    if isinstance(error, StoreError):
        raise error


def key_revoked(schedule: Schedule, now: datetime) -> SchedulePause:
    """Return the pause of a schedule whose key is not valid."""
    return SchedulePause(now, "key_revoked", f"Its key {schedule.api_key_id} is revoked, or not known here.")
