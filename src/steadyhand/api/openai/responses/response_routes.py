"""Routes of the Responses API (docs/http-api.md): create, retrieve, stream, cancel and delete responses."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import replace
from typing import Annotated, Any

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.openai import stream_timing
from steadyhand.api.openai.client_tools import passed_over_headers
from steadyhand.api.openai.continuation import session_headers
from steadyhand.api.openai.input_messages import ConversationMessage
from steadyhand.api.openai.responses.build_submission import reject_unsupported
from steadyhand.api.openai.responses.resource import (
    StoredResponse,
    forget_response,
    latest_response,
)
from steadyhand.api.openai.responses.response_events import ResponseEvents
from steadyhand.api.openai.responses.start_response import (
    get_response,
    replay_events,
    save_conversation,
    start_response,
    stored_input_items,
    wait_for_response,
)
from steadyhand.api.openai.run_failure import failure_reason, failure_response, is_answered
from steadyhand.api.openai.start_run import cancel_abandoned_run, wait_unless_disconnected
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import openai_bodies
from steadyhand.api.schemas.openai_requests import ResponseCancelRequest, ResponseRequest
from steadyhand.api.schemas.route_table import PathParam, RouteTable
from steadyhand.api.transport.body import parse_body, parse_optional_body
from steadyhand.api.transport.context import (
    ApiContext,
    as_job_owner,
    authorization_check,
    get_caller,
    get_context,
)
from steadyhand.api.transport.errors import json_bytes, json_response
from steadyhand.api.transport.params import parse_int
from steadyhand.api.transport.sse import EventStreamResponse, Frame, joined_frame
from steadyhand.control import Caller
from steadyhand.errors import InvalidRequest
from steadyhand.job import State

router = RouteTable(prefix="/v1/responses", tags=["openai"])

ResponseId = Annotated[
    str, PathParam("The response's id: `resp_`, the job's id, and a number after calls of the client.")
]

_DONE_FRAME = b"data: [DONE]\n\n"
_CANCEL_SECONDS = 5.0
_DELETE_SECONDS = 30.0
_MAX_LIST_LIMIT = 100
_MAX_SEQUENCE_NUMBER = 2**53


@router.post("", operation_id="createResponse", summary="Answer an input", **operations.RESPONSE_CREATE)
async def create_response(request: Request) -> Response:
    """Run the agent that the model's name stands for. A disconnect cancels the run, unless it is in the background."""
    caller = get_caller(request)
    caller.require_scope("submit")
    context = get_context(request)
    body, json_body = await parse_body(
        request, ResponseRequest, context.options.max_openai_body_bytes, lenient=True
    )
    reject_unsupported(body)
    run, stored, messages = await start_response(request, context, caller, body, json_body)
    owner = as_job_owner(caller)
    headers = run.headers() | session_headers(request, run.job) | passed_over_headers(body.tools)
    if body.stream:
        return _stream(request, context, owner, stored, after=-1, headers=headers, messages=messages)
    if stored.request.get("background"):
        return _response_json_response(await replay_events(context, owner, stored), stored, headers)
    waiter = wait_for_response(context, owner, stored)
    finished = await wait_unless_disconnected(request, context, caller, run.job.id, waiter)
    if finished is None:
        return Response(status_code=499)  # nobody reads it
    job, response_events = finished
    if not is_answered(job) and not response_events.ended_with_calls:
        return failure_response(request, job, run.headers(retry=False))
    if job.state is State.COMPLETED:
        await save_conversation(context, response_events, messages)
    return json_response(response_events.to_json(job), headers=headers | session_headers(request, job))


@router.get(
    "/{response_id}", operation_id="getResponse", summary="Give a response", **operations.RESPONSE_GET
)
async def retrieve_response(request: Request, response_id: ResponseId) -> Response:
    """Return a response; with `stream=true` its events from the first, or after `starting_after`, and those to come."""
    caller = get_caller(request)
    context = get_context(request)
    stored = await get_response(context, caller, response_id)
    query = request.query_params
    stream_text = query.get("stream", "false").lower()
    if stream_text not in ("true", "false"):
        raise InvalidRequest.at("?stream", "has to be true or false")
    starting_after = query.get("starting_after")
    after = (
        -1
        if starting_after is None
        else parse_int(starting_after, "?starting_after", minimum=0, maximum=_MAX_SEQUENCE_NUMBER)
    )
    if stream_text == "false":
        return _response_json_response(await replay_events(context, caller, stored), stored)
    return _stream(request, context, caller, stored, after=after, headers={}, is_lookup=True)


@router.delete(
    "/{response_id}", operation_id="deleteResponse", summary="Forget a response", **operations.RESPONSE_DELETE
)
async def delete_response(request: Request, response_id: ResponseId) -> Response:
    """Delete an ended response; with the last response of a job, the job and all its stored data are deleted."""
    caller = get_caller(request)
    context = get_context(request)
    stored = await get_response(context, caller, response_id)
    if not await context.control.reduce_job(
        caller, stored.job.id, lambda job: forget_response(job, stored.number)
    ):
        # Its answer may be there before its end.
        await context.control.wait(caller, stored.job.id, _DELETE_SECONDS if stored.job.is_final else 0)
        await context.control.delete(caller, stored.job.id)
    body: openai_bodies.ResponseGone = {"id": response_id, "object": "response", "deleted": True}
    return json_response(body)


