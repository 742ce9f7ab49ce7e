"""The operations of callers on schedules, and the schedules of the configuration."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import structlog

from steadyhand.errors import Conflict, Forbidden, InvalidRequest, NotFound
from steadyhand.job import Job
from steadyhand.ports import (
    Schedule,
    ScheduleChange,
    ScheduleInfo,
    SchedulePause,
    ScheduleSpec,
    TickDraft,
    TickPage,
)
from steadyhand.schedules.cron import CronExpression, find_zone
from steadyhand.schedules.firing import ScheduleDeps, TickFirer, build_submission, expression_of
from steadyhand.schedules.scheduler import key_revoked
from steadyhand.schedules.template import check_template

MAX_TEXT = 65_536
"""The most characters of a prompt: a list has those of all schedules."""
MAX_PER_KEY = 100
"""The most schedules of a key."""
_CONFIGURED = "This schedule is set in the configuration; change it there and restart."
_MICROSECOND = timedelta(microseconds=1)


class ScheduleRegistry:
    """`ports.Schedules` over the store. `wake` makes the loop read the schedules again."""

    def __init__(self, deps: ScheduleDeps, wake: Callable[[], None]) -> None:
        self._deps = deps
        self._store = deps.store
        self._firer = TickFirer(deps)
        self._wake = wake

    # --- queries -----------------------------------------------------------------------------

    async def list_schedules(self, owner: str | None) -> list[ScheduleInfo]:
        """Return the schedules in the order of their names."""
        found = await self._store.list_schedules(owner)
        newest = await self._store.newest_fired([each.id for each in found]) if found else ()
        last = {tick.schedule_id: tick for tick in newest}
        return [ScheduleInfo(each, last.get(each.id)) for each in found]

    async def get(self, name: str, owner: str | None) -> ScheduleInfo:
        """Return a schedule, or raise `NotFound`."""
        return await self._info(await self._find(name, owner))

    async def history(self, name: str, owner: str | None, limit: int, cursor: str | None = None) -> TickPage:
        """Return a page of a schedule's history, newest first."""
        schedule = await self._find(name, owner)
        return await self._store.list_ticks(schedule.id, limit, cursor)

    async def _find(self, name: str, owner: str | None) -> Schedule:
        schedule = await self._store.get_schedule(name)
        if schedule is None or (owner is not None and schedule.api_key_id != owner):
            raise NotFound("Schedule not found")
        return schedule

    async def _info(self, schedule: Schedule) -> ScheduleInfo:
        newest = await self._store.newest_fired([schedule.id])
        return ScheduleInfo(schedule, newest[0] if newest else None)

    # --- changes -----------------------------------------------------------------------------

    async def create(
        self, name: str, api_key_id: str, spec: ScheduleSpec, *, paused: bool = False
    ) -> ScheduleInfo:
        """Create a schedule of a key; see `Schedules.create`."""
        await self._check(api_key_id, spec)
        now = self._deps.clock()
        schedule = Schedule(_new_id(), name, api_key_id, "api", spec, now, None)
        schedule = replace(schedule, next_at=expression_of(schedule).next_after(now))
        if paused:
            schedule = replace(schedule, next_at=None, paused=_on_request(self._deps))
        if not await self._store.add_schedule(schedule, MAX_PER_KEY):
            raise Conflict(f"This key has {MAX_PER_KEY} schedules already; remove one.")
        self._wake()
        return ScheduleInfo(schedule)

    async def change(self, name: str, owner: str | None, change: ScheduleChange) -> ScheduleInfo:
        """Change a schedule; see `Schedules.change`."""
        schedule = await self._find(name, owner)
        if schedule.origin == "config":
            raise Conflict(_CONFIGURED)
        spec = replace(schedule.spec, **cast("dict[str, Any]", change.values))
        await self._check(schedule.api_key_id, spec)
        return await self._save(schedule, self._with_spec(schedule, spec))

    def _with_spec(self, schedule: Schedule, spec: ScheduleSpec) -> Schedule:
        """Return a schedule with another spec. Its next tick stays, unless its times are others."""
        changed = replace(schedule, spec=spec)
        times = (spec.cron, spec.timezone)
        if schedule.paused is None and times != (schedule.spec.cron, schedule.spec.timezone):
            changed = replace(changed, next_at=expression_of(changed).next_after(self._deps.clock()))
        return changed

    async def remove(self, name: str, owner: str | None) -> None:
        """Remove a schedule and its history; see `Schedules.remove`."""
        schedule = await self._find(name, owner)
        if schedule.origin == "config" and not _is_left_over(schedule):
            raise Conflict(_CONFIGURED)
        await self._store.delete_schedule(schedule.id)
        self._wake()

    async def pause(self, name: str, owner: str | None) -> ScheduleInfo:
        """Pause a schedule; one that is paused stays as it is."""
        schedule = await self._find(name, owner)
        if schedule.paused is not None:
            return await self._info(schedule)
        return await self._save(schedule, replace(schedule, paused=_on_request(self._deps), next_at=None))

    async def resume(self, name: str, owner: str | None) -> ScheduleInfo:
        """Resume a schedule from now on; see `Schedules.resume`."""
        schedule = await self._find(name, owner)
        if schedule.paused is None:
            return await self._info(schedule)
        if _is_left_over(schedule):
            raise Conflict("This schedule is not in the configuration any more.")
        if self._deps.caller_of(schedule.api_key_id) is None:
            raise Conflict(key_revoked(schedule, self._deps.clock()).detail)
        resumed = replace(schedule, paused=None, failures=0)
        reached = self._deps.check_caps(resumed)
        if reached is not None:
            raise Conflict(f"{reached.detail} Raise {reached.reason} first.", code="cap_reached")
        next_at = expression_of(schedule).next_after(self._deps.clock())
        return await self._save(schedule, replace(resumed, next_at=next_at), reset_failures=True)

    async def run_now(self, name: str, owner: str | None) -> Job:
        """Submit the job of a schedule now; see `Schedules.run_now`."""
        schedule = await self._find(name, owner)
        caller = self._deps.caller_of(schedule.api_key_id)
        if caller is None:
            raise Conflict(key_revoked(schedule, self._deps.clock()).detail)
        reached = self._deps.check_caps(replace(schedule, failures=0))
        if reached is not None:
            raise Conflict(f"{reached.detail} Raise {reached.reason} first.", code="cap_reached")
        now = self._deps.clock()
        if now.microsecond == 0:  # a tick of the expression is at a whole second
            now += _MICROSECOND
        job = await self._firer.fire(schedule, caller, TickDraft(now, now, "manual", "fired"), None)
        self._wake()
        return job

    async def _save(
        self, schedule: Schedule, changed: Schedule, *, reset_failures: bool = False
    ) -> ScheduleInfo:
        changed = replace(changed, revision=schedule.revision + 1)
        if not await self._store.save_schedule(changed, schedule.revision, reset_failures=reset_failures):
            raise Conflict("The schedule was changed or removed at the same time; try again.")
        self._wake()
        return await self._info(changed)

    async def _check(self, api_key_id: str, spec: ScheduleSpec) -> None:
        """Raise `InvalidRequest` or `Forbidden` for a schedule that could not fire now."""
        check_spec(spec)
        if CronExpression(spec.cron, spec.timezone).next_after(self._deps.clock()) is None:
            raise InvalidRequest.at("/cron", "has no tick in the next 50 years")
        caller = self._deps.caller_of(api_key_id)
        if caller is None:
            raise Conflict(f"The key {api_key_id} is revoked, or not known here.")
        if spec.overlap == "cancel_running" and not caller.has_scope("cancel"):
            raise Forbidden("The overlap policy 'cancel_running' needs a key with the scope 'cancel'.")
        await self._deps.control.check_submission(caller, build_submission(spec.job))

    # --- the configuration -------------------------------------------------------------------

    async def load(self, configured: Mapping[str, tuple[str, ScheduleSpec]]) -> None:
        """Store the schedules of the configuration, each with its key, and pause those that are not there any more.

        One that has not changed keeps its next tick, so that the ticks of a stop are missed and not lost.
        """
        stored = {each.name: each for each in await self._store.list_schedules()}
        for name, (api_key_id, spec) in configured.items():
            schedule = stored.get(name)
            if schedule is None:
                await self._add_configured(name, api_key_id, spec)
                continue
            if schedule.origin == "api":
                structlog.get_logger("steadyhand.schedules").warning("schedule.configured", schedule=name)
            changed = replace(self._with_spec(schedule, spec), api_key_id=api_key_id, origin="config")
            if _is_left_over(schedule):
                next_at = expression_of(changed).next_after(self._deps.clock())
                changed = replace(changed, paused=None, next_at=next_at)
            if changed != schedule:
                await self._save(schedule, changed)
        for name, schedule in stored.items():
            if schedule.origin == "config" and name not in configured and not _is_left_over(schedule):
                detail = "It is not in the configuration any more."
                pause = SchedulePause(self._deps.clock(), "not_configured", detail)
                await self._save(schedule, replace(schedule, paused=pause, next_at=None))

    async def _add_configured(self, name: str, api_key_id: str, spec: ScheduleSpec) -> None:
        now = self._deps.clock()
        schedule = Schedule(_new_id(), name, api_key_id, "config", spec, now, None)
        schedule = replace(schedule, next_at=expression_of(schedule).next_after(now))
        await self._store.add_schedule(schedule, most=10**6)  # the owner of the machine may have any number


