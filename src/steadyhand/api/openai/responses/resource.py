"""A response of the Responses API as JSON, with every key of its types."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast

from steadyhand.api.openai.request_document import (
    StoredRequest,
    get_document,
    merged_request,
    parse_document,
    stored_requests,
    with_later_request,
    without_request,
)
from steadyhand.api.openai.run_failure import failure_reason, is_answered
from steadyhand.api.schemas import openai_bodies
from steadyhand.job import Job, OutcomeType, State, Usage

SERVER_LABEL = "steadyhand"
"""The label of an agent's own tools in responses: tools of a server, which no client answers."""
_NULL_FIELDS: Any = dict.fromkeys(
    [
        "access_programs",
        "conversation",
        "image",
        "incomplete_details",
        "input_transformations",
        "moderation",
        "prompt",
        "prompt_cache_diagnostics",
        "prompt_cache_options",
        "prompt_cache_retention",
        "tool_usage",
    ]
)
"""Fields of OpenAI's responses that are always null here."""


_RESPONSE_ID = re.compile(r"resp_([0-9a-f]{12})(?:_([1-9][0-9]{0,3}))?")


def parse_response_id(response_id: str) -> tuple[str, int] | None:
    """Return the job id and the number of a response; None for an invalid id."""
    match = _RESPONSE_ID.fullmatch(response_id)
    return None if match is None else (match[1], int(match[2] or 0))


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One of a job's responses. Each answer to calls of the job starts the next response; `number` counts them.

    `request` is the part of its request that is stored with the job.
    """

    job: Job
    number: int
    request: StoredRequest

    @property
    def id_suffix(self) -> str:
        """The end of the ids of the response and all its items."""
        return self.job.id + (f"_{self.number}" if self.number else "")

    @property
    def id(self) -> str:
        """The response's id."""
        return f"resp_{self.id_suffix}"

    @property
    def is_retrievable(self) -> bool:
        """True if it can be retrieved: its request asked to store it, and it has not been deleted."""
        return bool(self.request.get("stored", True)) and not self.request.get("forgotten")


def get_stored_response(job: Job, number: int = 0) -> StoredResponse | None:
    """Return one of a job's responses; None if the job has no response of that number."""
    document = parse_document(job)
    if document is None or number >= len(stored_requests(document)):
        return None
    return StoredResponse(job, number, merged_request(document, number))


def latest_response(job: Job) -> StoredResponse | None:
    """Return the newest of a job's responses, if it has any."""
    document = parse_document(job)
    return None if document is None else get_stored_response(job, len(stored_requests(document)) - 1)


def append_request(job: Job, request: StoredRequest) -> Job:
    """Return a job with one more response for this request."""
    return replace(job, spec=replace(job.spec, request=with_later_request(get_document(job), request)))


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """Adds one more response to a job, also on another node; a `control.JobUpdate`."""

    request: StoredRequest
    in_background: bool

    def __call__(self, job: Job) -> Job:
        """Return the job with the response."""
        # Whoever asks for the rest in the background does not wait for it.
        on_interrupt = "resume" if self.in_background else job.on_interrupt
        return replace(append_request(job, self.request), on_interrupt=on_interrupt)

    def to_json(self) -> Mapping[str, Any]:
        """Return it as JSON."""
        return {"request": self.request, "in_background": self.in_background}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "AppendRequest":
        """Return it from the JSON of `to_json`."""
        return cls(cast("StoredRequest", value["request"]), bool(value["in_background"]))


def forget_response(job: Job, number: int) -> Job | None:
    """Return a job without one response and its input; None if no response is left."""
    document = without_request(get_document(job), number)
    return None if document is None else replace(job, spec=replace(job.spec, request=document))


def response_status(job: Job) -> openai_bodies.ResponseStatus:
    """Return the status of a response for a job's state."""
    if not job.is_final:
        return "queued" if job.state is State.QUEUED and not job.runs else "in_progress"
    if is_answered(job):
        return "completed"
    return "cancelled" if job.state is State.CANCELLED else "failed"


def response_json(
    stored: StoredResponse,
    status: openai_bodies.ResponseStatus,
    output: Sequence[dict[str, Any]],
    *,
    created_at: datetime | None = None,
    finished_at: datetime | None = None,
    usage: Usage | None = None,
) -> openai_bodies.ResponseObject:
    """Return a response; fields that only an ended response has are null until then."""
    job, request = stored.job, stored.request
    created_at = created_at or job.created_at
    # What a request leaves with its job are the fields that are not listed here.
    echo = cast("openai_bodies.ResponseObject", request.get("echo", {}))
    return {
        "id": stored.id,
        "object": "response",
        "created_at": int(created_at.timestamp()),
        "completed_at": int(finished_at.timestamp()) if finished_at and status == "completed" else None,
        "status": status,
        "background": bool(request.get("background")),
        "error": _error_json(job) if status == "failed" else None,
        "instructions": request.get("instructions"),
        "model": request.get("model", job.agent),
        "output": list(output),
        "usage": None if usage is None else _response_usage_json(usage),
        "metadata": request.get("metadata") or {},
        "service_tier": "default",
        "truncation": "disabled",
        "top_logprobs": 0,
        **echo,
        **_NULL_FIELDS,
    }


def _error_json(job: Job) -> openai_bodies.ResponseFault:
    is_rate_limited = job.outcome is not None and job.outcome.type == OutcomeType.RATE_LIMITED
    return {
        "code": "rate_limit_exceeded" if is_rate_limited else "server_error",
        "message": failure_reason(job)[1],
    }


def _response_usage_json(usage: Usage) -> openai_bodies.ResponseUsage:
    input_tokens = usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cache_read_input_tokens,
            "cache_write_tokens": usage.cache_creation_input_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": input_tokens + usage.output_tokens,
    }


def text_part(text: str) -> dict[str, Any]:
    """Return a part of text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def refusal_part(text: str) -> dict[str, Any]:
    """Return a part of a message that is a refusal of the model."""
    return {"type": "refusal", "refusal": text}


def summary_part(text: str) -> dict[str, Any]:
    """Return a part of a summary of thinking."""
    return {"type": "summary_text", "text": text}


def message_item(item_id: str, content: Sequence[Any], status: str) -> dict[str, Any]:
    """Return a message of the agent."""
    return {
        "type": "message",
        "id": item_id,
        "status": status,
        "role": "assistant",
        "content": list(content),
    }


def reasoning_item(item_id: str, summary: Sequence[Any], status: str) -> dict[str, Any]:
    """Return the thinking before a message or a call; without a summary it has no text."""
    return {"type": "reasoning", "id": item_id, "status": status, "summary": list(summary)}


def mcp_call_item(item_id: str, name: str, arguments: str, status: str) -> dict[str, Any]:
    """Return a call of one of the agent's own tools, without its output."""
    return {
        "type": "mcp_call",
        "id": item_id,
        "status": status,
        "server_label": SERVER_LABEL,
        "name": name,
        "arguments": arguments,
        "output": None,
        "error": None,
        "approval_request_id": None,
    }


def function_call_item(
    item_id: str, call_id: str, name: str, arguments: str, *, namespace: str | None
) -> dict[str, Any]:
    """Return a whole call for the client; it names the function as the request did."""
    item = {
        "type": "function_call",
        "id": item_id,
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": "completed",
    }
    return item if namespace is None else {**item, "namespace": namespace}
