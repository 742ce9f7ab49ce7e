"""The Responses API (docs/http-api.md): created, streamed, looked up, followed again, cancelled, forgotten."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import replace
from typing import Annotated, Any, cast

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.openai import stream_timing
from steadyhand.api.openai.continuation import session_headers
from steadyhand.api.openai.input_messages import Spoken
from steadyhand.api.openai.responses.build_submission import refuse_unbuilt
from steadyhand.api.openai.responses.resource import Kept, newest_of, over, without
from steadyhand.api.openai.responses.response_events import Story
from steadyhand.api.openai.responses.start_response import begun, found, input_of, note_talk, told, told_whole
from steadyhand.api.openai.run_failure import failure, why_failed
from steadyhand.api.openai.start_run import left, unless_left
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import openai_bodies
from steadyhand.api.schemas.requests import ResponseCancelRequest, ResponseRequest
from steadyhand.api.transport.body import body_of, optional_body_of
from steadyhand.api.transport.context import Door, caller_of, door_of, insider, welcome_of
from steadyhand.api.transport.errors import json_bytes, json_response
from steadyhand.api.transport.params import whole_number
from steadyhand.api.transport.route import DirectRoute
from steadyhand.api.transport.sse import Ending, Item, Piece, Stream
from steadyhand.control import Caller
from steadyhand.errors import InvalidRequest
from steadyhand.events import Event, Live
from steadyhand.job import State

router = APIRouter(prefix="/v1/responses", tags=["openai"], route_class=DirectRoute)

ResponseId = Annotated[
    str, Path(description="The response's id: `resp_`, the job's id, and a number after calls of the client.")
]

_DONE = b"data: [DONE]\n\n"
_LIFE = frozenset({"response.created", "response.queued", "response.in_progress"})
_CANCEL_SECONDS = 5.0
_MOST_LISTED = 100
_BIGGEST = 2**53


@router.post("", operation_id="createResponse", summary="Answer an input", **operations.RESPONSE_CREATE)
async def create(request: Request) -> Response:
    """Run the agent that the model's name means. Leaving cancels the run, unless it is in the background."""
    caller = caller_of(request)
    caller.require("submit")
    door = door_of(request)
    asked, value = await body_of(request, ResponseRequest, door.options.max_openai_body_bytes, lenient=True)
    refuse_unbuilt(asked)
    run, kept, talk = await begun(request, door, caller, asked, value)
    own = insider(caller)
    headers = run.headers() | session_headers(request, run.job)
    if asked.stream:
        return _followed(request, door, own, kept, after=-1, headers=headers, talk=talk)
    if kept.asked.get("background"):
        return _shown(await told(door, own, kept), kept, headers)
    waited = told_whole(door, own, kept)
    ended = await unless_left(request, door, caller, run.job.id, waited)
    if ended is None:
        return Response(status_code=499)  # nobody reads it
    job, story = ended
    if job.state is not State.COMPLETED and not story.over:
        return failure(request, job, run.headers(retry=False))
    if job.state is State.COMPLETED:
        await note_talk(door, story, talk)
    return json_response(story.response(job), headers=headers | session_headers(request, job))


@router.get(
    "/{response_id}", operation_id="getResponse", summary="Give a response", **operations.RESPONSE_GET
)
async def get(request: Request, response_id: ResponseId) -> Response:
    """Give a response; with `stream=true` its events from the first, or after `starting_after`, and those to come."""
    caller = caller_of(request)
    door = door_of(request)
    kept = await found(door, caller, response_id)
    query = request.query_params
    stream = query.get("stream", "false").lower()
    if stream not in ("true", "false"):
        raise InvalidRequest.at("?stream", "has to be true or false")
    text = query.get("starting_after")
    after = -1 if text is None else whole_number(text, "?starting_after", least=0, most=_BIGGEST)
    if stream == "false":
        return _shown(await told(door, caller, kept), kept)
    return _followed(request, door, caller, kept, after=after, headers={}, again=True)


@router.delete(
    "/{response_id}", operation_id="deleteResponse", summary="Forget a response", **operations.RESPONSE_DELETE
)
async def delete(request: Request, response_id: ResponseId) -> Response:
    """Forget an ended response; the last one of its job goes with the job and all that was kept of it."""
    caller = caller_of(request)
    door = door_of(request)
    kept = await found(door, caller, response_id)
    if not await door.control.forget_part(caller, kept.job.id, lambda job: without(job, kept.number)):
        await door.control.delete(caller, kept.job.id)
    body: openai_bodies.ResponseGone = {"id": response_id, "object": "response", "deleted": True}
    return json_response(body)


