"""The route for conversations of the earlier service's later form."""

from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.classic.chat_completions import run_to_answer
from steadyhand.api.openai.run_failure import job_headers
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import classic_bodies
from steadyhand.api.schemas.requests import ConversationalRequest
from steadyhand.api.schemas.route_table import RouteTable
from steadyhand.api.transport.body import parse_body
from steadyhand.api.transport.context import get_caller, get_context
from steadyhand.api.transport.errors import json_response
from steadyhand.control import Submission
from steadyhand.job import JobSpec

router = RouteTable(tags=["classic"])

AGENT = "chat"


@router.post(
    "/v1/conversational",
    operation_id="converse",
    summary="Reply to a message of a conversation",
    **operations.CONVERSATIONAL,
)
async def reply_to_message(request: Request) -> Response:
    """Run the next turn of a conversation with the agent `chat`; an unknown `session_id` begins one.

    The sessions are those of the header `X-Session-Id`. A disconnect of the client cancels the run.
    """
    caller = get_caller(request)
    caller.require_scope("submit")
    context = get_context(request)
    is_classic = context.options.profile == "classic"
    body, _ = await parse_body(
        request, ConversationalRequest, context.options.max_openai_body_bytes, lenient=True
    )
    session_id = body.session_id or uuid4().hex
    spec = JobSpec(prompt=body.message, model=body.model, session_name=session_id, origin="classic")
    submission = Submission(spec, agent=AGENT, strict=not is_classic, on_interrupt="fail")
    answered = await run_to_answer(request, caller, submission, is_classic=is_classic)
    if isinstance(answered, Response):
        return answered
    job, text = answered
    document: classic_bodies.ConversationalReply = {"session_id": session_id, "reply": text}
    return json_response(document, headers=job_headers(job))
