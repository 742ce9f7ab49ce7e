"""Schedules (docs/schedules.md): a cron expression, and the job that each of its ticks submits."""

from typing import Annotated, Any

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.addresses import redact_url, url_origin
from steadyhand.agents import NAME_PATTERN
from steadyhand.api.native.jobs import build_work_submission
from steadyhand.api.native.serializers import job_json, list_json, seconds_or_none, time_or_none, usd_or_none
from steadyhand.api.openapi import schedule_operations as operations
from steadyhand.api.schemas import schedule_bodies as bodies
from steadyhand.api.schemas.field_types import to_positive_micros
from steadyhand.api.schemas.route_table import PathParam, RouteTable
from steadyhand.api.transport.body import parse_body, parse_optional_body
from steadyhand.api.transport.context import get_caller, get_context
from steadyhand.api.transport.errors import json_response
from steadyhand.api.transport.params import parse_query
from steadyhand.control import Caller
from steadyhand.errors import NotFound
from steadyhand.events import format_rfc3339
from steadyhand.money import format_dollars
from steadyhand.ports import (
    JobTemplate,
    Schedule,
    ScheduleChange,
    ScheduleInfo,
    Schedules,
    ScheduleSpec,
    ScheduleTick,
)

router = RouteTable(prefix="/v1/schedules", tags=["jobs"])

ScheduleName = Annotated[str, PathParam("The schedule's name.")]
_MAX_LIST_LIMIT = 200
_CREATED, _ACCEPTED = 201, 202


def _readable(request: Request) -> tuple[Schedules, str | None]:
    """Return the schedules, and the key whose schedules the caller may read; None for all of them."""
    caller = get_caller(request)
    caller.require_scope("read")
    return _schedules(request), None if caller.has_scope("read:all") else caller.key_id


def _changeable(request: Request) -> tuple[Schedules, str | None]:
    """Return the schedules, and the key whose schedules the caller may change; None for all of them."""
    caller = get_caller(request)
    caller.require_scope("submit")
    return _schedules(request), owner_of(caller)


def owner_of(caller: Caller) -> str | None:
    """Return the key whose schedules a caller may change; None for all of them."""
    return None if caller.has_scope("admin") else caller.key_id


def _schedules(request: Request) -> Schedules:
    schedules = get_context(request).options.schedules
    if schedules is None:
        raise NotFound("This service has no schedules.")
    return schedules


def _validate_name(name: str) -> str:
    if NAME_PATTERN.fullmatch(name) is None:
        raise NotFound("Schedule not found")
    return name


@router.get("", operation_id="listSchedules", summary="List the schedules", **operations.SCHEDULES)
async def list_schedules(request: Request) -> Response:
    """Return the schedules of the key in the order of their names; with `read:all` those of all keys."""
    schedules, owner = _readable(request)
    parse_query(request)
    found = await schedules.list_schedules(owner)
    body: bodies.ScheduleList = list_json([schedule_json(each) for each in found])
    return json_response(body)


@router.post(
    "",
    status_code=201,
    operation_id="createSchedule",
    summary="Make a schedule",
    **operations.CREATE_SCHEDULE,
)
async def create_schedule(request: Request) -> Response:
    """Create a schedule of the caller's key. Its jobs have the scopes and limits that the key has when they begin."""
    schedules, _ = _changeable(request)
    caller = get_caller(request)
    parse_query(request)
    limit = get_context(request).options.max_body_bytes
    body, _ = await parse_body(request, bodies.ScheduleRequest, limit)
    spec = ScheduleSpec(
        cron=body.cron,
        timezone=body.timezone,
        job=_build_template(body.job),
        overlap=body.overlap,
        missed=body.missed,
        max_micros=None if body.max_usd is None else to_positive_micros(body.max_usd),
        max_runs=body.max_runs,
        max_failures=body.max_failures,
    )
    made = await schedules.create(body.name, caller.key_id, spec, paused=body.paused)
    return json_response(
        schedule_json(made), _CREATED, headers={"location": f"/v1/schedules/{made.schedule.name}"}
    )


