"""Chat completions (docs/http-api.md#openai-routes), for any client of the OpenAI API."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.openai import stream_timing
from steadyhand.api.openai.chat.chunks import DONE_FRAME, ChatOptions, ChunkBuilder
from steadyhand.api.openai.chat.completion import (
    completion_json,
    final_finish_reason,
    final_message_json,
    message_json,
    pending_calls_json,
)
from steadyhand.api.openai.chat.reasoning import ReasoningText
from steadyhand.api.openai.chat.rounds import (
    ToolRound,
    resume_with_results,
    tool_results_from_messages,
    wait_for_round,
)
from steadyhand.api.openai.client_tools import (
    is_own_tool,
    parse_chat_tools,
    passed_over_headers,
    resolve_choice,
)
from steadyhand.api.openai.continuation import (
    conversation_digest,
    session_headers,
    with_answer,
    with_calling_session,
    with_session,
)
from steadyhand.api.openai.input_messages import (
    ConversationMessage,
    parse_chat_messages,
    split_conversation,
)
from steadyhand.api.openai.models import resolve_model
from steadyhand.api.openai.output_spec import (
    OutputSpec,
    build_output_spec,
    parse_chat_tool_choice,
    parse_response_format,
)
from steadyhand.api.openai.run_failure import failure_response, is_answered
from steadyhand.api.openai.start_run import cancel_abandoned_run, start_run, wait_unless_disconnected
from steadyhand.api.openai.submission_fields import build_spec
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import openai_bodies
from steadyhand.api.schemas.openai_requests import ChatRequest
from steadyhand.api.schemas.route_table import RouteTable
from steadyhand.api.transport.body import parse_body
from steadyhand.api.transport.context import (
    ApiContext,
    ModelAlias,
    as_job_owner,
    authorization_check,
    get_caller,
    get_context,
)
from steadyhand.api.transport.errors import json_response, unsupported_parameter
from steadyhand.api.transport.sse import EventStreamResponse, Frame, joined_frame
from steadyhand.control import Caller, Submission
from steadyhand.job import State

router = RouteTable(tags=["openai"])


@router.post(
    "/v1/chat/completions",
    operation_id="createChatCompletion",
    summary="Answer a conversation",
    **operations.CHAT,
)
async def create_completion(request: Request) -> Response:
    """Run the agent that the model's name stands for. A disconnect of the client cancels the run.

    The response is sent when the run has ended, or with `stream` as the run proceeds; then text of the agent between
    its
    tool calls is part of it.
    """
    caller = get_caller(request)
    caller.require_scope("submit")
    context = get_context(request)
    body, json_body = await parse_body(
        request, ChatRequest, context.options.max_openai_body_bytes, lenient=True
    )
    reject_unsupported(body)
    alias = await resolve_model(context, caller, body.model)
    tools = parse_chat_tools(body.tools or (), body.functions or ())
    output_spec = build_output_spec(
        parse_response_format(body.response_format),
        tools.functions,
        resolve_choice(parse_chat_tool_choice(body.tool_choice, body.function_call), tools),
        "tools" if body.tools or not body.functions else "functions",
        parallel=body.parallel_tool_calls is not False,
    )
    messages = parse_chat_messages(body.messages)
    tool_results = tool_results_from_messages(body.messages)
    if tool_results is None or not tool_results.results:
        submission = build_submission(body, alias, output_spec, messages)
        submission = await with_session(
            request, context, as_job_owner(caller), submission, model=body.model, messages=messages
        )
        submission = await with_calling_session(context, as_job_owner(caller), submission, tool_results)
        tool_round = ToolRound(await start_run(request, context, caller, submission, json_body))
    else:
        tool_round = await resume_with_results(context, as_job_owner(caller), tool_results)
    include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    is_own = partial(is_own_tool, tool_round.run.job.spec, context.tool_names)
    options = ChatOptions(body.model, output_spec, include_usage, ReasoningText(alias.reasoning, is_own))
    if body.stream:
        response = _stream(request, context, caller, tool_round, options=options, messages=messages)
    else:
        response = await _complete(request, context, caller, tool_round, options=options, messages=messages)
    response.headers.update(passed_over_headers(body.tools))
    return response


async def _complete(
    request: Request,
    context: ApiContext,
    caller: Caller,
    tool_round: ToolRound,
    *,
    options: ChatOptions,
    messages: Sequence[ConversationMessage],
) -> Response:
    run = tool_round.run
    waiter = wait_for_round(context, as_job_owner(caller), tool_round, options.reasoning)
    finished = await wait_unless_disconnected(request, context, caller, run.job.id, waiter)
    if finished is None:
        return Response(status_code=499)  # nobody reads it
    job, paused, usage = finished
    if paused is not None:
        calls = pending_calls_json(paused.calls)
        message = message_json(paused.text or None, calls, reasoning=options.reasoning.text)
        reason: openai_bodies.FinishReason = "tool_calls"
    elif is_answered(job):
        text = options.output_spec.answer_text(job)
        if job.state is State.COMPLETED:
            digest = conversation_digest(options.model, with_answer(messages, text))
            await context.control.save_conversation(job.id, digest)
        message = final_message_json(job, text, options.output_spec, options.reasoning.text)
        reason = final_finish_reason(job, options.output_spec)
    else:
        return failure_response(request, job, run.headers(retry=False))
    completion = completion_json(job, options.model, message, reason, usage=usage, after=tool_round.after)
    return json_response(completion, headers=run.headers() | session_headers(request, job))


def build_submission(
    body: ChatRequest, alias: ModelAlias, output_spec: OutputSpec, messages: Sequence[ConversationMessage]
) -> Submission:
    """Build the submission for a request."""
    conversation = split_conversation(messages)
    spec = build_spec(body, conversation, output_spec, model=alias.model, effort=body.reasoning_effort)
    # Nobody waits for it any more once the service has stopped.
    return Submission(spec, agent=alias.agent, on_interrupt="fail")


def reject_unsupported(body: ChatRequest) -> None:
    """Raise `InvalidRequest` (`unsupported_parameter`) with the name of a parameter that is not supported."""
    if body.n is not None and body.n != 1:
        raise unsupported_parameter("n", "only one choice is made")
    if body.logprobs or body.top_logprobs:
        raise unsupported_parameter(
            "logprobs" if body.logprobs else "top_logprobs", "agents have no log probabilities"
        )
    if body.audio is not None or any(modality != "text" for modality in body.modalities or ()):
        raise unsupported_parameter(
            "audio" if body.audio is not None else "modalities", "only text is answered"
        )


def _stream(
    request: Request,
    context: ApiContext,
    caller: Caller,
    tool_round: ToolRound,
    *,
    options: ChatOptions,
    messages: Sequence[ConversationMessage],
) -> Response:
    run = tool_round.run
    owner, job_id = as_job_owner(caller), run.job.id
    builder = ChunkBuilder(run.job, options, tool_round.after)

    async def frames() -> AsyncGenerator[Frame, None]:
        with context.waiting_clients.track(job_id):
            async with aclosing(context.control.follow_answer(owner, job_id)) as batches:
                async for batch in batches:
                    frames = [frame for item in batch for frame in builder.feed(item)]
                    if frames:
                        yield joined_frame(frames)
                    if builder.ended_with_calls:
                        return
            job = (await context.control.get(owner, job_id)).as_answered
            for last in builder.finish(job):
                if job.state is State.COMPLETED and last.data == DONE_FRAME:
                    # Before the client can come back with it.
                    told = conversation_digest(options.model, with_answer(messages, builder.content))
                    await context.control.save_conversation(job_id, told)
                yield last

    async def on_disconnect() -> None:
        if not builder.ended_with_calls:  # it left with calls to make
            await cancel_abandoned_run(request, context, caller, job_id)

    return EventStreamResponse(
        frames(),
        authorization_check(request),
        preamble=stream_timing.ACCEPTED_COMMENT,
        keepalive_seconds=stream_timing.KEEPALIVE_SECONDS,
        headers=run.headers() | session_headers(request, run.job),
        on_disconnect=on_disconnect,
    )
