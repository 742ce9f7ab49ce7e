"""Schedules in SQL: functions of a connection inside a transaction, in statements that SQLite and Postgres take."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, case, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from steadyhand.errors import Conflict
from steadyhand.job import Job, JobCallback, JobSpec, OutcomeType, SlashCommand
from steadyhand.ports.schedules import (
    CheckCaps,
    JobEnd,
    JobTemplate,
    Schedule,
    SchedulePause,
    ScheduleSpec,
    ScheduleTick,
    TickClaim,
    TickDraft,
    TickPage,
)
from steadyhand.store import reads
from steadyhand.store.announcements import SCHEDULES_CHANNEL, announce
from steadyhand.store.lists import MAX_SEQUENCE
from steadyhand.store.mapping import from_microseconds, to_json, to_microseconds
from steadyhand.store.outbox import PauseHook
from steadyhand.store.schema import schedule_ticks, schedules
from steadyhand.store.usage_sums import GREATEST_SUM

HISTORY_LENGTH = 1_000
"""The settled ticks of a schedule that are kept."""
_VERSION = 1
_NEITHER = 2
"""The `failed` of a tick whose job was cancelled."""
_SPEC_FIELDS = tuple(each.name for each in fields(ScheduleSpec) if each.name != "job")
_TEMPLATE_FIELDS = tuple(each.name for each in fields(JobTemplate) if each.name != "spec")
_JOB_SPEC_FIELDS = (
    "prompt",
    "model",
    "priority",
    "metadata",
    "title",
    "output_schema",
    "expires_in_seconds",
    "max_turns",
    "effort",
    "append_system_prompt",
)
_JOB_SPEC_LISTS = ("labels", "not_on_nodes")
_MINE = schedule_ticks.c


def encode_spec(spec: ScheduleSpec) -> str:
    """Return what the owner of a schedule sets, as versioned JSON; values that are None are left out."""
    template, job = spec.job, spec.job.spec
    job_fields: dict[str, Any] = {name: getattr(job, name) for name in _JOB_SPEC_FIELDS}
    if job.command is not None:
        job_fields["command"] = [job.command.name, job.command.arguments]
    for name in _JOB_SPEC_LISTS:
        if getattr(job, name):
            job_fields[name] = getattr(job, name)
    if job.callback is not None:
        job_fields["callback"] = [job.callback.url, job.callback.events, job.callback.body]
    document = {
        "version": _VERSION,
        **{name: getattr(spec, name) for name in _SPEC_FIELDS},
        "job": _set(job_fields),
        "template": _set({name: getattr(template, name) for name in _TEMPLATE_FIELDS}),
    }
    return to_json(_set(document))


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def decode_spec(text: str) -> ScheduleSpec:
    """Return what the owner of a schedule sets. Names that this release does not know are left out."""
    document = json.loads(text)
    job = dict(document["job"])
    command, callback = job.get("command"), job.get("callback")
    spec = JobSpec(
        **{name: job[name] for name in _JOB_SPEC_FIELDS if name in job},
        labels=tuple(job.get("labels", ())),
        not_on_nodes=tuple(job.get("not_on_nodes", ())),
        command=None if command is None else SlashCommand(*command),
        callback=None if callback is None else JobCallback(callback[0], tuple(callback[1]), callback[2]),
        origin="schedule",
    )
    template = {name: document["template"][name] for name in _TEMPLATE_FIELDS if name in document["template"]}
    values = {name: document[name] for name in _SPEC_FIELDS if name in document}
    return ScheduleSpec(**values, job=JobTemplate(spec, **template))


def _time(moment: datetime | None) -> int | None:
    return None if moment is None else to_microseconds(moment)


def _moment(value: int | None) -> datetime | None:
    return None if value is None else from_microseconds(value)


def _owner_values(schedule: Schedule) -> dict[str, Any]:
    """Return the columns that are replaced as a whole."""
    pause = schedule.paused
    return {
        "name": schedule.name,
        "api_key_id": schedule.api_key_id,
        "origin": schedule.origin,
        "spec": encode_spec(schedule.spec),
        "revision": schedule.revision,
        "next_at": _time(schedule.next_at),
        "paused_at": None if pause is None else to_microseconds(pause.at),
        "pause_reason": None if pause is None else pause.reason,
        "pause_detail": None if pause is None else pause.detail,
    }


def _schedule_from_row(row: RowMapping) -> Schedule:
    paused = None
    if row["paused_at"] is not None:
        paused = SchedulePause(
            from_microseconds(row["paused_at"]), row["pause_reason"], row["pause_detail"] or ""
        )
    return Schedule(
        id=row["id"],
        name=row["name"],
        api_key_id=row["api_key_id"],
        origin=row["origin"],
        spec=decode_spec(row["spec"]),
        created_at=from_microseconds(row["created_at"]),
        next_at=_moment(row["next_at"]),
        revision=row["revision"],
        paused=paused,
        runs=row["runs"],
        spent_micros=row["spent_micros"],
        failures=row["failures"],
    )


def _tick_from_row(row: RowMapping) -> ScheduleTick:
    return ScheduleTick(
        sequence=row["sequence"],
        schedule_id=row["schedule"],
        scheduled_at=from_microseconds(row["tick"]),
        at=from_microseconds(row["at"]),
        kind=row["kind"],
        result=row["result"],
        reason=row["reason"],
        detail=row["detail"],
        count=row["count"],
        job_id=row["job_id"],
        budget_micros=row["budget_micros"],
        outcome=None if row["outcome"] is None else OutcomeType(row["outcome"]),
        micros=row["micros"],
        settled=bool(row["settled"]),
    )


# --- reads ---------------------------------------------------------------------------------------


def list_schedules(connection: Connection, api_key_id: str | None) -> Sequence[Schedule]:
    """Return the schedules in the order of their names; see `ScheduleStore.list_schedules`."""
    query = select(schedules).order_by(schedules.c.name)
    if api_key_id is not None:
        query = query.where(schedules.c.api_key_id == api_key_id)
    return [_schedule_from_row(row) for row in connection.execute(query).mappings()]


def get_schedule(connection: Connection, name: str) -> Schedule | None:
    """Return a schedule, or None."""
    row = connection.execute(select(schedules).where(schedules.c.name == name)).mappings().first()
    return None if row is None else _schedule_from_row(row)


def _read(connection: Connection, schedule_id: str) -> Schedule | None:
    row = connection.execute(select(schedules).where(schedules.c.id == schedule_id)).mappings().first()
    return None if row is None else _schedule_from_row(row)


def list_due_schedules(connection: Connection, now: datetime) -> Sequence[Schedule]:
    """Return the schedules whose next tick is due, the earliest first."""
    query = select(schedules).where(schedules.c.next_at <= to_microseconds(now)).order_by(schedules.c.next_at)
    return [_schedule_from_row(row) for row in connection.execute(query).mappings()]


def next_tick_at(connection: Connection) -> datetime | None:
    """Return the time of the next tick of all schedules."""
    return _moment(connection.execute(select(func.min(schedules.c.next_at))).scalar())


def list_open_ticks(connection: Connection, schedule_id: str | None) -> Sequence[ScheduleTick]:
    """Return the ticks that are not settled, oldest first; see `ScheduleStore.list_open_ticks`."""
    query = select(schedule_ticks).where(_MINE.settled == 0).order_by(_MINE.sequence)
    if schedule_id is not None:
        query = query.where(_MINE.schedule == schedule_id)
    return [_tick_from_row(row) for row in connection.execute(query).mappings()]


def list_ticks(connection: Connection, schedule_id: str, limit: int, cursor: str | None) -> TickPage:
    """Return a page of a history, newest first; see `ScheduleStore.list_ticks`."""
    before = MAX_SEQUENCE if cursor is None else reads.decode_cursor(cursor)
    query = (
        select(schedule_ticks)
        .where(_MINE.schedule == schedule_id, _MINE.sequence < before)
        .order_by(_MINE.sequence.desc())
        .limit(limit + 1)
    )
    rows = connection.execute(query).mappings().all()
    page = [_tick_from_row(row) for row in rows[:limit]]
    return TickPage(page, reads.encode_cursor(page[-1].sequence) if len(rows) > limit else None)


def newest_fired(connection: Connection, schedule_ids: Sequence[str]) -> Sequence[ScheduleTick]:
    """Return the newest fired tick of each of these schedules that has one."""
    newest = (
        select(func.max(_MINE.sequence))
        .where(_MINE.schedule.in_(schedule_ids), _MINE.result == "fired")
        .group_by(_MINE.schedule)
    )
    query = select(schedule_ticks).where(_MINE.sequence.in_(newest))
    return [_tick_from_row(row) for row in connection.execute(query).mappings()]


# --- writes --------------------------------------------------------------------------------------


def add_schedule(connection: Connection, schedule: Schedule, most: int) -> bool:
    """Store a new schedule; see `ScheduleStore.add_schedule`."""
    count = select(func.count()).where(schedules.c.api_key_id == schedule.api_key_id)
    if connection.execute(count).scalar_one() >= most:
        return False
    row = {
        **_owner_values(schedule),
        "id": schedule.id,
        "created_at": to_microseconds(schedule.created_at),
        "runs": 0,
        "spent_micros": 0,
        "failures": 0,
        "failures_since": 0,
    }
    try:
        with connection.begin_nested():
            connection.execute(insert(schedules), row)
    except IntegrityError as error:
        raise Conflict(f"There is a schedule {schedule.name!r} already.") from error
    announce(connection, SCHEDULES_CHANNEL)
    return True


def save_schedule(connection: Connection, schedule: Schedule, revision: int, *, reset_failures: bool) -> bool:
    """Replace what the owner of a schedule sets; see `ScheduleStore.save_schedule`."""
    values = _owner_values(schedule)
    if reset_failures:
        newest = select(func.max(_MINE.sequence)).where(_MINE.schedule == schedule.id)
        values |= {"failures": 0, "failures_since": connection.execute(newest).scalar() or 0}
    saved = connection.execute(
        update(schedules)
        .where(schedules.c.id == schedule.id, schedules.c.revision == revision)
        .values(values)
    )
    if saved.rowcount and schedule.paused is not None:
        _drop_all_waiting(connection, schedule.id)
    announce(connection, SCHEDULES_CHANNEL)
    return saved.rowcount > 0


def delete_schedule(connection: Connection, schedule_id: str) -> bool:
    """Delete a schedule with its history; see `ScheduleStore.delete_schedule`."""
    return connection.execute(delete(schedules).where(schedules.c.id == schedule_id)).rowcount > 0


def pause_schedule(
    connection: Connection, schedule_id: str, pause: SchedulePause, hook: PauseHook
) -> Schedule | None:
    """Pause a schedule that is not paused; see `ScheduleStore.pause_schedule`."""
    values = {
        "revision": schedules.c.revision + 1,
        "next_at": None,
        "paused_at": to_microseconds(pause.at),
        "pause_reason": pause.reason,
        "pause_detail": pause.detail,
    }
    paused = connection.execute(
        update(schedules).where(schedules.c.id == schedule_id, schedules.c.paused_at.is_(None)).values(values)
    )
    if not paused.rowcount:
        return None
    _drop_all_waiting(connection, schedule_id)
    schedule = _read(connection, schedule_id)
    if schedule is not None:
        hook.add(connection, schedule)
    return schedule


def _drop_all_waiting(connection: Connection, schedule_id: str) -> None:
    connection.execute(
        update(schedule_ticks)
        .where(_MINE.schedule == schedule_id, _MINE.result == "waiting")
        .values(result="skipped", reason="paused", settled=1)
    )


def claim_tick(connection: Connection, claim: TickClaim, job: Job) -> None:
    """Store the claim of a tick for a job that is added in the same transaction; see `TickClaim`."""
    tick, is_manual = claim.tick, claim.tick.kind == "manual"
    values: dict[str, Any] = {"runs": schedules.c.runs + 1}
    if not is_manual and claim.waiting is None:
        values["next_at"] = _time(claim.next_at)
    _update_unchanged(connection, claim.schedule_id, None if is_manual else claim.revision, values)
    row = {
        **_tick_values(claim.schedule_id, tick),
        "job_id": job.id,
        "budget_micros": job.budget_micros,
        "settled": 0,
    }
    if claim.waiting is None:
        _insert_tick(connection, row)
    else:
        del row["tick"]
        still_waits = (_MINE.sequence == claim.waiting, _MINE.result == "waiting")
        if not connection.execute(update(schedule_ticks).where(*still_waits).values(row)).rowcount:
            raise _taken()
    _prune(connection, claim.schedule_id)


def _update_unchanged(
    connection: Connection, schedule_id: str, revision: int | None, values: Mapping[str, Any]
) -> None:
    """Update a schedule that is not paused and has this revision still; without a revision, whatever it is."""
    query = update(schedules).where(schedules.c.id == schedule_id)
    if revision is not None:
        query = query.where(schedules.c.revision == revision, schedules.c.paused_at.is_(None))
    if not connection.execute(query.values(values)).rowcount:
        raise _taken()


def _taken() -> Conflict:
    return Conflict("The tick is taken already, or its schedule has changed.", code="tick_taken")


def _tick_values(schedule_id: str, tick: TickDraft) -> dict[str, Any]:
    return {
        "schedule": schedule_id,
        "tick": to_microseconds(tick.scheduled_at),
        "at": to_microseconds(tick.at),
        "kind": tick.kind,
        "result": tick.result,
        "reason": tick.reason,
        "detail": tick.detail,
        "count": tick.count,
        "job_id": None,
        "budget_micros": 0,
        "outcome": None,
        "failed": int(tick.failed),
        "settled": int(tick.result == "skipped"),
        "micros": 0,
    }


def _insert_tick(connection: Connection, row: Mapping[str, Any]) -> None:
    try:
        with connection.begin_nested():
            connection.execute(insert(schedule_ticks), row)
    except IntegrityError as error:
        raise _taken() from error


def skip_ticks(
    connection: Connection,
    schedule: Schedule,
    ticks: Sequence[TickDraft],
    next_at: datetime | None,
    *,
    check: CheckCaps,
    hook: PauseHook,
) -> Schedule | None:
    """Store ticks that do not fire; see `ScheduleStore.skip_ticks`."""
    _update_unchanged(connection, schedule.id, schedule.revision, {"next_at": _time(next_at)})
    for tick in ticks:
        _insert_tick(connection, _tick_values(schedule.id, tick))
    _prune(connection, schedule.id)
    return _check(connection, schedule.id, check, hook) if any(tick.failed for tick in ticks) else None


def drop_waiting(
    connection: Connection, sequence: int, draft: TickDraft, check: CheckCaps, hook: PauseHook
) -> Schedule | None:
    """Make a waiting tick a skipped one; see `ScheduleStore.drop_waiting`."""
    values = {"result": "skipped", "reason": draft.reason, "detail": draft.detail, "settled": 1}
    still_waits = (_MINE.sequence == sequence, _MINE.result == "waiting")
    dropped = connection.execute(
        update(schedule_ticks).where(*still_waits).values(**values, failed=int(draft.failed))
    )
    if not dropped.rowcount or not draft.failed:
        return None
    owner = connection.execute(select(_MINE.schedule).where(_MINE.sequence == sequence)).scalar_one()
    return _check(connection, owner, check, hook)


def settle_ticks(
    connection: Connection, ends: Sequence[JobEnd], check: CheckCaps, hook: PauseHook
) -> Sequence[Schedule]:
    """Store the ends of jobs with their ticks; see `ScheduleStore.settle_ticks`."""
    changed: dict[str, None] = {}
    for end in ends:
        query = select(_MINE.sequence, _MINE.schedule, _MINE.micros).where(_MINE.job_id == end.job_id)
        row = connection.execute(query).first()
        if row is None:
            continue
        micros = row.micros if end.micros is None else end.micros
        values = {
            "settled": 1,
            "outcome": None if end.outcome is None else str(end.outcome),
            "failed": _NEITHER if end.failed is None else int(end.failed),
            "micros": micros,
        }
        connection.execute(update(schedule_ticks).where(_MINE.sequence == row.sequence).values(values))
        added = micros - row.micros
        spent = case(
            (schedules.c.spent_micros > GREATEST_SUM - max(0, added), GREATEST_SUM),
            else_=schedules.c.spent_micros + added,
        )
        connection.execute(update(schedules).where(schedules.c.id == row.schedule).values(spent_micros=spent))
        changed[row.schedule] = None
    paused = [_check(connection, schedule_id, check, hook) for schedule_id in changed]
    return [schedule for schedule in paused if schedule is not None]


def _check(connection: Connection, schedule_id: str, check: CheckCaps, hook: PauseHook) -> Schedule | None:
    """Count the failures in a row and pause a schedule that has reached a cap; return it if it was paused now."""
    since = connection.execute(
        select(schedules.c.failures_since).where(schedules.c.id == schedule_id)
    ).scalar_one()
    last_success = select(func.max(_MINE.sequence)).where(
        _MINE.schedule == schedule_id, _MINE.result == "fired", _MINE.settled == 1, _MINE.failed == 0
    )
    after = max(since, connection.execute(last_success).scalar() or 0)
    failures = select(func.count()).where(
        _MINE.schedule == schedule_id, _MINE.sequence > after, _MINE.failed == 1
    )
    count = connection.execute(failures).scalar_one()
    connection.execute(update(schedules).where(schedules.c.id == schedule_id).values(failures=count))
    schedule = _read(connection, schedule_id)
    pause = None if schedule is None or schedule.paused is not None else check(schedule)
    return None if pause is None else pause_schedule(connection, schedule_id, pause, hook)


def _prune(connection: Connection, schedule_id: str) -> None:
    oldest = (
        select(_MINE.sequence)
        .where(_MINE.schedule == schedule_id)
        .order_by(_MINE.sequence.desc())
        .offset(HISTORY_LENGTH)
        .limit(1)
    )
    sequence = connection.execute(oldest).scalar()
    if sequence is not None:
        connection.execute(
            delete(schedule_ticks).where(
                _MINE.schedule == schedule_id, _MINE.sequence <= sequence, _MINE.settled == 1
            )
        )
