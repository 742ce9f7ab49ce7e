"""Find, start and continue responses: each is one of its job's responses, by its number."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, NamedTuple

from starlette.requests import Request

from steadyhand.api.openai.client_tool_results import UNKNOWN_CALL, ToolResults, get_calling_job
from steadyhand.api.openai.continuation import (
    conversation_digest,
    previous_response_not_found,
    with_calling_session,
    with_session,
)
from steadyhand.api.openai.input_messages import ConversationMessage
from steadyhand.api.openai.models import resolve_model
from steadyhand.api.openai.request_document import parse_document
from steadyhand.api.openai.responses.build_submission import build_submission, later_request
from steadyhand.api.openai.responses.input_items import (
    ITEM_REFERENCE,
    InputItem,
    find_tool_result,
    item_type,
    normalize_input,
    parse_input_items,
    tool_results_from_items,
)
from steadyhand.api.openai.responses.resource import (
    AppendRequest,
    StoredResponse,
    get_stored_response,
    latest_response,
    parse_response_id,
)
from steadyhand.api.openai.responses.response_events import ResponseEvents
from steadyhand.api.openai.start_run import StartedRun, start_run
from steadyhand.api.schemas.openai_requests import ResponseRequest
from steadyhand.api.transport.context import ApiContext, as_job_owner
from steadyhand.control import Caller
from steadyhand.errors import InvalidRequest, NotFound
from steadyhand.job import Job

MAX_REFERENCED_RESPONSES = 200
"""The most responses that the items of one input may refer to."""
_BATCH_SIZE = 500


class StartedResponse(NamedTuple):
    """A response in progress, and its run."""

    run: StartedRun
    stored: StoredResponse
    messages: Sequence[ConversationMessage] | None = None
    """All messages up to the answer; None if the request had only the newest of them."""


async def get_response(context: ApiContext, caller: Caller, response_id: str) -> StoredResponse:
    """Return a stored response that the caller may see; else raise `NotFound`."""
    parsed_id = parse_response_id(response_id)
    caller.require_scope("read")
    if parsed_id is not None:
        stored = get_stored_response(
            (await context.control.get(caller, parsed_id[0])).as_answered, parsed_id[1]
        )
        if stored is not None and stored.is_retrievable:
            return stored
    raise NotFound("There is no such response.")


async def replay_events(context: ApiContext, owner: Caller, stored: StoredResponse) -> ResponseEvents:
    """Return a response's events, built again from all stored events."""
    response_events = ResponseEvents(stored, context.tool_names)
    after = 0
    while not response_events.ended_with_calls and (
        batch := await context.control.list_events(owner, stored.job.id, after, _BATCH_SIZE)
    ):
        for event in batch:
            response_events.feed(event)
        after = batch[-1].seq
    if stored.job.is_final:
        response_events.finish(stored.job)
    return response_events


async def wait_for_response(
    context: ApiContext, owner: Caller, stored: StoredResponse
) -> tuple[Job, ResponseEvents]:
    """Wait for a response's end, by calls for the client or by its job's end; return the job and the events."""
    response_events = ResponseEvents(stored, context.tool_names)
    async with aclosing(context.control.follow(owner, stored.job.id)) as events:
        async for event in events:
            response_events.feed(event)
            if response_events.ended_with_calls:
                break
    job = (await context.control.get(owner, stored.job.id)).as_answered
    if job.is_final:
        response_events.finish(job)
    return job, response_events


async def start_response(
    request: Request, context: ApiContext, caller: Caller, body: ResponseRequest, json_body: Any
) -> StartedResponse:
    """Start the run of a request, or the next response of a run that waits for the results in it."""
    alias = await resolve_model(context, caller, body.model)
    items = await resolve_references(context, caller, normalize_input(body.input))
    tool_results = tool_results_from_items(items)
    if tool_results is not None and tool_results.results:
        return await _resume_with_results(context, as_job_owner(caller), body, items, tool_results)
    submission = build_submission(body, alias, items)
    messages = _full_conversation(body, items)
    if body.previous_response_id is not None:
        previous_response = await _get_previous_response(
            context, as_job_owner(caller), body.previous_response_id
        )
        previous_job = previous_response.job
        submission = replace(submission, parent=previous_job.id, parent_job=previous_job)
    else:
        owner = as_job_owner(caller)
        submission = await with_session(
            request, context, owner, submission, model=body.model, messages=messages or ()
        )
    submission = await with_calling_session(context, as_job_owner(caller), submission, tool_results)
    run = await start_run(request, context, caller, submission, json_body)
    stored = get_stored_response(run.job)
    assert stored is not None  # noqa: S101  # it was asked for as one
    return StartedResponse(run, stored, messages)


def _full_conversation(
    body: ResponseRequest, items: Sequence[InputItem]
) -> Sequence[ConversationMessage] | None:
    if body.previous_response_id is not None:
        return None
    instructions = (
        [ConversationMessage("system", [{"type": "text", "text": body.instructions}])]
        if body.instructions
        else []
    )
    return [*instructions, *parse_input_items(items)]


