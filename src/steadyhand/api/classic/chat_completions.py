"""The chat route of the classic profile: exactly that of the earlier service."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.agents import CLASSIC_DEFAULT_AGENT
from steadyhand.api.openai.chat.completion import completion_json, message_json
from steadyhand.api.openai.input_messages import parse_text_content
from steadyhand.api.openai.run_failure import failure_response, job_headers
from steadyhand.api.openai.start_run import wait_for_end
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import classic_bodies
from steadyhand.api.schemas.requests import ClassicChatMessage, ClassicChatRequest
from steadyhand.api.schemas.route_table import RouteTable
from steadyhand.api.transport.body import parse_body
from steadyhand.api.transport.context import as_job_owner, get_caller, get_context
from steadyhand.api.transport.errors import json_response
from steadyhand.api.transport.text import one_line
from steadyhand.control import Caller, Submission
from steadyhand.errors import InvalidRequest, RetryLater
from steadyhand.job import Job, JobSpec, OutcomeType, State
from steadyhand.money import MICROS_PER_DOLLAR
from steadyhand.ports import RunOutput

router = RouteTable(tags=["openai"])

BUDGET_MICROS = 2 * MICROS_PER_DOLLAR
TIMEOUT_SECONDS = 900
_MAX_DETAIL_LENGTH = 200


@router.post(
    "/v1/chat/completions",
    operation_id="createChatCompletion",
    summary="Answer a conversation",
    **operations.CLASSIC_CHAT,
)
async def create_classic_completion(request: Request) -> Response:
    """Run the default agent with one prompt built from the conversation; the model's name is ignored."""
    caller = get_caller(request)
    caller.require_scope("submit")
    context = get_context(request)
    body, _ = await parse_body(
        request, ClassicChatRequest, context.options.max_openai_body_bytes, lenient=True
    )
    if body.stream:
        refusal: classic_bodies.ClassicFailure = {
            "error": "streaming not supported",
            "detail": "streaming not supported",
        }
        return json_response(refusal, 400)
    submission = Submission(
        spec=JobSpec(prompt=build_prompt(body.messages), origin="openai"),
        agent=context.options.openai_default_agent or CLASSIC_DEFAULT_AGENT,
        default_budget_micros=BUDGET_MICROS,
        default_timeout_seconds=TIMEOUT_SECONDS,
        strict=False,
    )
    answered = await run_to_answer(request, caller, submission, is_classic=True)
    if isinstance(answered, Response):
        return answered
    job, text = answered
    return json_response(completion_json(job, body.model, message_json(text)), headers=job_headers(job))


async def run_to_answer(
    request: Request, caller: Caller, submission: Submission, *, is_classic: bool
) -> tuple[Job, str] | Response:
    """Run a job to its end; return it with its answer, or the response to a run that has none.

    A failure has the earlier service's form if `is_classic`, else that of the other routes. A disconnect of the client
    cancels the run.
    """
    context = get_context(request)
    try:
        submitted = await context.control.submit(caller, submission)
    except RetryLater as error:
        if not is_classic:
            raise
        return _busy_response(error)
    job = await wait_for_end(request, context, caller, submitted.job.id)
    if job is None:
        return Response(status_code=499)  # nobody reads it
    output = await context.control.get_output(as_job_owner(caller), job.id)
    text = extract_answer(job, output)
    if text is not None:
        return job, text
    return _classic_failure_response(job, output) if is_classic else failure_response(request, job)


def _busy_response(error: RetryLater) -> Response:
    """Return the earlier service's response to a run that cannot start now."""
    detail = "agent is busy" if error.code == "queue_full" else error.detail
    return _failure_response(detail, {"retry-after": str(error.retry_after)})


def _classic_failure_response(job: Job, output: RunOutput | None) -> Response:
    """Return the earlier service's response to a run that failed: the CLI's stderr, or without any the job's error."""
    stderr = output.stderr if output else ""
    detail = one_line(stderr, _MAX_DETAIL_LENGTH) or (
        job.error.message if job.error else f"the job is {job.state}"
    )
    return _failure_response(detail, job_headers(job, retry=False))


def _failure_response(detail: str, headers: Mapping[str, str]) -> Response:
    document: classic_bodies.ClassicFailure = {
        "error": "execution failed",
        "detail": one_line(detail, _MAX_DETAIL_LENGTH),
    }
    return json_response(document, 503, headers=headers)


def build_prompt(messages: Sequence[ClassicChatMessage]) -> str:
    """Build one prompt: the system messages, a line, the user messages; messages of the assistant are left out."""
    texts_by_role: dict[str, list[str]] = {"system": [], "user": []}
    for index, message in enumerate(messages):
        if message.role in texts_by_role:
            texts_by_role[message.role].append(
                parse_text_content(message.content, f"messages/{index}/content")
            )
    user_text = "\n\n".join(texts_by_role["user"])
    if not user_text.strip():
        raise InvalidRequest.at("/messages", "contains no message of the user")
    request_text = f"Request:\n{user_text}"
    system_text = "\n\n".join(texts_by_role["system"])
    return (
        f"System instructions:\n{system_text}\n\n---\n\n{request_text}"
        if system_text.strip()
        else request_text
    )


def extract_answer(job: Job, output: RunOutput | None) -> str | None:
    """Return the answer, or None if the run failed.

    A command that exits with 0 and prints no result has an answer too: its raw text, or the first text of the object
    that it printed.
    """
    if job.state is State.COMPLETED and job.answer:
        return job.answer
    exited_cleanly = bool(job.runs) and job.runs[-1].exit_code == 0 and job.outcome is not None
    if not (
        job.state is State.COMPLETED
        or (exited_cleanly and job.outcome and job.outcome.type == OutcomeType.NO_RESULT)
    ):
        return None
    printed_text = "".join(output.output).strip() if output else ""
    try:
        document: Any = json.loads(printed_text)
    except ValueError:
        return printed_text or None
    if not isinstance(document, dict):
        return printed_text
    candidates = (document.get(name) for name in ("result", "content", "text"))
    return next((text for text in candidates if isinstance(text, str) and text.strip()), None)
