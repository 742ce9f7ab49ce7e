"""Responses found, begun and gone on with: each is one of its job's, by its number."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, NamedTuple, cast

from starlette.requests import Request

from steadyhand.api.openai.client_tool_results import UNKNOWN_CALL, Brought, job_of
from steadyhand.api.openai.continuation import after_answer, digest_of, going_on, not_found
from steadyhand.api.openai.input_messages import Spoken
from steadyhand.api.openai.kinds import is_response
from steadyhand.api.openai.models import resolved
from steadyhand.api.openai.responses.build_submission import later_of, submission_of
from steadyhand.api.openai.responses.input_items import (
    REFERENCE,
    Item,
    brought_in,
    items_of,
    kind_of,
    result_among,
    spoken_in,
)
from steadyhand.api.openai.responses.resource import Kept, kept_of, newest_of, over, place_of, with_later
from steadyhand.api.openai.responses.response_events import Story
from steadyhand.api.openai.start_run import Started, started
from steadyhand.api.schemas.requests import ResponseRequest
from steadyhand.api.transport.context import Door, insider
from steadyhand.control import Caller
from steadyhand.errors import InvalidRequest, NotFound
from steadyhand.events import Event, Live
from steadyhand.job import Job

MOST_REFERENCED = 200
"""To how many responses the items of one input may refer."""
_BATCH = 500


class Begun(NamedTuple):
    """A response under way, and the run that gives it."""

    run: Started
    kept: Kept
    talk: Sequence[Spoken] | None = None
    """All that was said up to the answer; null when the request brought the newest of it only."""


async def found(door: Door, caller: Caller, response_id: str) -> Kept:
    """Give a response that the caller may see and that is kept; else raise `NotFound`."""
    place = place_of(response_id)
    caller.require("read")
    if place is not None:
        kept = kept_of(await door.control.get(caller, place[0]), place[1])
        if kept is not None and kept.stored:
            return kept
    raise NotFound("There is no such response.")


async def told(door: Door, own: Caller, kept: Kept) -> Story:
    """Give the telling of all that there is of a response."""
    story = Story(kept)
    after = 0
    while not story.over and (batch := await door.control.events(own, kept.job.id, after, _BATCH)):
        for event in batch:
            story.take(event)
        after = batch[-1].seq
    if over(kept.job):
        story.end(kept.job)
    return story


async def told_whole(door: Door, own: Caller, kept: Kept) -> tuple[Job, Story]:
    """Wait for the end of a response, by calls for the client or of its job, and give both."""
    story = Story(kept)
    followed = cast("AsyncGenerator[Event | Live, None]", door.control.follow(own, kept.job.id))
    async with aclosing(followed) as items:
        async for item in items:
            story.take(item)
            if story.over:
                break
    job = await door.control.get(own, kept.job.id)
    if over(job):
        story.end(job)
    return job, story


async def begun(request: Request, door: Door, caller: Caller, asked: ResponseRequest, value: Any) -> Begun:
    """Begin what a request asks for: a run of its own, or the next response of one that waits for its results."""
    alias = await resolved(door, caller, asked.model)
    items = await with_referenced(door, caller, items_of(asked.input))
    brought = brought_in(items)
    if brought is not None and brought.results:
        return await _gone_on(door, insider(caller), asked, items, brought)
    submission = submission_of(asked, alias, items)
    talk = _talk(asked, items)
    if asked.previous_response_id is not None:
        before = await _before(door, insider(caller), asked.previous_response_id)
        submission = replace(submission, parent=before.job.id)
    else:
        own = insider(caller)
        submission = await going_on(request, door, own, submission, model=asked.model, spoken=talk or ())
    submission = await after_answer(door, insider(caller), submission, brought)
    run = await started(request, door, caller, submission, value)
    kept = kept_of(run.job)
    assert kept is not None  # noqa: S101  # it was asked for as one
    return Begun(run, kept, talk)


def _talk(asked: ResponseRequest, items: Sequence[Item]) -> Sequence[Spoken] | None:
    if asked.previous_response_id is not None:
        return None
    above = [Spoken("system", [{"type": "text", "text": asked.instructions}])] if asked.instructions else []
    return [*above, *spoken_in(items)]


async def note_talk(door: Door, story: Story, talk: Sequence[Spoken] | None) -> None:
    """Note all that was said, with what a completed response answered, so that its client may come back with it."""
    if talk is None:
        return
    kept = story.kept
    whole = digest_of(kept.asked["model"], [*talk, *spoken_in(story.output)])
    await door.control.note_conversation(kept.job.id, whole)


async def _before(door: Door, own: Caller, response_id: str) -> Kept:
    """Give the caller's response that another one is to go on with. Raises `InvalidRequest` when none can."""
    place = place_of(response_id)
    if place is None:
        raise not_found()
    try:
        job = await door.control.get(own, place[0])
    except NotFound as error:
        raise not_found() from error
    kept = kept_of(job, place[1])
    if kept is None or kept.asked.get("forgotten"):
        raise not_found()
    if kept != newest_of(job):
        why = "is not the last response of its run; only that one can be gone on with"
        raise InvalidRequest.at("/previous_response_id", why, code="previous_response_not_found")
    if not await door.control.has_session(job):
        why = "has left no session to go on with, or it is kept no more"
        raise InvalidRequest.at("/previous_response_id", why, code="previous_response_not_found")
    missing = sorted(await door.control.open_calls(own, job.id))
    if missing:
        raise InvalidRequest.at("/input", f"has no output of the call {missing[0]!r}", code=UNKNOWN_CALL)
    return kept