@router.post(
    "/{response_id}/cancel",
    operation_id="cancelResponse",
    summary="Stop a response",
    **operations.RESPONSE_CANCEL,
)
async def cancel_response(request: Request, response_id: ResponseId) -> Response:
    """Stop a response's run, and return the response; one that has ended stays as it is."""
    caller = get_caller(request)
    context = get_context(request)
    owner = as_job_owner(caller)
    stored = await get_response(context, caller, response_id)
    await parse_optional_body(request, ResponseCancelRequest, context.options.max_openai_body_bytes)
    job = stored.job
    if stored == latest_response(job) and not job.is_final:
        job = (await context.control.cancel(caller, job.id)).as_answered
        if not job.is_final:
            job = (await context.control.wait(owner, job.id, _CANCEL_SECONDS)).as_answered
    stored = replace(stored, job=job)
    return _response_json_response(await replay_events(context, owner, stored), stored)


@router.get(
    "/{response_id}/input_items",
    operation_id="listInputItems",
    summary="List the input",
    **operations.RESPONSE_INPUT,
)
async def list_input_items(request: Request, response_id: ResponseId) -> Response:
    """List the items of a response's request, the newest first unless `order=asc`, without bytes of files."""
    caller = get_caller(request)
    stored = await get_response(get_context(request), caller, response_id)
    query = request.query_params
    limit = parse_int(query.get("limit", "20"), "?limit", minimum=1, maximum=_MAX_LIST_LIMIT)
    items = stored_input_items(stored)
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest.at("?order", "has to be asc or desc")
    if order == "desc":
        items.reverse()
    after = query.get("after")
    if after is not None:
        positions = [position for position, item in enumerate(items) if item["id"] == after]
        if not positions:
            raise InvalidRequest.at("?after", "is no item of this input")
        items = items[positions[0] + 1 :]
    page: list[Any] = items[:limit]
    body: openai_bodies.InputItems = {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(items) > len(page),
    }
    return json_response(body)


def _response_json_response(
    response_events: ResponseEvents, stored: StoredResponse, headers: Mapping[str, str] | None = None
) -> Response:
    return json_response(response_events.to_json(stored.job), headers=headers)


def _stream(
    request: Request,
    context: ApiContext,
    owner: Caller,
    stored: StoredResponse,
    *,
    after: int,
    headers: dict[str, str],
    is_lookup: bool = False,
    messages: Sequence[ConversationMessage] | None = None,
) -> Response:
    """Stream a response's events above a number; `again` is true for a stream that did not start the run."""
    keeps_running = is_lookup or bool(stored.request.get("background"))
    response_events = ResponseEvents(stored, context.tool_names)

    async def on_disconnect() -> None:
        if not keeps_running and not response_events.ended_with_calls:  # else it left with calls to make
            await cancel_abandoned_run(request, context, owner, stored.job.id)

    return EventStreamResponse(
        _event_frames(context, owner, response_events, after, keeps_running=keeps_running, messages=messages),
        authorization_check(request),
        preamble=stream_timing.ACCEPTED_COMMENT,
        keepalive_seconds=stream_timing.KEEPALIVE_SECONDS,
        headers=headers,
        on_disconnect=on_disconnect,
    )


async def _event_frames(
    context: ApiContext,
    owner: Caller,
    response_events: ResponseEvents,
    after: int,
    *,
    keeps_running: bool,
    messages: Sequence[ConversationMessage] | None,
) -> AsyncGenerator[Frame, None]:
    job_id, response_id = response_events.stored.job.id, response_events.stored.id

    def shared_frame(event: openai_bodies.ResponseEvent) -> Frame:
        key = (response_id, event["sequence_number"])
        return Frame(context.event_frames.get(key, event, _encode_event))

    with nullcontext() if keeps_running else context.waiting_clients.track(job_id):
        async with aclosing(context.control.follow_answer(owner, job_id)) as batches:
            async for batch in batches:
                events = [event for item in batch for event in response_events.feed(item)]
                frames = [shared_frame(event) for event in events if event["sequence_number"] > after]
                if frames:
                    yield joined_frame(frames)
                if response_events.ended_with_calls:
                    yield Frame(_DONE_FRAME)
                    return
    job = (await context.control.get(owner, job_id)).as_answered
    if not job.is_final:
        # The service is stopping. What goes on in its next life has no end yet; the client comes back for the rest.
        if not keeps_running:
            code, detail = failure_reason(job)
            fields: Any = {"code": code, "message": detail, "param": None}
            error: Any = {"type": "error", **fields, "sequence_number": response_events.event_count}
            yield Frame(_encode_event(error))
        return
    *earlier_events, last_event = response_events.finish(job)
    # A client that was told more than was kept, before a crash, is still to be told how it ended.
    last_event["sequence_number"] = (
        max(last_event["sequence_number"], after + 1)
        if response_events.event_count <= after
        else response_events.event_count - 1
    )
    for event in earlier_events:
        if event["sequence_number"] > after:
            yield shared_frame(event)
    if last_event["sequence_number"] <= after:
        yield Frame(_DONE_FRAME)
    elif job.state is State.COMPLETED:
        # Before the client can come back with it.
        await save_conversation(context, response_events, messages)
        yield joined_frame([shared_frame(last_event), Frame(_DONE_FRAME)])
    else:
        yield joined_frame([shared_frame(last_event), Frame(_DONE_FRAME)])


def _encode_event(event: openai_bodies.ResponseEvent) -> bytes:
    return f"event: {event['type']}\ndata: ".encode() + json_bytes(event) + b"\n\n"
