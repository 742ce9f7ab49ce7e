"""Chat completions (contract.md, C), for any client of the OpenAI API."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api import docs
from steadyhand.api.body import body_of
from steadyhand.api.classic import one_line
from steadyhand.api.door import Door, caller_of, door_of, insider
from steadyhand.api.models import ChatMessage, ChatRequest
from steadyhand.api.offers import resolved
from steadyhand.api.problems import json_bytes, json_response, problem
from steadyhand.control import Caller, Submission
from steadyhand.errors import InvalidRequest
from steadyhand.job import Job, State, Turn

router = APIRouter(tags=["openai"])

_EFFORTS = {"none": "low", "minimal": "low"}
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


class Conversation(NamedTuple):
    """A list of messages, taken apart: what stands above all, the earlier turns, and what is asked now."""

    system: str | None
    history: tuple[Turn, ...]
    prompt: str


def unsupported(parameter: str, why: str) -> InvalidRequest:
    """Refuse what the OpenAI API has and this route does not."""
    return InvalidRequest.at(f"/{parameter}", why, code="unsupported_parameter")


@router.post(
    "/v1/chat/completions", operation_id="createChatCompletion", summary="Answer a conversation", **docs.CHAT
)
async def chat(request: Request) -> Response:
    """Run the agent that the model's name means, and answer when it has ended. Leaving cancels the run."""
    caller = caller_of(request)
    caller.require("submit")
    door = door_of(request)
    asked, _ = await body_of(request, ChatRequest, door.options.max_openai_body_bytes, lenient=True)
    refuse_unbuilt(asked)
    alias = await resolved(door, caller, asked.model)
    conversation = taken_apart(asked.messages)
    schema = schema_of(asked.response_format)
    effort = asked.reasoning_effort
    metadata = dict(asked.metadata or {})
    if asked.user is not None:
        metadata.setdefault("user", asked.user)
    added = await door.control.submit(
        caller,
        Submission(
            prompt=conversation.prompt,
            agent=alias.agent,
            model=alias.model,
            metadata=metadata or None,
            output_schema=schema,
            effort=None if effort is None else _EFFORTS.get(effort, effort),
            append_system_prompt=conversation.system,
            history=conversation.history,
            origin="openai",
        ),
    )
    job = await ended_or_left(request, door, caller, added.job.id)
    if job is None:
        return Response(status_code=499)  # nobody reads it
    if job.state is not State.COMPLETED:
        return failure(request, job)
    text = job.answer or ""
    if schema is not None and job.structured_output is not None:
        text = json_bytes(job.structured_output).decode("utf-8")
    return json_response(completion_json(job, asked.model, text), headers=job_headers(job))


def refuse_unbuilt(asked: ChatRequest) -> None:
    """Raise `InvalidRequest` (`unsupported_parameter`) for what is not to be had, naming it."""
    if asked.stream:
        raise unsupported("stream", "streaming is not built yet")
    if asked.n is not None and asked.n != 1:
        raise unsupported("n", "only one choice is made")
    if asked.logprobs or asked.top_logprobs:
        raise unsupported(
            "logprobs" if asked.logprobs else "top_logprobs", "agents have no log probabilities"
        )
    if asked.audio is not None or any(kind != "text" for kind in asked.modalities or ()):
        raise unsupported("audio" if asked.audio is not None else "modalities", "only text is answered")
    for name, given in (("tools", asked.tools), ("functions", asked.functions)):
        if given:
            raise unsupported(name, "tools of the client are not built yet; the agent has its own")
    for name, choice in (("tool_choice", asked.tool_choice), ("function_call", asked.function_call)):
        if choice not in (None, "none", "auto"):
            raise unsupported(name, "tools of the client are not built yet; the agent has its own")