@router.get("/{name}", operation_id="getSchedule", summary="Give a schedule", **operations.SCHEDULE)
async def get_schedule(request: Request, name: ScheduleName) -> Response:
    """Return a schedule with its next tick and the newest tick that fired."""
    schedules, owner = _readable(request)
    parse_query(request)
    return json_response(schedule_json(await schedules.get(_validate_name(name), owner)))


@router.patch(
    "/{name}", operation_id="changeSchedule", summary="Change a schedule", **operations.CHANGE_SCHEDULE
)
async def change_schedule(request: Request, name: ScheduleName) -> Response:
    """Change the fields that the body has; `job` is replaced as a whole.

    A schedule of the configuration is changed there: 409.
    """
    schedules, owner = _changeable(request)
    parse_query(request)
    limit = get_context(request).options.max_body_bytes
    body, _ = await parse_body(request, bodies.ScheduleChangeRequest, limit)
    values: dict[str, object] = {each: getattr(body, each) for each in body.model_fields_set}
    if "max_usd" in values:
        values["max_micros"] = None if body.max_usd is None else to_positive_micros(body.max_usd)
        del values["max_usd"]
    if values.pop("job", None) is not None and body.job is not None:
        values["job"] = _build_template(body.job)
    changed = await schedules.change(_validate_name(name), owner, ScheduleChange(values))
    return json_response(schedule_json(changed))


@router.delete(
    "/{name}",
    status_code=204,
    operation_id="removeSchedule",
    summary="Remove a schedule",
    **operations.REMOVE_SCHEDULE,
)
async def remove_schedule(request: Request, name: ScheduleName) -> Response:
    """Remove a schedule with its history. Its jobs stay, and those that run go on."""
    schedules, owner = _changeable(request)
    parse_query(request)
    await schedules.remove(_validate_name(name), owner)
    return Response(status_code=204)


@router.post(
    "/{name}/pause", operation_id="pauseSchedule", summary="Pause a schedule", **operations.PAUSE_SCHEDULE
)
async def pause_schedule(request: Request, name: ScheduleName) -> Response:
    """Pause a schedule: until it is resumed its ticks neither fire nor count as missed."""
    schedules, owner = _changeable(request)
    await _parse_action(request)
    return json_response(schedule_json(await schedules.pause(_validate_name(name), owner)))


@router.post(
    "/{name}/resume", operation_id="resumeSchedule", summary="Resume a schedule", **operations.RESUME_SCHEDULE
)
async def resume_schedule(request: Request, name: ScheduleName) -> Response:
    """Resume a schedule from now on, and count its failures in a row anew. 409 `cap_reached` while a cap is reached."""
    schedules, owner = _changeable(request)
    await _parse_action(request)
    return json_response(schedule_json(await schedules.resume(_validate_name(name), owner)))


@router.post(
    "/{name}/run",
    status_code=202,
    operation_id="runSchedule",
    summary="Run a schedule now",
    **operations.RUN_SCHEDULE,
)
async def run_schedule(request: Request, name: ScheduleName) -> Response:
    """Submit the job of a schedule now, also if it is paused or an earlier job goes on; its caps hold."""
    schedules, owner = _changeable(request)
    await _parse_action(request)
    job = await schedules.run_now(_validate_name(name), owner)
    position = get_context(request).control.position(job)
    return json_response(job_json(job, position), _ACCEPTED, headers={"location": f"/v1/jobs/{job.id}"})


@router.get(
    "/{name}/history",
    operation_id="listScheduleTicks",
    summary="List the ticks of a schedule, newest first",
    **operations.SCHEDULE_TICKS,
)
async def list_schedule_ticks(request: Request, name: ScheduleName) -> Response:
    """List the ticks that fired, wait or were skipped, with the reason. The newest 1,000 are kept."""
    schedules, owner = _readable(request)
    query = parse_query(request, "limit", "cursor")
    limit = query.get_int("limit", 20, minimum=1, maximum=_MAX_LIST_LIMIT)
    page = await schedules.history(_validate_name(name), owner, limit, query.get_one("cursor"))
    body: bodies.ScheduleTickList = list_json([tick_json(each) for each in page.ticks], page.next_cursor)
    return json_response(body)


