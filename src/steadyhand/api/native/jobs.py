"""The native routes for jobs (docs/http-api.md#native-routes)."""

import hashlib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from steadyhand import json_schema
from steadyhand.api.native.event_stream import event_stream_response
from steadyhand.api.native.nodes import queue_reason, queue_reasons
from steadyhand.api.native.serializers import event_json, job_item_json, job_json, list_json
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import native_bodies
from steadyhand.api.schemas.field_types import to_positive_micros
from steadyhand.api.schemas.requests import (
    CancelRequest,
    JobRequest,
    ResumeRequest,
    RetryRequest,
    SteerRequest,
    TurnRequest,
    WorkRequest,
)
from steadyhand.api.schemas.route_table import RouteTable
from steadyhand.api.transport.body import fingerprint, parse_body, parse_optional_body
from steadyhand.api.transport.context import ApiContext, authorization_check, get_caller, get_context
from steadyhand.api.transport.errors import json_bytes, json_response
from steadyhand.api.transport.params import (
    JobId,
    etag_matches,
    negotiate_media_type,
    parse_idempotency_key,
    parse_int,
    parse_preferred_wait,
    parse_query,
    validate_job_id,
)
from steadyhand.api.transport.rendered_items import RenderedItems
from steadyhand.control import Caller, Control, ResumeOptions, Submission
from steadyhand.errors import InvalidRequest
from steadyhand.job import Job, JobCallback, JobSpec, SlashCommand, State, UncommittedChanges
from steadyhand.ports import IdempotencyKey, JobFilter

WorkRequestT = TypeVar("WorkRequestT", bound=WorkRequest)

router = RouteTable(prefix="/v1/jobs", tags=["jobs"])

_EVENT_MEDIA_TYPES = ("text/event-stream", "application/json")
_MAX_LIST_LIMIT = 200
_MAX_EVENTS_LIMIT = 500
_MAX_SEQ = 2**53
_SPEC_FIELDS = {field.name for field in fields(JobSpec)}


def build_submission(body: JobRequest) -> Submission:
    """Build the submission for a request."""
    submission = build_work_submission(body)
    sent = body.uncommitted
    changes = None if sent is None else UncommittedChanges(sent.base, sent.commit, sent.pack)
    return replace(
        submission,
        spec=replace(submission.spec, uncommitted=changes),
        agent=body.agent,
        workspace=body.workspace,
        ref=body.ref,
        session=body.session,
    )


def build_work_submission(body: WorkRequest) -> Submission:
    """Build the part of a submission that all requests share; raise `InvalidRequest` for an invalid schema."""
    if body.output_schema is not None:
        json_schema.check_output_schema(body.output_schema, "/output_schema")
    shared_fields = _SPEC_FIELDS & type(body).model_fields.keys()
    values = {name: getattr(body, name) for name in shared_fields}
    for name in ("labels", "not_on_nodes"):
        values[name] = tuple(sorted(set(values.get(name) or ())))
    spec, command = JobSpec(**values), body.command
    return Submission(
        spec=replace(
            spec,
            command=None if command is None else SlashCommand(command.name, command.arguments),
            callback=_build_callback(body),
        ),
        budget_micros=None if body.budget_usd is None else to_positive_micros(body.budget_usd),
        timeout_seconds=body.timeout_seconds,
        idle_timeout_seconds=body.idle_timeout_seconds,
        on_interrupt=body.on_interrupt,
        publish=body.publish,
    )


def _build_callback(body: WorkRequest) -> JobCallback | None:
    if body.callback_url is None:
        return None
    callback = JobCallback(body.callback_url)
    if body.callback_events is not None:
        callback = replace(callback, events=tuple(dict.fromkeys(body.callback_events)))
    return callback if body.callback_body is None else replace(callback, body=body.callback_body)


@router.post("", status_code=202, operation_id="submitJob", summary="Accept a job", **operations.SUBMIT)
async def submit_job(request: Request) -> Response:
    """Create a job; it is durable once the response is sent. `Prefer: wait=N` waits for its end, at most 60 seconds."""
    return await _accept_job(request, JobRequest, build_submission)


