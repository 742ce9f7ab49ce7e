"""Chat completions (docs/http-api.md#openai-routes), for any client of the OpenAI API."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.openai import stream_timing
from steadyhand.api.openai.chat.chunks import DONE, Chunks, Shown
from steadyhand.api.openai.chat.completion import completion_json, usage_json
from steadyhand.api.openai.chat.rounds import (
    Round,
    completion_id,
    gone_on,
    paused_json,
    paused_or_ended,
    results_of,
)
from steadyhand.api.openai.continuation import after_answer, answered, digest_of, going_on, session_headers
from steadyhand.api.openai.input_messages import Spoken, joined, spoken_in_chat, taken_apart
from steadyhand.api.openai.models import resolved
from steadyhand.api.openai.output_spec import Wanted, chat_choice, chat_schema, chat_tools, wanted_of
from steadyhand.api.openai.run_failure import failure
from steadyhand.api.openai.start_run import left, started, unless_left
from steadyhand.api.openai.submission_fields import EFFORTS, metadata_of
from steadyhand.api.openapi import operations
from steadyhand.api.schemas.requests import ChatRequest
from steadyhand.api.transport.body import body_of
from steadyhand.api.transport.context import Alias, Door, caller_of, door_of, insider, welcome_of
from steadyhand.api.transport.errors import json_response, unsupported
from steadyhand.api.transport.route import DirectRoute
from steadyhand.api.transport.sse import Item, Piece, Stream
from steadyhand.control import Caller, Submission
from steadyhand.events import Event, Live
from steadyhand.job import State

router = APIRouter(tags=["openai"], route_class=DirectRoute)


@router.post(
    "/v1/chat/completions",
    operation_id="createChatCompletion",
    summary="Answer a conversation",
    **operations.CHAT,
)
async def chat(request: Request) -> Response:
    """Run the agent that the model's name means. Leaving cancels the run.

    The answer comes when the run has ended, or with `stream` as it is made; then what the agent says between its
    tool calls is part of it.
    """
    caller = caller_of(request)
    caller.require("submit")
    door = door_of(request)
    asked, value = await body_of(request, ChatRequest, door.options.max_openai_body_bytes, lenient=True)
    refuse_unbuilt(asked)
    alias = await resolved(door, caller, asked.model)
    wanted = wanted_of(
        chat_schema(asked.response_format),
        chat_tools(asked.tools or (), asked.functions or ()),
        chat_choice(asked.tool_choice, asked.function_call),
        *(("tools", "/function") if asked.tools or not asked.functions else ("functions", "")),
        parallel=asked.parallel_tool_calls is not False,
    )
    spoken = spoken_in_chat(asked.messages)
    given = results_of(asked.messages)
    if given is None or not given.results:
        submission = submission_of(asked, alias, wanted, spoken)
        submission = await going_on(
            request, door, insider(caller), submission, model=asked.model, spoken=spoken
        )
        submission = await after_answer(door, insider(caller), submission, given)
        at = Round(await started(request, door, caller, submission, value))
    else:
        at = await gone_on(door, insider(caller), given)
    usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
    shown = Shown(asked.model, wanted, usage, alias.reasoning)
    if asked.stream:
        return _streamed(request, door, caller, at, shown=shown, spoken=spoken)
    return await _whole(request, door, caller, at, shown=shown, spoken=spoken)


async def _whole(
    request: Request, door: Door, caller: Caller, at: Round, *, shown: Shown, spoken: Sequence[Spoken]
) -> Response:
    run = at.run
    waited = paused_or_ended(door, insider(caller), at)
    found = await unless_left(request, door, caller, run.job.id, waited)
    if found is None:
        return Response(status_code=499)  # nobody reads it
    job, paused, usage = found
    headers = run.headers() | session_headers(request, job)
    if paused is not None:
        return json_response(paused_json(job, shown.model, paused, at.after), headers=headers)
    if job.state is not State.COMPLETED:
        return failure(request, job, run.headers(retry=False))
    text = shown.wanted.text(job)
    await door.control.note_conversation(job.id, digest_of(shown.model, answered(spoken, text)))
    body = completion_json(job, shown.model, text, shown.wanted)
    body["id"], body["usage"] = completion_id(job, at.after), usage_json(usage)
    return json_response(body, headers=headers)


def submission_of(asked: ChatRequest, alias: Alias, wanted: Wanted, spoken: Sequence[Spoken]) -> Submission:
    """Give what the request asks for, in the words of the core."""
    conversation = taken_apart(spoken)
    effort = asked.reasoning_effort
    return Submission(
        prompt=conversation.prompt,
        agent=alias.agent,
        model=alias.model,
        metadata=metadata_of(asked.metadata, asked.user),
        output_schema=wanted.output_schema,
        effort=None if effort is None else EFFORTS.get(effort, effort),
        append_system_prompt=joined([conversation.system or "", wanted.hint or ""]) or None,
        history=conversation.history,
        tools=wanted.tools,
        one_call=wanted.one_call,
        content=conversation.content,
        # Nobody waits for it any more once the service has stopped.
        on_interrupt="fail",
        origin="openai",
    )


def refuse_unbuilt(asked: ChatRequest) -> None:
    """Raise `InvalidRequest` (`unsupported_parameter`) for what is not to be had, naming it."""
    if asked.n is not None and asked.n != 1:
        raise unsupported("n", "only one choice is made")
    if asked.logprobs or asked.top_logprobs:
        raise unsupported(
            "logprobs" if asked.logprobs else "top_logprobs", "agents have no log probabilities"
        )
    if asked.audio is not None or any(kind != "text" for kind in asked.modalities or ()):
        raise unsupported("audio" if asked.audio is not None else "modalities", "only text is answered")


def _streamed(
    request: Request, door: Door, caller: Caller, at: Round, *, shown: Shown, spoken: Sequence[Spoken]
) -> Response:
    run = at.run
    own, job_id = insider(caller), run.job.id
    chunks = Chunks(run.job, shown, at.after)

    async def pieces() -> AsyncIterator[Item]:
        with door.attending.at(job_id):
            followed = cast("AsyncGenerator[Event | Live, None]", door.control.follow(own, job_id))
            async with aclosing(followed) as items:
                async for item in items:
                    for piece in chunks.take(item):
                        yield piece
                    if chunks.over:
                        return
            job = await door.control.get(own, job_id)
            for last in chunks.end(job, failure(request, job, run.headers(retry=False))):
                if job.state is State.COMPLETED and isinstance(last, Piece) and last.data == DONE:
                    # Before the client can come back with it.
                    told = digest_of(shown.model, answered(spoken, chunks.content))
                    await door.control.note_conversation(job_id, told)
                yield last

    async def gone() -> None:
        if not chunks.over:  # it left with calls to make
            await left(request, door, caller, job_id)

    return Stream(
        pieces(),
        welcome_of(request),
        patience=stream_timing.OPEN_TIMEOUT_SECONDS,
        keepalive=stream_timing.KEEPALIVE_SECONDS,
        headers=run.headers() | session_headers(request, run.job),
        left=gone,
    )