def check_spec(spec: ScheduleSpec) -> None:
    """Raise `InvalidRequest` for a template, a zone or an expression that is none."""
    job = spec.job.spec
    for pointer, long_text in (
        ("/job/prompt", job.prompt),
        ("/job/append_system_prompt", job.append_system_prompt),
    ):
        if long_text is not None and len(long_text) > MAX_TEXT:
            raise InvalidRequest.at(pointer, f"is longer than {MAX_TEXT} characters")
    for pointer, text in (("/job/prompt", job.prompt), ("/job/title", job.title or "")):
        try:
            check_template(text)
        except ValueError as error:
            raise InvalidRequest.at(pointer, str(error)) from error
    try:
        find_zone(spec.timezone)
    except ValueError as error:
        raise InvalidRequest.at("/timezone", str(error)) from error
    try:
        CronExpression(spec.cron, spec.timezone)
    except ValueError as error:
        raise InvalidRequest.at("/cron", str(error)) from error


def _is_left_over(schedule: Schedule) -> bool:
    return schedule.paused is not None and schedule.paused.reason == "not_configured"


def _on_request(deps: ScheduleDeps) -> SchedulePause:
    return SchedulePause(deps.clock(), "request", "Somebody paused it.")


def _new_id() -> str:
    return f"sch_{secrets.token_hex(8)}"