async def _gone_on(
    door: Door, own: Caller, asked: ResponseRequest, items: Sequence[Item], brought: Brought
) -> Begun:
    """Bring results to the run that waits for them; raises `InvalidRequest` (`unknown_call`)."""
    spoken_in(items)  # raises for what cannot be read, though the agent knows it already
    job = await job_of(door, own, brought, "input")
    if not is_response(job):
        raise InvalidRequest.at("/input", "has results for calls of no response", code=UNKNOWN_CALL)
    previous = asked.previous_response_id
    if previous is not None and (place_of(previous) or ("",))[0] != job.id:
        raise InvalidRequest.at(
            "/previous_response_id", "is not the response whose calls these are", code=UNKNOWN_CALL
        )
    results = dict(brought.results)
    for call_id in await door.control.open_calls(own, job.id) - results.keys():
        text = result_among(items, call_id)
        if text is not None:
            results[call_id] = text
    later = later_of(asked, items)

    def note(old: Job) -> Job:
        # Whoever asks for the rest in the background does not wait for it.
        on_interrupt = "resume" if asked.background else old.on_interrupt
        return replace(old, request=with_later(old, later), on_interrupt=on_interrupt)

    answered = await door.control.answer_calls(own, job.id, results, note)
    kept = kept_of(answered.job, answered.number)
    assert kept is not None  # noqa: S101  # it was noted with the answer
    return Begun(Started(answered.job, replayed=False), kept, _talk(asked, items))


async def with_referenced(door: Door, caller: Caller, items: Sequence[Item]) -> Sequence[Item]:
    """Give an input's items with what they refer to in place of the references.

    Raises `InvalidRequest` (`item_not_found`) for what is no item of a response of this key that is kept.
    """
    if not any(kind_of(item) == REFERENCE for item in items):
        return items
    known: dict[str, Sequence[Item]] = {}
    whole: list[Item] = []
    for place, item in enumerate(items):
        if kind_of(item) != REFERENCE:
            whole.append(item)
            continue
        item_id = item.get("id")
        mark = item_id.partition("_")[2].rpartition("_")[0] if isinstance(item_id, str) else ""
        if mark not in known:
            if len(known) >= MOST_REFERENCED:
                why = f"items of more than {MOST_REFERENCED} responses are referred to"
                raise InvalidRequest.at(f"/input/{place}/id", why)
            known[mark] = await _items_of(door, insider(caller), f"resp_{mark}")
        match = next((each for each in known[mark] if each["id"] == item_id), None)
        if match is None:
            raise InvalidRequest.at(
                f"/input/{place}/id", "is no item of a response of this key", code="item_not_found"
            )
        whole.append(match)
    return whole


async def _items_of(door: Door, own: Caller, response_id: str) -> Sequence[Item]:
    """Give what a response of the caller's own had as input and gave as output; nothing when there is no such one."""
    try:
        kept = await found(door, own, response_id)
    except NotFound:
        return ()
    if kept.job.api_key_id != own.key_id:
        return ()
    story = await told(door, own, kept)
    return [*input_of(kept), *story.output]


def input_of(kept: Kept) -> list[dict[str, Any]]:
    """Give the items that a response's request brought, each with an id."""
    given: Sequence[dict[str, Any]] = kept.asked.get("input", ())
    return [{"id": f"in_{kept.mark}_{place}", **item} for place, item in enumerate(given)]
