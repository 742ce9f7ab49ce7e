"""The rounds of a chat with tools of the client: each is one response, from one turn's calls to the next."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from steadyhand.api.openai.chat.completion import calls_json, usage_json
from steadyhand.api.openai.client_tool_results import UNKNOWN_CALL, Brought, Result, brought_by, job_of
from steadyhand.api.openai.input_messages import text_of
from steadyhand.api.openai.kinds import is_response
from steadyhand.api.openai.start_run import Started
from steadyhand.api.openai.usage_since import Spending
from steadyhand.api.schemas import openai_bodies
from steadyhand.api.schemas.requests import ChatMessage
from steadyhand.api.transport.context import Door
from steadyhand.control import Caller
from steadyhand.errors import InvalidRequest
from steadyhand.events import CallsWaiting, Event, Live, Message
from steadyhand.job import Job, Usage


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


def completion_id(job: Job, after: int) -> str:
    """Give the id of a response: each round of a job has its own."""
    return f"chatcmpl-{job.id}" + (f"-{after}" if after else "")


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


def paused_json(job: Job, model: str, paused: Paused, after: int) -> openai_bodies.Completion:
    """Give a round that ended with calls as a chat completion."""
    choice: openai_bodies.Choice = {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": paused.text or None,
            "refusal": None,
            "tool_calls": calls_json(paused.calls),
        },
        "logprobs": None,
        "finish_reason": "tool_calls",
    }
    return {
        "id": completion_id(job, after),
        "object": "chat.completion",
        "created": int(job.created_at.timestamp()),
        "model": model,
        "choices": [choice],
        "usage": usage_json(paused.usage),
    }
