"""The rounds of a chat with tools of the client: each is one response, from one turn's calls to the next."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from steadyhand.api.openai.chat.reasoning import ReasoningText
from steadyhand.api.openai.client_tool_results import (
    UNKNOWN_CALL,
    ToolResult,
    ToolResults,
    get_calling_job,
    group_tool_results,
)
from steadyhand.api.openai.input_messages import parse_text_content
from steadyhand.api.openai.request_document import is_response
from steadyhand.api.openai.start_run import StartedRun
from steadyhand.api.openai.usage_since import UsageSince
from steadyhand.api.schemas.openai_requests import ChatMessage
from steadyhand.api.transport.context import ApiContext
from steadyhand.control import Caller
from steadyhand.errors import InvalidRequest
from steadyhand.events import LiveText, Message, ToolCallsRequested
from steadyhand.job import Job, Usage


@dataclass(frozen=True, slots=True)
class ToolRound:
    """One round of a job: the part of its run after the event `after`."""

    run: StartedRun
    after: int = 0


@dataclass(frozen=True, slots=True)
class PausedRound:
    """A round that ended with calls: the text before them, the calls, and the usage."""

    text: str
    calls: Sequence[Any]
    usage: Usage


def tool_results_from_messages(messages: Sequence[ChatMessage]) -> ToolResults | None:
    """Return the results at the end of the messages, if any. Raise `InvalidRequest` as `group_tool_results`."""
    parsed: list[ToolResult] = []
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if message.role != "tool":
            break
        location = f"messages/{index}"
        text = parse_text_content(message.content, f"{location}/content")
        parsed.append(ToolResult(f"{location}/tool_call_id", message.tool_call_id or "", text))
    return group_tool_results(parsed, "messages")


async def resume_with_results(context: ApiContext, owner: Caller, tool_results: ToolResults) -> ToolRound:
    """Resume the run that waits for these results; raise `InvalidRequest` (`unknown_call`)."""
    job = await get_calling_job(context, owner, tool_results, "messages")
    if is_response(job):
        raise InvalidRequest.at(
            "/messages", "has results for calls of a response: bring them there", code=UNKNOWN_CALL
        )
    answered = await context.control.submit_tool_results(owner, tool_results.job_id, tool_results.results)
    return ToolRound(StartedRun(answered.job, replayed=False), answered.last_event)


async def wait_for_round(
    context: ApiContext, owner: Caller, tool_round: ToolRound, reasoning: ReasoningText
) -> tuple[Job, PausedRound | None, Usage]:
    """Wait for the end of a round, by calls or by the end of the job; return it with the usage of the round.

    Its thinking and its tools are added to `reasoning`.
    """
    usage = UsageSince(tool_round.after)
    texts: list[str] = []
    paused = None
    async with aclosing(context.control.follow(owner, tool_round.run.job.id)) as events:
        async for event in events:
            if isinstance(event, LiveText):
                continue
            usage.feed(event)
            if event.seq <= tool_round.after:
                continue
            reasoning.add_event(event)
            if event.type == Message.type and event.data["role"] == "assistant":
                texts.append(event.data["text"])
            elif event.type == ToolCallsRequested.type:
                paused = PausedRound("\n\n".join(texts), event.data["calls"], usage.so_far())
                break
    job = (await context.control.get(owner, tool_round.run.job.id)).as_answered
    return job, paused, usage.final(job) if paused is None else paused.usage
