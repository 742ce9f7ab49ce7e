"""The Responses API (contract.md, C): created, streamed, looked up, followed again, cancelled, forgotten."""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, nullcontext
from typing import Annotated, Any, cast

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api import docs, openai_chat
from steadyhand.api.asked import whole_number
from steadyhand.api.body import body_of, optional_body_of
from steadyhand.api.door import Door, caller_of, door_of, insider, welcome_of
from steadyhand.api.models import ResponseCancelRequest, ResponseRequest
from steadyhand.api.offers import resolved
from steadyhand.api.openai.continuing import after_response, not_found
from steadyhand.api.openai.requested import refuse_unbuilt, submission_of
from steadyhand.api.openai.resource import is_response, over, response_json, status_of
from steadyhand.api.openai.runs import ended_or_left, failure, left, started, why_failed
from steadyhand.api.openai.story import Story
from steadyhand.api.problems import json_bytes, json_response
from steadyhand.api.route import DirectRoute
from steadyhand.api.stream import Ending, Item, Piece, Stream
from steadyhand.control import Caller
from steadyhand.errors import InvalidRequest, NotFound
from steadyhand.events import Event, Live
from steadyhand.job import Job, State

router = APIRouter(prefix="/v1/responses", tags=["openai"], route_class=DirectRoute)

ResponseId = Annotated[str, Path(description="The response's id: `resp_` and the job's id.")]

_ID = re.compile(r"resp_([0-9a-f]{12})")
_DONE = b"data: [DONE]\n\n"
_LIFE = frozenset({"response.created", "response.queued", "response.in_progress"})
_CANCEL_SECONDS = 5.0
_MOST_LISTED = 100
_BIGGEST = 2**53


@router.post("", operation_id="createResponse", summary="Answer an input", **docs.RESPONSE_CREATE)
async def create(request: Request) -> Response:
    """Run the agent that the model's name means. Leaving cancels the run, unless it is in the background."""
    caller = caller_of(request)
    caller.require("submit")
    door = door_of(request)
    asked, value = await body_of(request, ResponseRequest, door.options.max_openai_body_bytes, lenient=True)
    refuse_unbuilt(asked)
    alias = await resolved(door, caller, asked.model)
    submission = after_response(submission_of(asked, alias), asked.previous_response_id)
    if submission.parent is not None:
        await _before(door, caller, submission.parent)
    run = await started(request, door, caller, submission, value)
    own, job = insider(caller), run.job
    if asked.stream:
        return _followed(request, door, own, job, after=-1, headers=run.headers())
    if asked.background:
        return json_response(response_json(job, status_of(job), []), headers=run.headers())
    ended = await ended_or_left(request, door, caller, job.id)
    if ended is None:
        return Response(status_code=499)  # nobody reads it
    if ended.state is not State.COMPLETED:
        return failure(request, ended, run.headers(retry=False))
    return json_response(await _whole(door, own, ended), headers=run.headers())


async def _before(door: Door, caller: Caller, job_id: str) -> None:
    """Raise `InvalidRequest` unless this is a response of the caller's that another one can go on with."""
    try:
        job = await door.control.get(insider(caller), job_id)
    except NotFound as error:
        raise not_found() from error
    if not is_response(job):
        raise not_found()


@router.get("/{response_id}", operation_id="getResponse", summary="Give a response", **docs.RESPONSE_GET)
async def get(request: Request, response_id: ResponseId) -> Response:
    """Give a response; with `stream=true` its events from the first, or after `starting_after`, and those to come."""
    caller = caller_of(request)
    door = door_of(request)
    job = await _found(door, caller, response_id)
    query = request.query_params
    stream = query.get("stream", "false").lower()
    if stream not in ("true", "false"):
        raise InvalidRequest.at("?stream", "has to be true or false")
    text = query.get("starting_after")
    after = -1 if text is None else whole_number(text, "?starting_after", least=0, most=_BIGGEST)
    if stream == "false":
        return json_response(await _whole(door, caller, job))
    return _followed(request, door, caller, job, after=after, headers={}, again=True)


@router.delete(
    "/{response_id}", operation_id="deleteResponse", summary="Forget a response", **docs.RESPONSE_DELETE
)
async def delete(request: Request, response_id: ResponseId) -> Response:
    """Forget an ended response, with its job and all that was kept of it."""
    caller = caller_of(request)
    door = door_of(request)
    job = await _found(door, caller, response_id)
    await door.control.delete(caller, job.id)
    return json_response({"id": response_id, "object": "response", "deleted": True})


