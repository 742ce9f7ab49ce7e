"""Continuation of a conversation: by session name, by the previous response, or by the messages sent again.

Messages sent again are recognized by a digest of every message up to the agent's last answer, of the same key and
model. One message less or one changed letter is another conversation; if two are equal, neither is continued.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace

from starlette.requests import Request

from steadyhand.api.openai.client_tool_results import ToolResults
from steadyhand.api.openai.input_messages import ConversationMessage
from steadyhand.api.transport.context import ApiContext
from steadyhand.control import Caller, Submission
from steadyhand.errors import InvalidRequest
from steadyhand.job import Job

SESSION_HEADER = "x-session-id"
_SESSION_NAME = re.compile(r"[\x21-\x7e]{1,128}")


def conversation_digest(model: str, messages: Sequence[ConversationMessage]) -> str:
    """Return a digest of the model's name and all messages, in order."""
    conversation = [model, *([message.role, *message.blocks] for message in messages)]
    return hashlib.sha256(json.dumps(conversation, sort_keys=True).encode()).hexdigest()


def with_answer(messages: Sequence[ConversationMessage], text: str) -> list[ConversationMessage]:
    """Return a conversation with the agent's answer at its end, as a client sends it back."""
    return [*messages, ConversationMessage("assistant", [{"type": "text", "text": text}])]


def messages_to_last_answer(messages: Sequence[ConversationMessage]) -> Sequence[ConversationMessage]:
    """Return the messages up to the agent's last answer; empty if it has not answered yet."""
    last = max((index for index, message in enumerate(messages) if message.role == "assistant"), default=-1)
    return messages[: last + 1]


async def with_session(
    request: Request,
    context: ApiContext,
    caller: Caller,
    submission: Submission,
    *,
    model: str,
    messages: Sequence[ConversationMessage],
) -> Submission:
    """Return a submission with the session that it continues, if there is one.

    Raise `InvalidRequest` for an invalid session name.
    """
    session_name = request.headers.get(SESSION_HEADER)
    if session_name is not None:
        if _SESSION_NAME.fullmatch(session_name) is None:
            raise InvalidRequest(
                f"{SESSION_HEADER}: has to be 1 to 128 printable ASCII characters without spaces"
            )
        return replace(submission, spec=replace(submission.spec, session_name=session_name))
    earlier_messages = messages_to_last_answer(messages)
    if not earlier_messages:
        return submission
    parent = await context.control.find_conversation(caller, conversation_digest(model, earlier_messages))
    # The model's name may mean another agent by now: that one is told what was said, and begins a session of its own.
    same_agent = parent is not None and parent.agent == submission.agent
    if parent is None or not same_agent:
        return submission
    return replace(submission, parent=parent.id, parent_job=parent)


async def with_calling_session(
    context: ApiContext, owner: Caller, submission: Submission, tool_results: ToolResults | None
) -> Submission:
    """Return a submission with the session whose answer was the calls, if that session can be continued."""
    if tool_results is None or submission.parent is not None or submission.spec.session_name is not None:
        return submission
    job = await context.control.get_continuable(owner, tool_results.job_id)
    same_agent = job is not None and job.agent == submission.agent
    return replace(submission, parent=tool_results.job_id) if same_agent else submission


def previous_response_not_found() -> InvalidRequest:
    """Return the error for a previous response that does not exist or belongs to another key."""
    return InvalidRequest.at(
        "/previous_response_id", "is no response of this key", code="previous_response_not_found"
    )


def session_headers(request: Request, job: Job) -> dict[str, str]:
    """Return the header by which the caller can continue a job's session."""
    session_name = request.headers.get(SESSION_HEADER) or job.session_id
    return {} if session_name is None else {SESSION_HEADER: session_name}