@router.post(
    "/{response_id}/cancel",
    operation_id="cancelResponse",
    summary="Stop a response",
    **operations.RESPONSE_CANCEL,
)
async def cancel(request: Request, response_id: ResponseId) -> Response:
    """Stop a response's run, and give the response; one that has ended stays as it is."""
    caller = caller_of(request)
    door = door_of(request)
    own = insider(caller)
    kept = await found(door, caller, response_id)
    await optional_body_of(request, ResponseCancelRequest, door.options.max_openai_body_bytes)
    job = kept.job
    if kept == newest_of(job):
        job = await door.control.cancel(caller, job.id)
        if not over(job):
            job = await door.control.wait(own, job.id, _CANCEL_SECONDS)
    kept = replace(kept, job=job)
    return _shown(await told(door, own, kept), kept)


@router.get(
    "/{response_id}/input_items",
    operation_id="listInputItems",
    summary="List the input",
    **operations.RESPONSE_INPUT,
)
async def input_items(request: Request, response_id: ResponseId) -> Response:
    """List the items that a response's request brought, the newest first unless `order=asc`, without bytes of files."""
    caller = caller_of(request)
    kept = await found(door_of(request), caller, response_id)
    query = request.query_params
    limit = whole_number(query.get("limit", "20"), "?limit", least=1, most=_MOST_LISTED)
    items = input_of(kept)
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest.at("?order", "has to be asc or desc")
    if order == "desc":
        items.reverse()
    after = query.get("after")
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise InvalidRequest.at("?after", "is no item of this input")
        items = items[places[0] + 1 :]
    page: list[Any] = items[:limit]
    body: openai_bodies.InputItems = {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(items) > len(page),
    }
    return json_response(body)


def _shown(story: Story, kept: Kept, headers: Mapping[str, str] | None = None) -> Response:
    return json_response(story.response(kept.job), headers=headers)


def _followed(
    request: Request,
    door: Door,
    own: Caller,
    kept: Kept,
    *,
    after: int,
    headers: dict[str, str],
    again: bool = False,
    talk: Sequence[Spoken] | None = None,
) -> Response:
    """Stream a response's events above a number; `again` is a look at it by somebody who did not ask for it."""
    background = again or bool(kept.asked.get("background"))
    story = Story(kept)

    async def gone() -> None:
        if not background and not story.over:  # else it left with calls to make
            await left(request, door, own, kept.job.id)

    return Stream(
        _told(request, door, own, story, after, alone=background, talk=talk),
        welcome_of(request),
        patience=0.0 if background else stream_timing.OPEN_TIMEOUT_SECONDS,
        opening=b": following\n\n",
        keepalive=stream_timing.KEEPALIVE_SECONDS,
        headers=headers,
        left=gone,
    )


async def _told(
    request: Request,
    door: Door,
    own: Caller,
    story: Story,
    after: int,
    *,
    alone: bool,
    talk: Sequence[Spoken] | None,
) -> AsyncIterator[Item]:
    job_id = story.kept.job.id
    followed = cast("AsyncGenerator[Event | Live, None]", door.control.follow(own, job_id))
    with nullcontext() if alone else door.attending.at(job_id):
        async with aclosing(followed) as items:
            async for item in items:
                for event in story.take(item):
                    if event["sequence_number"] > after:
                        yield Piece(_bytes(event), opens=event["type"] not in _LIFE)
                if story.over:
                    yield Piece(_DONE)
                    return
    job = await door.control.get(own, job_id)
    if not over(job):
        # The service is stopping. What goes on in its next life has no end yet; the client comes back for the rest.
        if not alone:
            code, detail = why_failed(job)
            fields: Any = {"code": code, "message": detail, "param": None}
            event = {"type": "error", **fields, "sequence_number": story.length}
            yield Ending(_bytes(event), failure(request, job))
        return
    *rest, last = story.end(job)
    # A client that was told more than was kept, before a crash, is still to be told how it ended.
    last["sequence_number"] = (
        max(last["sequence_number"], after + 1) if story.length <= after else story.length - 1
    )
    for event in rest:
        if event["sequence_number"] > after:
            yield Piece(_bytes(event))
    if last["sequence_number"] <= after:
        yield Piece(_DONE)
    elif last["type"] == "response.completed":
        # Before the client can come back with it.
        await note_talk(door, story, talk)
        yield Piece(_bytes(last) + _DONE)
    else:
        yield Ending(_bytes(last) + _DONE, failure(request, job))


def _bytes(event: openai_bodies.ResponseEvent) -> bytes:
    return f"event: {event['type']}\ndata: ".encode() + json_bytes(event) + b"\n\n"
