"""The native routes for jobs (docs/http-api.md#native-routes)."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from steadyhand import json_schema
from steadyhand.api.native.event_stream import event_stream
from steadyhand.api.native.serializers import event_json, job_item_json, job_json, list_json
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import native_bodies
from steadyhand.api.schemas.requests import (
    CancelRequest,
    JobRequest,
    ResumeRequest,
    RetryRequest,
    TurnRequest,
    WorkRequest,
    micros_of,
)
from steadyhand.api.transport.body import body_of, fingerprint, optional_body_of
from steadyhand.api.transport.context import Door, caller_of, door_of, welcome_of
from steadyhand.api.transport.errors import json_bytes, json_response
from steadyhand.api.transport.params import (
    JobId,
    accepted,
    etag_matches,
    idempotency_key,
    known_form,
    preferred_wait,
    query_of,
    whole_number,
)
from steadyhand.api.transport.route import DirectRoute
from steadyhand.control import Caller, Continuation, Submission
from steadyhand.errors import InvalidRequest
from steadyhand.job import Job, State
from steadyhand.ports import Filter, Idempotency

_Asked = TypeVar("_Asked", bound=WorkRequest)

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=DirectRoute)

_EVENTS_MEDIA = ("text/event-stream", "application/json")
_MOST_LISTED = 200
_MOST_EVENTS = 500
_BIGGEST_SEQ = 2**53


def submission_of(asked: JobRequest) -> Submission:
    """Give what the request asks for, in the words of the core."""
    return replace(
        _work_of(asked),
        agent=asked.agent,
        workspace=asked.workspace,
        ref=asked.ref,
        append_system_prompt=asked.append_system_prompt,
        session=asked.session,
    )


def _work_of(asked: WorkRequest) -> Submission:
    """Give what every request asks for; raises `InvalidRequest` for a schema that is none."""
    if asked.output_schema is not None:
        json_schema.accept(asked.output_schema, "/output_schema")
    return Submission(
        prompt=asked.prompt,
        model=asked.model,
        budget_micros=None if asked.budget_usd is None else micros_of(asked.budget_usd),
        timeout_seconds=asked.timeout_seconds,
        idle_timeout_seconds=asked.idle_timeout_seconds,
        priority=asked.priority,
        metadata=asked.metadata,
        title=asked.title,
        output_schema=asked.output_schema,
        on_interrupt=asked.on_interrupt,
        publish=asked.publish,
        expires_in_seconds=asked.expires_in_seconds,
        max_turns=asked.max_turns,
        effort=asked.effort,
    )


@router.post("", status_code=202, operation_id="submitJob", summary="Accept a job", **operations.SUBMIT)
async def submit(request: Request) -> Response:
    """Take a job; it is durable once this answers. `Prefer: wait=N` waits for its end, at most 60 seconds."""
    return await _accept(request, JobRequest, submission_of)


@router.post(
    "/{job_id}/turns",
    status_code=202,
    operation_id="nextTurn",
    summary="Go on with a session",
    **operations.TURNS,
)
async def turns(request: Request, job_id: JobId) -> Response:
    """Take the next turn in a job's session as a new job, in a copy of what that job did.

    It waits for a job that has not ended. Two turns on one job are two sessions from there on.
    """
    caller_of(request)
    parent = known_form(job_id)
    return await _accept(request, TurnRequest, lambda asked: replace(_work_of(asked), parent=parent))


async def _accept(
    request: Request, kind: type[_Asked], submission: Callable[[_Asked], Submission]
) -> Response:
    caller = caller_of(request)
    door = door_of(request)
    query_of(request)
    seconds = preferred_wait(request)
    if seconds:
        caller.require("read")  # before anything is stored
    key = idempotency_key(request)
    asked, value = await body_of(request, kind, door.options.max_body_bytes)
    wanted = submission(asked)
    # What a key was used for is the turn's job as well as its body.
    used_for = value if wanted.parent is None else [wanted.parent, value]
    idempotency = None if key is None else Idempotency(key, fingerprint(used_for))
    added = await door.control.submit(caller, wanted, idempotency)
    job = added.job
    headers = {"location": f"/v1/jobs/{job.id}"}
    if added.replayed:
        headers["idempotent-replayed"] = "true"
    if seconds is not None:
        headers["preference-applied"] = f"wait={seconds}"
    if seconds:
        job = await door.control.wait(caller, job.id, seconds)
        return _job_response(door, job, 200 if job.state.ended else 202, headers)
    return _job_response(door, job, 202, headers)


@router.get("", operation_id="listJobs", summary="List jobs, newest first", **operations.LIST)
async def listed(request: Request) -> Response:
    """List the jobs that the key may see. Items leave out `prompt answer structured_output runs`."""
    caller = caller_of(request)
    control = door_of(request).control
    query = query_of(request, *operations.LIST_PARAMETERS, prefix="metadata.")
    which = Filter(
        api_key_id=query.one("api_key"),
        states=frozenset(_state(text) for text in query.all("state")),
        agent=query.one("agent"),
        workspace=query.one("workspace"),
        metadata=query.prefixed,
        created_after=query.time("created_after"),
        created_before=query.time("created_before"),
        id_prefix=_prefix(query.one("id_prefix")),
    )
    limit = query.whole("limit", 20, least=1, most=_MOST_LISTED)
    page = await control.page(caller, which, limit, query.one("cursor"))
    items = [job_item_json(job, control.position(job)) for job in page.jobs]
    body: native_bodies.JobList = list_json(items, page.next_cursor)
    return json_response(body)


def _state(text: str) -> State:
    try:
        return State(text)
    except ValueError as error:
        raise InvalidRequest.at("?state", f"has to be one of {', '.join(State)}") from error


def _prefix(text: str | None) -> str | None:
    if text is not None and not (text and len(text) <= 12 and set(text) <= set("0123456789abcdef")):  # noqa: PLR2004  # an id's length
        raise InvalidRequest.at("?id_prefix", "has to be the beginning of a job's id")
    return text


@router.get("/{job_id}", operation_id="getJob", summary="Give a job", **operations.JOB)
async def get(request: Request, job_id: JobId) -> Response:
    """Give a job. `Prefer: wait=N` waits for its end; `If-None-Match` with its `ETag` gives 304."""
    caller = caller_of(request)
    door = door_of(request)
    query_of(request)
    job_id = known_form(job_id)
    seconds = preferred_wait(request)
    headers = {} if seconds is None else {"preference-applied": f"wait={seconds}"}
    job = await (door.control.wait(caller, job_id, seconds) if seconds else door.control.get(caller, job_id))
    body = json_bytes(job_json(job, door.control.position(job)))
    headers["etag"] = etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers["vary"] = "authorization"
    headers["cache-control"] = "private, no-cache"
    if etag_matches(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(body, 200, headers, "application/json")


@router.get(
    "/{job_id}/events", operation_id="followJob", summary="Follow a job's events", **operations.EVENTS
)
async def events(request: Request, job_id: JobId) -> Response:
    """Stream the events from the start or after `Last-Event-ID` or `?after=`; as JSON, give a page of them."""
    caller = caller_of(request)
    control = door_of(request).control
    job_id = known_form(job_id)
    job = await control.get(caller, job_id)
    media = accepted(request, _EVENTS_MEDIA)
    query = query_of(request, "after", "limit")
    after = query.whole("after", 0, least=0, most=_BIGGEST_SEQ, code="bad_cursor")
    limit = query.whole("limit", 100, least=1, most=_MOST_EVENTS)
    last = request.headers.get("last-event-id")
    if last and media == "text/event-stream":
        after = whole_number(last, "", least=0, most=_BIGGEST_SEQ, code="bad_cursor")
    if after > job.last_event:
        raise InvalidRequest(f"The job has no event {after} yet.", code="bad_cursor")
    if media == "application/json":
        found = await control.events(caller, job_id, after, limit)
        more = bool(found) and len(found) == limit and found[-1].seq < job.last_event
        cursor = str(found[-1].seq) if more else None
        body: native_bodies.EventList = list_json([event_json(event) for event in found], cursor)
        return json_response(body)
    if job.state.ended and after >= job.last_event:
        return Response(status_code=204)
    return event_stream(control.follow(caller, job_id, after), welcome_of(request))


@router.get("/{job_id}/diff", operation_id="getDiff", summary="Give what a job changed", **operations.DIFF)
async def diff(request: Request, job_id: JobId) -> Response:
    """Give the diff that `git apply` takes; 409 `not_ready` before the job has ended."""
    caller = caller_of(request)
    path = await door_of(request).control.diff(caller, known_form(job_id))
    return _file(path, "text/x-diff; charset=utf-8")


@router.get(
    "/{job_id}/transcript",
    operation_id="getTranscript",
    summary="Give the agent's record",
    **operations.TRANSCRIPT,
)
async def transcript(request: Request, job_id: JobId) -> Response:
    """Give the agent's own record of its session, one JSON object a line; 409 `not_ready` before the end."""
    caller = caller_of(request)
    path = await door_of(request).control.transcript(caller, known_form(job_id))
    return _file(path, "application/x-ndjson")


