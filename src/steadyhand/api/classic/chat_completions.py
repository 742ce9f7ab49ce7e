"""The chat route in the classic profile: as the earlier service had it, to the letter."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.openai.chat.completion import completion_json
from steadyhand.api.openai.input_messages import text_of
from steadyhand.api.openai.run_failure import job_headers
from steadyhand.api.openai.start_run import ended_or_left
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import native_bodies
from steadyhand.api.schemas.requests import ClassicChatMessage, ClassicChatRequest
from steadyhand.api.transport.body import body_of
from steadyhand.api.transport.context import caller_of, door_of, insider
from steadyhand.api.transport.errors import json_response
from steadyhand.api.transport.route import DirectRoute
from steadyhand.api.transport.text import one_line
from steadyhand.control import Submission
from steadyhand.errors import InvalidRequest, TryLater
from steadyhand.job import MICROS, Job, OutcomeType, State
from steadyhand.ports import RunOutput

router = APIRouter(tags=["openai"], route_class=DirectRoute)

DEFAULT_AGENT = "recruiter-triage"
BUDGET_MICROS = 2 * MICROS
TIMEOUT_SECONDS = 900
_DETAIL_LIMIT = 200


@router.post(
    "/v1/chat/completions",
    operation_id="createChatCompletion",
    summary="Answer a conversation",
    **operations.CLASSIC_CHAT,
)
async def classic_chat(request: Request) -> Response:
    """Run the default agent on one prompt made of the conversation, whatever the model's name."""
    caller = caller_of(request)
    caller.require("submit")
    door = door_of(request)
    asked, _ = await body_of(request, ClassicChatRequest, door.options.max_openai_body_bytes, lenient=True)
    if asked.stream:
        detail = "This service answers in one piece; leave out 'stream' or set it to false."
        refusal: native_bodies.ClassicFailure = {"error": "streaming not supported", "detail": detail}
        return json_response(refusal, 400)
    submission = Submission(
        prompt=prompt_of(asked.messages),
        agent=door.options.openai_default_agent or DEFAULT_AGENT,
        budget_micros=BUDGET_MICROS,
        timeout_seconds=TIMEOUT_SECONDS,
        origin="openai",
        strict=False,
    )
    try:
        added = await door.control.submit(caller, submission)
    except TryLater as error:
        detail = "agent is busy" if error.code == "queue_full" else error.detail
        return _failed(detail, {"retry-after": str(error.retry_after)})
    job = await ended_or_left(request, door, caller, added.job.id)
    if job is None:
        return Response(status_code=499)  # nobody reads it
    output = await door.control.output(insider(caller), job.id)
    text = answer_of(job, output)
    if text is None:
        detail = job.error.message if job.error else f"the job is {job.state}"
        return _failed(detail, job_headers(job, retry=False))
    return json_response(completion_json(job, asked.model, text), headers=job_headers(job))


def _failed(detail: str, headers: Mapping[str, str]) -> Response:
    body: native_bodies.ClassicFailure = {
        "error": "execution failed",
        "detail": one_line(detail, _DETAIL_LIMIT),
    }
    return json_response(body, 503, headers=headers)


def prompt_of(messages: Sequence[ClassicChatMessage]) -> str:
    """Make one prompt: the system messages, a line, the user messages; what the assistant said is left out."""
    texts: dict[str, list[str]] = {"system": [], "user": []}
    for place, message in enumerate(messages):
        if message.role in texts:
            texts[message.role].append(text_of(message.content, f"messages/{place}/content"))
    request = "\n\n".join(texts["user"])
    if not request.strip():
        raise InvalidRequest.at("/messages", "holds nothing that the user asks")
    asked = f"Request:\n{request}"
    system = "\n\n".join(texts["system"])
    return f"System instructions:\n{system}\n\n---\n\n{asked}" if system.strip() else asked


def answer_of(job: Job, output: RunOutput | None) -> str | None:
    """Give the answer, or null when the run failed.

    A command that ended with 0 and printed something else than a result has still answered: with its raw
    text, or with the first text of the object it printed.
    """
    if job.state is State.COMPLETED and job.answer:
        return job.answer
    ended_well = bool(job.runs) and job.runs[-1].exit_code == 0 and job.outcome is not None
    if not (
        job.state is State.COMPLETED
        or (ended_well and job.outcome and job.outcome.type == OutcomeType.NO_RESULT)
    ):
        return None
    raw = "".join(output.output).strip() if output else ""
    try:
        printed: Any = json.loads(raw)
    except ValueError:
        return raw or None
    if not isinstance(printed, dict):
        return raw
    found = (printed.get(name) for name in ("result", "content", "text"))
    return next((text for text in found if isinstance(text, str) and text.strip()), None)