@router.post(
    "/{job_id}/turns",
    status_code=202,
    operation_id="nextTurn",
    summary="Go on with a session",
    **operations.TURNS,
)
async def submit_turn(request: Request, job_id: JobId) -> Response:
    """Create the next turn of a job's session as a new job, on a copy of that job's work.

    It waits for a job that has not ended. Two turns on one job are two separate sessions from then on.
    """
    get_caller(request)
    parent = validate_job_id(job_id)
    return await _accept_job(
        request, TurnRequest, lambda asked: replace(build_work_submission(asked), parent=parent)
    )


async def _accept_job(
    request: Request, request_model: type[WorkRequestT], build: Callable[[WorkRequestT], Submission]
) -> Response:
    caller = get_caller(request)
    context = get_context(request)
    parse_query(request)
    seconds = parse_preferred_wait(request)
    if seconds:
        caller.require_scope("read")  # before anything is stored
    key = parse_idempotency_key(request)
    body, json_body = await parse_body(request, request_model, context.options.max_body_bytes)
    submission = build(body)
    # What a key was used for is the turn's job as well as its body.
    fingerprinted = json_body if submission.parent is None else [submission.parent, json_body]
    idempotency = None if key is None else IdempotencyKey(key, fingerprint(fingerprinted))
    submitted = await context.control.submit(caller, submission, idempotency)
    job = submitted.job
    headers = {"location": f"/v1/jobs/{job.id}"}
    if submitted.replayed:
        headers["idempotent-replayed"] = "true"
    if seconds is not None:
        headers["preference-applied"] = f"wait={seconds}"
    if seconds:
        job = await context.control.wait(caller, job.id, seconds)
        return _job_response(context, job, 200 if job.state.ended else 202, headers)
    return _job_response(context, job, 202, headers)


@router.get("", operation_id="listJobs", summary="List jobs, newest first", **operations.LIST)
async def list_jobs(request: Request) -> Response:
    """List the jobs that the key may see. Items leave out `prompt answer structured_output runs`."""
    caller = get_caller(request)
    control = get_context(request).control
    query = parse_query(request, *operations.LIST_PARAMETERS, prefix="metadata.")
    job_filter = JobFilter(
        api_key_id=query.get_one("api_key"),
        states=frozenset(_parse_state(text) for text in query.get_all("state")),
        agent=query.get_one("agent"),
        workspace=query.get_one("workspace"),
        metadata=query.prefixed,
        created_after=query.get_datetime("created_after"),
        created_before=query.get_datetime("created_before"),
        id_prefix=_parse_id_prefix(query.get_one("id_prefix")),
        search=query.get_one("q"),
    )
    limit = query.get_int("limit", 20, minimum=1, maximum=_MAX_LIST_LIMIT)
    page = await control.list_jobs(caller, job_filter, limit, query.get_one("cursor"))
    cache = get_context(request).job_items
    reasons = await queue_reasons(get_context(request), page.jobs)
    items = [_job_item(job, control, cache, reasons.get(job.id)) for job in page.jobs]
    body: native_bodies.JobList = list_json([], page.next_cursor)
    start, end = json_bytes(body).split(b"[]")  # a cursor has no brackets
    return Response(b"".join((start, b"[", b",".join(items), b"]", end)), media_type="application/json")


def _job_item(
    job: Job, control: Control, cache: RenderedItems, reason: native_bodies.QueueReason | None
) -> bytes:
    """Return a job as JSON. The position of one that waits changes without the job, so it is not kept."""
    if job.state is State.QUEUED:
        item = job_item_json(job, control.position(job))
        if reason is not None:
            item["queue_reason"] = reason
        return json_bytes(item)
    return cache.get(job.id, job, lambda each: json_bytes(job_item_json(each, None)))


def _parse_state(text: str) -> State:
    try:
        return State(text)
    except ValueError as error:
        raise InvalidRequest.at("?state", f"has to be one of {', '.join(State)}") from error