@router.get("/{job_id}/bundle", operation_id="getBundle", summary="Give a job's commits", **operations.BUNDLE)
async def bundle(request: Request, job_id: JobId) -> Response:
    """Give what a job did as a git bundle, for `git fetch`; 409 `not_ready` before the job has ended."""
    caller = caller_of(request)
    path = await door_of(request).control.bundle(caller, known_form(job_id))
    return _file(path, "application/x-git-bundle")


@router.post(
    "/{job_id}/cancel", status_code=202, operation_id="cancelJob", summary="Stop a job", **operations.CANCEL
)
async def cancel(request: Request, job_id: JobId) -> Response:
    """Stop a job: 202 while its agent is being stopped, 200 when it has ended."""
    caller = caller_of(request)
    door = door_of(request)
    job_id = known_form(job_id)
    await optional_body_of(request, CancelRequest, door.options.max_body_bytes)
    job = await door.control.cancel(caller, job_id)
    return _job_response(door, job, 200 if job.state.ended else 202)


@router.post(
    "/{job_id}/retry", status_code=202, operation_id="retryJob", summary="Run a job again", **operations.RETRY
)
async def retry(request: Request, job_id: JobId) -> Response:
    """Queue an ended job for a new run from the start. `after_run` makes a repeat of the request harmless."""
    caller = caller_of(request)
    door = door_of(request)
    job_id = known_form(job_id)
    asked = await optional_body_of(request, RetryRequest, door.options.max_body_bytes)
    job = await door.control.retry(caller, job_id, asked.after_run)
    return _job_response(door, job, 202, {"location": f"/v1/jobs/{job.id}"})