def taken_apart(messages: Sequence[ChatMessage]) -> Conversation:
    """Take a conversation apart. The last messages have to be the user's: they are what is asked."""
    system: list[str] = []
    turns: list[Turn] = []
    for place, message in enumerate(messages):
        where = f"messages/{place}"
        if message.role in ("tool", "function") or message.tool_calls:
            raise unsupported(where, "tool calls of the client are not built yet")
        text = text_of(message.content, f"{where}/content")
        if message.role in ("system", "developer"):
            system.append(text)
        elif message.role == "user":
            turns.append(Turn("user", text))
        elif said := text or message.refusal:
            turns.append(Turn("assistant", said))
    if not turns or turns[-1].role != "user":
        raise unsupported("messages", "the last message has to be the user's; an answer is not continued")
    asked: list[str] = []
    while turns and turns[-1].role == "user":
        asked.insert(0, str(turns.pop().content))
    prompt = "\n\n".join(text for text in asked if text.strip())
    if not prompt:
        raise InvalidRequest.at("/messages", "the last message is empty")
    kept = tuple(turn for turn in turns if str(turn.content).strip())
    return Conversation("\n\n".join(text for text in system if text.strip()) or None, kept, prompt)


def text_of(content: str | Sequence[Mapping[str, Any]] | None, where: str) -> str:
    """Give a message's text; raises `InvalidRequest` for parts that are not text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for place, part in enumerate(content):
        kind = part.get("type")
        text = part.get("refusal" if kind == "refusal" else "text")
        if kind not in ("text", "refusal"):
            raise unsupported(f"{where}/{place}", "only text parts are built yet")
        if not isinstance(text, str):
            raise InvalidRequest.at(f"/{where}/{place}", "has no text")
        texts.append(text)
    return "\n".join(texts)


def schema_of(response_format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Give the JSON Schema that the answer has to fit; null when any text will do."""
    if response_format is None:
        return None
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return dict(_ANY_OBJECT)
    if kind != "json_schema":
        raise unsupported("response_format/type", "has to be text, json_object or json_schema")
    named = response_format.get("json_schema")
    schema = named.get("schema", _ANY_OBJECT) if isinstance(named, Mapping) else None
    if not isinstance(schema, Mapping):
        raise InvalidRequest.at("/response_format/json_schema/schema", "has to be a JSON Schema")
    return dict(schema)


async def ended_or_left(request: Request, door: Door, caller: Caller, job_id: str) -> Job | None:
    """Wait for a job's end (its own deadline is the bound); when the client leaves, cancel it and give null."""
    own = insider(caller)
    async with asyncio.TaskGroup() as group:
        wait = group.create_task(door.control.wait(own, job_id, math.inf))
        ear = group.create_task(_cancel_when_left(request, wait))
        wait.add_done_callback(lambda _: ear.cancel())
    if wait.cancelled():
        await door.control.cancel(own, job_id)
        return None
    return wait.result()


async def _cancel_when_left(request: Request, wait: asyncio.Task[Job]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    wait.cancel()


def job_headers(job: Job, *, retry: bool = True) -> dict[str, str]:
    """Give the headers that name the job; without `retry` a client's library is told not to ask again."""
    headers = {"x-steadyhand-job-id": job.id}
    if not retry:
        headers["x-should-retry"] = "false"
    return headers


def failure(request: Request, job: Job) -> Response:
    """Answer for a run that did not complete; a client that asked again by itself would run it again."""
    headers = job_headers(job, retry=False)
    if not job.state.ended:
        detail = "The service is stopping; the job can be looked up later."
        return problem(request.scope, 503, "draining", detail, headers=headers)
    detail = one_line(job.error.message if job.error else f"The job ended as {job.state}.")
    return problem(request.scope, 503, "execution_failed", detail, headers=headers)


def completion_json(job: Job, model: str, text: str) -> dict[str, Any]:
    """Give an ended job as a chat completion; `model` is the name that was asked for."""
    usage = job.usage
    prompt = usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens
    return {
        "id": f"chatcmpl-{job.id}",
        "object": "chat.completion",
        "created": int(job.created_at.timestamp()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": usage.output_tokens,
            "total_tokens": prompt + usage.output_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cache_read_input_tokens},
        },
    }