def _parse_id_prefix(text: str | None) -> str | None:
    if text is not None and not (text and len(text) <= 12 and set(text) <= set("0123456789abcdef")):  # noqa: PLR2004  # an id's length
        raise InvalidRequest.at("?id_prefix", "has to be the beginning of a job's id")
    return text


@router.get("/{job_id}", operation_id="getJob", summary="Give a job", **operations.JOB)
async def get_job(request: Request, job_id: JobId) -> Response:
    """Return a job. `Prefer: wait=N` waits for its end; `If-None-Match` with its `ETag` returns 304."""
    caller = get_caller(request)
    context = get_context(request)
    parse_query(request)
    job_id = validate_job_id(job_id)
    seconds = parse_preferred_wait(request)
    headers = {} if seconds is None else {"preference-applied": f"wait={seconds}"}
    job = await (
        context.control.wait(caller, job_id, seconds) if seconds else context.control.get(caller, job_id)
    )
    body = job_json(job, context.control.position(job))
    reason = await queue_reason(context, job)
    if reason is not None:
        body["queue_reason"] = reason
    document = json_bytes(body)
    headers["etag"] = etag = f'"{hashlib.sha256(document).hexdigest()[:32]}"'
    headers["vary"] = "authorization"
    headers["cache-control"] = "private, no-cache"
    if etag_matches(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(document, 200, headers, "application/json")


@router.get(
    "/{job_id}/events", operation_id="followJob", summary="Follow a job's events", **operations.EVENTS
)
async def get_events(request: Request, job_id: JobId) -> Response:
    """Stream the events from the start or after `Last-Event-ID` or `?after=`; as JSON, return a page of them."""
    caller = get_caller(request)
    control = get_context(request).control
    job_id = validate_job_id(job_id)
    job = await control.get(caller, job_id)
    media_type = negotiate_media_type(request, _EVENT_MEDIA_TYPES)
    query = parse_query(request, "after", "limit")
    after = query.get_int("after", 0, minimum=0, maximum=_MAX_SEQ, code="bad_cursor")
    limit = query.get_int("limit", 100, minimum=1, maximum=_MAX_EVENTS_LIMIT)
    last_event_id = request.headers.get("last-event-id")
    if last_event_id and media_type == "text/event-stream":
        after = parse_int(last_event_id, "", minimum=0, maximum=_MAX_SEQ, code="bad_cursor")
    if after > job.last_event:
        raise InvalidRequest(f"The job has no event {after} yet.", code="bad_cursor")
    if media_type == "application/json":
        page = await control.list_events(caller, job_id, after, limit)
        has_more = bool(page) and len(page) == limit and page[-1].seq < job.last_event
        next_cursor = str(page[-1].seq) if has_more else None
        body: native_bodies.EventList = list_json([event_json(event) for event in page], next_cursor)
        return json_response(body)
    if job.state.ended and after >= job.last_event:
        return Response(status_code=204)
    return event_stream_response(
        lambda write: control.follow_job(caller, job_id, after, write),
        authorization_check(request),
        get_context(request).event_frames,
    )


@router.get("/{job_id}/diff", operation_id="getDiff", summary="Give what a job changed", **operations.DIFF)
async def get_diff(request: Request, job_id: JobId) -> Response:
    """Return the diff for `git apply`; 409 `not_ready` before the job has ended."""
    caller = get_caller(request)
    path = await get_context(request).control.diff(caller, validate_job_id(job_id))
    return _file_response(path, "text/x-diff; charset=utf-8")


@router.get(
    "/{job_id}/transcript",
    operation_id="getTranscript",
    summary="Give the agent's record",
    **operations.TRANSCRIPT,
)
async def get_transcript(request: Request, job_id: JobId) -> Response:
    """Return the agent's own record of its session, one JSON object a line; 409 `not_ready` before the end."""
    caller = get_caller(request)
    path = await get_context(request).control.transcript(caller, validate_job_id(job_id))
    return _file_response(path, "application/x-ndjson")


@router.get("/{job_id}/bundle", operation_id="getBundle", summary="Give a job's commits", **operations.BUNDLE)
async def get_bundle(request: Request, job_id: JobId) -> Response:
    """Return the job's commits as a git bundle, for `git fetch`; 409 `not_ready` before the job has ended."""
    caller = get_caller(request)
    path = await get_context(request).control.bundle(caller, validate_job_id(job_id))
    return _file_response(path, "application/x-git-bundle")


@router.post(
    "/{job_id}/cancel", status_code=202, operation_id="cancelJob", summary="Stop a job", **operations.CANCEL
)
async def cancel_job(request: Request, job_id: JobId) -> Response:
    """Stop a job: 202 while its agent is being stopped, 200 when it has ended."""
    caller = get_caller(request)
    context = get_context(request)
    job_id = validate_job_id(job_id)
    await parse_optional_body(request, CancelRequest, context.options.max_body_bytes)
    job = await context.control.cancel(caller, job_id)
    return _job_response(context, job, 200 if job.state.ended else 202)


@router.post(
    "/{job_id}/retry", status_code=202, operation_id="retryJob", summary="Run a job again", **operations.RETRY
)
async def retry_job(request: Request, job_id: JobId) -> Response:
    """Queue an ended job for a new run from the start. `after_run` makes a repeat of the request harmless."""
    caller = get_caller(request)
    context = get_context(request)
    job_id = validate_job_id(job_id)
    body = await parse_optional_body(request, RetryRequest, context.options.max_body_bytes)
    job = await context.control.retry(caller, job_id, body.after_run)
    return _job_response(context, job, 202, {"location": f"/v1/jobs/{job.id}"})


@router.post(
    "/{job_id}/resume",
    status_code=202,
    operation_id="resumeJob",
    summary="Go on with a job",
    **operations.RESUME,
)
async def resume_job(request: Request, job_id: JobId) -> Response:
    """Queue an ended job for a new run in the same session and checkout; a higher budget and a prompt are optional."""
    caller = get_caller(request)
    context = get_context(request)
    job_id = validate_job_id(job_id)
    body = await parse_optional_body(request, ResumeRequest, context.options.max_body_bytes)
    budget = None if body.budget_usd is None else to_positive_micros(body.budget_usd)
    continuation = ResumeOptions(budget_micros=budget, prompt=body.prompt, after_run=body.after_run)
    job = await context.control.resume(caller, job_id, continuation)
    return _job_response(context, job, 202, {"location": f"/v1/jobs/{job.id}"})


@router.post(
    "/{job_id}/steer",
    status_code=202,
    operation_id="steerJob",
    summary="Send a message to a running turn",
    **operations.STEER,
)
async def steer_job(request: Request, job_id: JobId) -> Response:
    """Pass a message to the running turn of a job; 409 `not_running` if none goes on, or it is about to end."""
    caller = get_caller(request)
    for scope in ("submit", "read"):
        caller.require_scope(scope)
    context = get_context(request)
    parse_query(request)
    job_id = validate_job_id(job_id)
    key = parse_idempotency_key(request)
    body, _ = await parse_body(request, SteerRequest, context.options.max_body_bytes)
    answer = await context.control.steer(caller, job_id, body.text, key)
    steer: native_bodies.Steer = {"object": "steer", "id": answer.id, "job_id": job_id, "run": answer.job.run}
    headers = {"idempotent-replayed": "true"} if answer.replayed else None
    return json_response(steer, 202, headers=headers)


@router.delete(
    "/{job_id}", status_code=204, operation_id="deleteJob", summary="Forget a job", **operations.DELETE
)
async def delete_job(request: Request, job_id: JobId) -> Response:
    """Delete an ended job and all its stored data."""
    caller: Caller = get_caller(request)
    await get_context(request).control.delete(caller, validate_job_id(job_id))
    return Response(status_code=204)


def _job_response(
    context: ApiContext, job: Job, status: int, headers: dict[str, str] | None = None
) -> Response:
    return json_response(job_json(job, context.control.position(job)), status, headers=headers)


def _file_response(path: Path, media_type: str) -> Response:
    return FileResponse(path, media_type=media_type, headers={"x-content-type-options": "nosniff"})