@router.post(
    "/{job_id}/resume",
    status_code=202,
    operation_id="resumeJob",
    summary="Go on with a job",
    **operations.RESUME,
)
async def resume(request: Request, job_id: JobId) -> Response:
    """Queue an ended job for a new run in the same session and checkout, perhaps with a higher budget or a prompt."""
    caller = caller_of(request)
    door = door_of(request)
    job_id = known_form(job_id)
    asked = await optional_body_of(request, ResumeRequest, door.options.max_body_bytes)
    budget = None if asked.budget_usd is None else micros_of(asked.budget_usd)
    continuation = Continuation(budget_micros=budget, prompt=asked.prompt, after_run=asked.after_run)
    job = await door.control.resume(caller, job_id, continuation)
    return _job_response(door, job, 202, {"location": f"/v1/jobs/{job.id}"})


@router.delete(
    "/{job_id}", status_code=204, operation_id="deleteJob", summary="Forget a job", **operations.DELETE
)
async def delete(request: Request, job_id: JobId) -> Response:
    """Forget an ended job and all that was kept of it."""
    caller: Caller = caller_of(request)
    await door_of(request).control.delete(caller, known_form(job_id))
    return Response(status_code=204)


def _job_response(door: Door, job: Job, status: int, headers: dict[str, str] | None = None) -> Response:
    return json_response(job_json(job, door.control.position(job)), status, headers=headers)


def _file(path: Path, media_type: str) -> Response:
    return FileResponse(path, media_type=media_type, headers={"x-content-type-options": "nosniff"})