async def _parse_action(request: Request) -> None:
    parse_query(request)
    limit = get_context(request).options.max_body_bytes
    await parse_optional_body(request, bodies.ScheduleActionRequest, limit)


def _build_template(body: bodies.ScheduledJobRequest) -> JobTemplate:
    submission = build_work_submission(body)
    return JobTemplate(
        submission.spec,
        agent=body.agent,
        workspace=body.workspace,
        ref=body.ref,
        budget_micros=submission.budget_micros,
        timeout_seconds=submission.timeout_seconds,
        idle_timeout_seconds=submission.idle_timeout_seconds,
        on_interrupt=submission.on_interrupt,
        publish=submission.publish,
    )


def schedule_json(info: ScheduleInfo) -> bodies.Schedule:
    """Return a schedule with all its keys."""
    schedule = info.schedule
    spec, pause = schedule.spec, schedule.paused
    return {
        "object": "schedule",
        "name": schedule.name,
        "api_key_id": schedule.api_key_id,
        "origin": schedule.origin,
        "cron": spec.cron,
        "timezone": spec.timezone,
        "overlap": spec.overlap,
        "missed": spec.missed,
        "max_usd": usd_or_none(spec.max_micros),
        "max_runs": spec.max_runs,
        "max_failures": spec.max_failures,
        "job": _template_json(schedule),
        "paused": None
        if pause is None
        else {"since": format_rfc3339(pause.at), "reason": pause.reason, "detail": pause.detail},
        "next_at": time_or_none(schedule.next_at),
        "runs": schedule.runs,
        "spent_usd": format_dollars(schedule.spent_micros),
        "failures": schedule.failures,
        "last": None if info.last is None else tick_json(info.last),
        "created_at": format_rfc3339(schedule.created_at),
    }


def _template_json(schedule: Schedule) -> bodies.ScheduledJob:
    template, spec = schedule.spec.job, schedule.spec.job.spec
    callback, schema = spec.callback, spec.output_schema
    metadata: dict[str, Any] = {} if spec.metadata is None else dict(spec.metadata)
    body: bodies.ScheduledJob = {
        "prompt": spec.prompt,
        "title": spec.title,
        "agent": template.agent,
        "workspace": redact_url(template.workspace),
        "ref": template.ref,
        "model": spec.model,
        "budget_usd": usd_or_none(template.budget_micros),
        "timeout_seconds": seconds_or_none(template.timeout_seconds),
        "idle_timeout_seconds": seconds_or_none(template.idle_timeout_seconds),
        "expires_in_seconds": seconds_or_none(spec.expires_in_seconds),
        "priority": spec.priority,
        "metadata": metadata,
        "output_schema": None if schema is None else dict(schema),
        "max_turns": spec.max_turns,
        "effort": spec.effort,
        "append_system_prompt": spec.append_system_prompt,
        "publish": template.publish,
        "on_interrupt": template.on_interrupt,
        "callback": None
        if callback is None
        else {"receiver": url_origin(callback.url), "events": list(callback.events), "body": callback.body},
    }
    if spec.labels:
        body["labels"] = list(spec.labels)
    if spec.not_on_nodes:
        body["not_on_nodes"] = list(spec.not_on_nodes)
    return body


def tick_json(tick: ScheduleTick) -> bodies.ScheduleTick:
    """Return one line of a history."""
    return {
        "object": "schedule_tick",
        "scheduled_at": format_rfc3339(tick.scheduled_at),
        "at": format_rfc3339(tick.at),
        "kind": tick.kind,
        "result": tick.result,
        "reason": tick.reason,
        "detail": tick.detail,
        "count": tick.count,
        "job_id": tick.job_id,
        "outcome": tick.outcome,
        "cost_usd": format_dollars(tick.micros),
    }
