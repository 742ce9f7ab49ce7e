"""Whether a conversation goes on: by its name, by the response before, or because all of it comes back.

What comes back is known by a digest of every message up to the agent's answer, of the same key and model. A message
less or a letter changed is another conversation; of two that are alike neither is taken up.
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
    """Give what stands for all that was said to a model and by it, in order."""
    conversation = [model, *([message.role, *message.blocks] for message in messages)]
    return hashlib.sha256(json.dumps(conversation, sort_keys=True).encode()).hexdigest()


def with_answer(messages: Sequence[ConversationMessage], text: str) -> list[ConversationMessage]:
    """Give a conversation with the agent's answer at its end, as a client sends it back."""
    return [*messages, ConversationMessage("assistant", [{"type": "text", "text": text}])]


def messages_to_last_answer(messages: Sequence[ConversationMessage]) -> Sequence[ConversationMessage]:
    """Give what was said up to the agent's last answer; nothing when it has not answered yet."""
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
    """Give a request for a run with the session that it goes on with, if there is one.

    Raises `InvalidRequest` for a name of a session that cannot be one.
    """
    session_name = request.headers.get(SESSION_HEADER)
    if session_name is not None:
        if _SESSION_NAME.fullmatch(session_name) is None:
            raise InvalidRequest(
                f"{SESSION_HEADER}: has to be 1 to 128 printable ASCII characters without spaces"
            )
        return replace(submission, session_name=session_name)
    earlier_messages = messages_to_last_answer(messages)
    if not earlier_messages:
        return submission
    parent = await context.control.find_conversation(caller, conversation_digest(model, earlier_messages))
    # The model's name may mean another agent by now: that one is told what was said, and begins a session of its own.
    same_agent = parent is not None and parent.agent == submission.agent
    return replace(submission, parent=parent.id) if parent is not None and same_agent else submission


async def with_calling_session(
    context: ApiContext, owner: Caller, submission: Submission, tool_results: ToolResults | None
) -> Submission:
    """Give a request with what came of calls that were a run's answer: it goes on with that session, if it can."""
    if tool_results is None or submission.parent is not None or submission.session_name is not None:
        return submission
    job = await context.control.get_continuable(owner, tool_results.job_id)
    same_agent = job is not None and job.agent == submission.agent
    return replace(submission, parent=tool_results.job_id) if same_agent else submission


def previous_response_not_found() -> InvalidRequest:
    """Refuse a response to go on with that is none, or another key's."""
    return InvalidRequest.at(
        "/previous_response_id", "is no response of this key", code="previous_response_not_found"
    )


def session_headers(request: Request, job: Job) -> dict[str, str]:
    """Give the header by which the caller can go on with what a job did."""
    session_name = request.headers.get(SESSION_HEADER) or job.session_id
    return {} if session_name is None else {SESSION_HEADER: session_name}
