"""The rounds of a chat with tools of the client: each is one response, from one turn's calls to the next."""

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, cast

from steadyhand.api.openai.chat.completion import calls_json, usage_json
from steadyhand.api.openai.input_messages import text_of
from steadyhand.api.openai.responses.resource import is_response
from steadyhand.api.openai.start_run import Started
from steadyhand.api.schemas.requests import ChatMessage
from steadyhand.api.transport.context import Door
from steadyhand.control import Caller
from steadyhand.errors import InvalidRequest, NotFound
from steadyhand.events import CallsWaiting, Event, Live, Message, UsageReported
from steadyhand.job import Job, Usage

UNKNOWN_CALL = "unknown_call"
_ID = re.compile(r"call_([0-9a-f]{12})_[0-9]+_[0-9]+")
_OF_ANSWER = re.compile(r"call_([0-9a-f]{12})(?:_[0-9]+)?")
"""The id of a call that was itself the answer of a run, so that no process waits for what comes of it."""


@dataclass(frozen=True, slots=True)
class Round:
    """A response is about what happens in a run after its event `after`."""

    run: Started
    after: int = 0


@dataclass(frozen=True, slots=True)
class Paused:
    """A round that ended with calls: what was said before them, the calls, and what was used."""

    text: str
    calls: Sequence[Any]
    usage: Usage


class Spending:
    """Tells what of a job's tokens was used after one of its events, which are all taken in order."""

    def __init__(self, after: int) -> None:
        self.after = after
        self._runs: dict[int, Usage] = {}
        self._before = Usage()

    def take(self, event: Event) -> None:
        """Take an event."""
        if event.type == UsageReported.type:
            self._runs[event.run] = Usage(**{each.name: event.data[each.name] for each in fields(Usage)})
        if event.seq <= self.after:
            self._before = self._all()

    def begin(self, event: Event) -> None:
        """Tell from this event on, which was just taken, of what is used after it."""
        self.after, self._before = event.seq, self._all()

    def _all(self) -> Usage:
        total = Usage()
        for usage in self._runs.values():
            total = total.plus(usage)
        return total

    def since(self) -> Usage:
        """Give what was used after that event so far."""
        return _less(self._all(), self._before)

    def rest(self, job: Job) -> Usage:
        """Give what was used after that event, of an ended job."""
        return _less(job.usage, self._before)


def _less(usage: Usage, before: Usage) -> Usage:
    left = {
        each.name: max(0, getattr(usage, each.name) - getattr(before, each.name)) for each in fields(Usage)
    }
    return Usage(**left)


def completion_id(job: Job, after: int) -> str:
    """Give the id of a response: each round of a job has its own."""
    return f"chatcmpl-{job.id}" + (f"-{after}" if after else "")


class Result(NamedTuple):
    """What came of one call; `where` is the place of its id in the request."""

    where: str
    call_id: str
    text: str


class Brought(NamedTuple):
    """What a client brings of calls of one job; without `results` they were the answer of a run that has ended."""

    job_id: str
    results: dict[str, str]


def brought_by(given: Sequence[Result], where: str) -> Brought | None:
    """Give results by the calls' ids; null without any. `where` is the place of all of them.

    Raises `InvalidRequest` for ids that are not of one job's calls.
    """
    results: dict[str, str] = {}
    jobs: set[str] = set()
    ended: set[str] = set()
    for result in given:
        match = _OF_ANSWER.fullmatch(result.call_id)
        if match is not None:
            ended.add(match[1])
            continue
        match = _ID.fullmatch(result.call_id)
        if match is None:
            raise InvalidRequest.at(f"/{result.where}", "is the id of no call of ours", code=UNKNOWN_CALL)
        if result.call_id in results:
            raise InvalidRequest.at(f"/{result.where}", "is there twice", code=UNKNOWN_CALL)
        results[result.call_id] = result.text
        jobs.add(match[1])
    if len(jobs | ended) > 1:
        raise InvalidRequest.at(f"/{where}", "has results for the calls of two runs", code=UNKNOWN_CALL)
    return Brought((jobs | ended).pop(), results) if given else None


def results_of(messages: Sequence[ChatMessage]) -> Brought | None:
    """Give the results that the messages end with, if they do. Raises `InvalidRequest` as `brought_by`."""
    given: list[Result] = []
    for place in range(len(messages) - 1, -1, -1):
        message = messages[place]
        if message.role != "tool":
            break
        where = f"messages/{place}"
        text = text_of(message.content, f"{where}/content")
        given.append(Result(f"{where}/tool_call_id", message.tool_call_id or "", text))
    return brought_by(given, "messages")


async def gone_on(door: Door, own: Caller, brought: Brought) -> Round:
    """Go on with the run that waits for these results; raises `InvalidRequest` (`unknown_call`)."""
    job = await job_of(door, own, brought, "messages")
    if is_response(job):
        raise InvalidRequest.at(
            "/messages", "has results for calls of a response: bring them there", code=UNKNOWN_CALL
        )
    given = await door.control.answer_calls(own, brought.job_id, brought.results)
    return Round(Started(given.job, replayed=False), given.after)


async def job_of(door: Door, own: Caller, brought: Brought, where: str) -> Job:
    """Give the caller's own job whose calls these are of; raises `InvalidRequest` (`unknown_call`)."""
    try:
        return await door.control.get(replace(own, scopes=frozenset({"read"})), brought.job_id)
    except NotFound as error:
        raise InvalidRequest.at(
            f"/{where}", "has results for calls of no run of yours", code=UNKNOWN_CALL
        ) from error


async def paused_or_ended(door: Door, own: Caller, at: Round) -> tuple[Job, Paused | None, Usage]:
    """Wait for the end of a round: calls that wait, or the end of the job, with what the round used."""
    spending = Spending(at.after)
    texts: list[str] = []
    followed = cast("AsyncGenerator[Event | Live, None]", door.control.follow(own, at.run.job.id))
    paused = None
    async with aclosing(followed) as items:
        async for item in items:
            if isinstance(item, Live):
                continue
            spending.take(item)
            if item.seq <= at.after:
                continue
            if item.type == Message.type and item.data["role"] == "assistant":
                texts.append(item.data["text"])
            elif item.type == CallsWaiting.type:
                paused = Paused("\n\n".join(texts), item.data["calls"], spending.since())
                break
    job = await door.control.get(own, at.run.job.id)
    return job, paused, spending.rest(job) if paused is None else paused.usage


def paused_json(job: Job, model: str, paused: Paused, after: int) -> dict[str, Any]:
    """Give a round that ended with calls as a chat completion."""
    message: dict[str, Any] = {"role": "assistant", "content": paused.text or None, "refusal": None}
    message["tool_calls"] = calls_json(paused.calls)
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}
    return {
        "id": completion_id(job, after),
        "object": "chat.completion",
        "created": int(job.created_at.timestamp()),
        "model": model,
        "choices": [choice],
        "usage": usage_json(paused.usage),
    }