async def save_conversation(
    context: ApiContext, response_events: ResponseEvents, messages: Sequence[ConversationMessage] | None
) -> None:
    """Store the digest of all messages and the answer, so that the client can continue by sending them again."""
    if messages is None:
        return
    stored = response_events.stored
    digest = conversation_digest(
        stored.request["model"], [*messages, *parse_input_items(response_events.output)]
    )
    await context.control.save_conversation(stored.job.id, digest)


async def _get_previous_response(context: ApiContext, owner: Caller, response_id: str) -> StoredResponse:
    """Return the caller's response that the new one continues. Raise `InvalidRequest` if it cannot be continued."""
    parsed_id = parse_response_id(response_id)
    if parsed_id is None:
        raise previous_response_not_found()
    try:
        job = await context.control.get(owner, parsed_id[0])
    except NotFound as error:
        raise previous_response_not_found() from error
    stored = get_stored_response(job, parsed_id[1])
    if stored is None or stored.request.get("forgotten"):
        raise previous_response_not_found()
    if stored != latest_response(job):
        reason = "is not the last response of its run; only that one can be gone on with"
        raise InvalidRequest.at("/previous_response_id", reason, code="previous_response_not_found")
    if not await context.control.has_session(job):
        reason = "has left no session to go on with, or it is kept no more"
        raise InvalidRequest.at("/previous_response_id", reason, code="previous_response_not_found")
    unanswered = sorted(await context.control.open_tool_calls(owner, job.id))
    if unanswered:
        raise InvalidRequest.at("/input", f"has no output of the call {unanswered[0]!r}", code=UNKNOWN_CALL)
    return stored


async def _resume_with_results(
    context: ApiContext,
    owner: Caller,
    body: ResponseRequest,
    items: Sequence[InputItem],
    tool_results: ToolResults,
) -> StartedResponse:
    """Add results to the run that waits for them; raise `InvalidRequest` (`unknown_call`)."""
    parse_input_items(items)  # raises for what cannot be read, though the agent knows it already
    job = await get_calling_job(context, owner, tool_results, "input")
    if parse_document(job) is None:
        raise InvalidRequest.at("/input", "has results for calls of no response", code=UNKNOWN_CALL)
    previous_id = body.previous_response_id
    if previous_id is not None and (parse_response_id(previous_id) or ("",))[0] != job.id:
        raise InvalidRequest.at(
            "/previous_response_id", "is not the response whose calls these are", code=UNKNOWN_CALL
        )
    results = dict(tool_results.results)
    for call_id in await context.control.open_tool_calls(owner, job.id) - results.keys():
        output = find_tool_result(items, call_id)
        if output is not None:
            results[call_id] = output
    update = AppendRequest(later_request(body, items), in_background=bool(body.background))
    submitted = await context.control.submit_tool_results(owner, job.id, results, update)
    stored = get_stored_response(submitted.job, submitted.number)
    assert stored is not None  # noqa: S101  # it was noted with the answer
    return StartedResponse(StartedRun(submitted.job, replayed=False), stored, _full_conversation(body, items))


async def resolve_references(
    context: ApiContext, caller: Caller, items: Sequence[InputItem]
) -> Sequence[InputItem]:
    """Return an input's items with each reference replaced by the item that it refers to.

    Raise `InvalidRequest` (`item_not_found`) if it is not an item of a stored response of this key.
    """
    if not any(item_type(item) == ITEM_REFERENCE for item in items):
        return items
    items_by_response: dict[str, Sequence[InputItem]] = {}
    resolved: list[InputItem] = []
    for index, item in enumerate(items):
        if item_type(item) != ITEM_REFERENCE:
            resolved.append(item)
            continue
        item_id = item.get("id")
        id_suffix = item_id.partition("_")[2].rpartition("_")[0] if isinstance(item_id, str) else ""
        if id_suffix not in items_by_response:
            if len(items_by_response) >= MAX_REFERENCED_RESPONSES:
                reason = f"items of more than {MAX_REFERENCED_RESPONSES} responses are referred to"
                raise InvalidRequest.at(f"/input/{index}/id", reason)
            items_by_response[id_suffix] = await _response_items(
                context, as_job_owner(caller), f"resp_{id_suffix}"
            )
        referenced = next(
            (candidate for candidate in items_by_response[id_suffix] if candidate["id"] == item_id), None
        )
        if referenced is None:
            raise InvalidRequest.at(
                f"/input/{index}/id", "is no item of a response of this key", code="item_not_found"
            )
        resolved.append(referenced)
    return resolved


async def _response_items(context: ApiContext, owner: Caller, response_id: str) -> Sequence[InputItem]:
    """Return the input and output items of a response of the caller; empty if there is no such response."""
    try:
        stored = await get_response(context, owner, response_id)
    except NotFound:
        return ()
    if stored.job.api_key_id != owner.key_id:
        return ()
    response_events = await replay_events(context, owner, stored)
    return [*stored_input_items(stored), *response_events.output]


def stored_input_items(stored: StoredResponse) -> list[dict[str, Any]]:
    """Return the items of a response's request, each with an id."""
    items = stored.request.get("input", ())
    return [{"id": f"in_{stored.id_suffix}_{index}", **item} for index, item in enumerate(items)]
