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

from steadyhand.api.openai.client_tool_results import Brought
from steadyhand.api.openai.input_messages import Spoken
from steadyhand.api.transport.context import Door
from steadyhand.control import Caller, Submission
from steadyhand.errors import InvalidRequest
from steadyhand.job import Job

SESSION_HEADER = "x-session-id"
_NAME = re.compile(r"[\x21-\x7e]{1,128}")


def digest_of(model: str, spoken: Sequence[Spoken]) -> str:
    """Give what stands for all that was said to a model and by it, in order."""
    whole = [model, *([each.role, *each.blocks] for each in spoken)]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def answered(spoken: Sequence[Spoken], text: str) -> list[Spoken]:
    """Give a conversation with the agent's answer at its end, as a client sends it back."""
    return [*spoken, Spoken("assistant", [{"type": "text", "text": text}])]


def said_before(spoken: Sequence[Spoken]) -> Sequence[Spoken]:
    """Give what was said up to the agent's last answer; nothing when it has not answered yet."""
    last = max((place for place, each in enumerate(spoken) if each.role == "assistant"), default=-1)
    return spoken[: last + 1]


async def going_on(
    request: Request,
    door: Door,
    caller: Caller,
    submission: Submission,
    *,
    model: str,
    spoken: Sequence[Spoken],
) -> Submission:
    """Give a request for a run with the session that it goes on with, if there is one.

    Raises `InvalidRequest` for a name of a session that cannot be one.
    """
    name = request.headers.get(SESSION_HEADER)
    if name is not None:
        if _NAME.fullmatch(name) is None:
            raise InvalidRequest(
                f"{SESSION_HEADER}: has to be 1 to 128 printable ASCII characters without spaces"
            )
        return replace(submission, session_name=name)
    before = said_before(spoken)
    if not before:
        return submission
    parent = await door.control.conversation(caller, digest_of(model, before))
    # The model's name may mean another agent by now: that one is told what was said, and begins a session of its own.
    fits = parent is not None and parent.agent == submission.agent
    return replace(submission, parent=parent.id) if parent is not None and fits else submission


async def after_answer(
    door: Door, own: Caller, submission: Submission, brought: Brought | None
) -> Submission:
    """Give a request with what came of calls that were a run's answer: it goes on with that session, if it can."""
    if brought is None or submission.parent is not None or submission.session_name is not None:
        return submission
    job = await door.control.continuable(own, brought.job_id)
    fits = job is not None and job.agent == submission.agent
    return replace(submission, parent=brought.job_id) if fits else submission


def not_found() -> InvalidRequest:
    """Refuse a response to go on with that is none, or another key's."""
    return InvalidRequest.at(
        "/previous_response_id", "is no response of this key", code="previous_response_not_found"
    )


def session_headers(request: Request, job: Job) -> dict[str, str]:
    """Give the header by which the caller can go on with what a job did."""
    named = request.headers.get(SESSION_HEADER) or job.session_id
    return {} if named is None else {SESSION_HEADER: named}