@router.post(
    "/{response_id}/cancel", operation_id="cancelResponse", summary="Stop a response", **docs.RESPONSE_CANCEL
)
async def cancel(request: Request, response_id: ResponseId) -> Response:
    """Stop a response's run, and give the response; one that has ended stays as it is."""
    caller = caller_of(request)
    door = door_of(request)
    job = await _found(door, caller, response_id)
    await optional_body_of(request, ResponseCancelRequest, door.options.max_openai_body_bytes)
    job = await door.control.cancel(caller, job.id)
    if not over(job):
        job = await door.control.wait(insider(caller), job.id, _CANCEL_SECONDS)
    return json_response(await _whole(door, insider(caller), job))


@router.get(
    "/{response_id}/input_items",
    operation_id="listInputItems",
    summary="List the input",
    **docs.RESPONSE_INPUT,
)
async def input_items(request: Request, response_id: ResponseId) -> Response:
    """List the messages of a response's input, the newest first unless `order=asc`; bytes of files are left out."""
    caller = caller_of(request)
    job = await _found(door_of(request), caller, response_id)
    query = request.query_params
    limit = whole_number(query.get("limit", "20"), "?limit", least=1, most=_MOST_LISTED)
    kept: list[dict[str, Any]] = (job.request or {}).get("input", [])
    items = [{"id": f"in_{job.id}_{place}", **item} for place, item in enumerate(kept)]
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
    page = items[:limit]
    return json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > len(page),
        }
    )


async def _found(door: Door, caller: Caller, given: str) -> Job:
    """Give the job of a response that the caller may see and that is kept; else raise `NotFound`."""
    match = _ID.fullmatch(given)
    caller.require("read")
    if match is not None:
        job = await door.control.get(caller, match[1])
        if is_response(job) and (job.request or {}).get("stored", True):
            return job
    raise NotFound("There is no such response.")


async def _whole(door: Door, own: Caller, job: Job) -> dict[str, Any]:
    """Give a response with all that there is of its output."""
    story = Story(job)
    after = 0
    while batch := await door.control.events(own, job.id, after, 500):
        for event in batch:
            story.take(event)
        after = batch[-1].seq
    status = status_of(job)
    if over(job):
        story.end(job, status)
    return response_json(job, status, story.output)


def _followed(
    request: Request,
    door: Door,
    own: Caller,
    job: Job,
    *,
    after: int,
    headers: dict[str, str],
    again: bool = False,
) -> Response:
    """Stream a response's events above a number; `again` is a look at it by somebody who did not ask for it."""
    background = again or bool((job.request or {}).get("background"))

    async def gone() -> None:
        if not background:
            await left(request, door, own, job.id)

    return Stream(
        _told(request, door, own, job, after, alone=background),
        welcome_of(request),
        patience=0.0 if background else openai_chat.PATIENCE_SECONDS,
        opening=b": following\n\n",
        keepalive=openai_chat.KEEPALIVE_SECONDS,
        headers=headers,
        left=gone,
    )


async def _told(
    request: Request, door: Door, own: Caller, job: Job, after: int, *, alone: bool
) -> AsyncIterator[Item]:
    story = Story(job)
    followed = cast("AsyncGenerator[Event | Live, None]", door.control.follow(own, job.id))
    with nullcontext() if alone else door.attending.at(job.id):
        async with aclosing(followed) as items:
            async for item in items:
                for event in story.take(item):
                    if event["sequence_number"] > after:
                        yield Piece(_bytes(event), opens=event["type"] not in _LIFE)
    job = await door.control.get(own, job.id)
    if not over(job):
        # The service is stopping. What goes on in its next life has no end yet; the client comes back for the rest.
        if not alone:
            code, detail = why_failed(job)
            error = {"type": "error", "code": code, "message": detail, "param": None}
            yield Ending(_bytes({**error, "sequence_number": story.length}), failure(request, job))
        return
    *rest, last = story.end(job, status_of(job))
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
        yield Piece(_bytes(last) + _DONE)
    else:
        yield Ending(_bytes(last) + _DONE, failure(request, job))


def _bytes(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: ".encode() + json_bytes(event) + b"\n\n"
