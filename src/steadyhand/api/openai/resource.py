"""A response of the Responses API as JSON: every key that its types name is there."""

from collections.abc import Mapping, Sequence
from typing import Any

from steadyhand.api.openai.runs import why_failed
from steadyhand.job import Job, State

KIND = "response"
SERVER = "steadyhand"
"""The label under which an agent's own tools are told of: a server's tools, which no client answers."""
_NULLS = (
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
)
"""What responses have elsewhere and never here."""


def response_id(job_id: str) -> str:
    """Give the id of the response that a job answers."""
    return f"resp_{job_id}"


def is_response(job: Job) -> bool:
    """Say whether a job was asked for as a response that is to be kept."""
    return job.request is not None and job.request.get("kind") == KIND


def over(job: Job) -> bool:
    """Say whether nothing more will come: a job that the next start takes up goes on."""
    return job.state.ended and not (job.state is State.INTERRUPTED and job.at_start is not None)


def status_of(job: Job) -> str:
    """Give the word that the API has for a job's state."""
    if not over(job):
        return "queued" if job.state is State.QUEUED and not job.runs else "in_progress"
    return {State.COMPLETED: "completed", State.CANCELLED: "cancelled"}.get(job.state, "failed")


def response_json(job: Job, status: str, output: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Give a response; what only an ended job has is null until then."""
    asked: Mapping[str, Any] = job.request or {}
    ended = status not in ("queued", "in_progress")
    finished = job.finished_at
    return {
        "id": response_id(job.id),
        "object": "response",
        "created_at": int(job.created_at.timestamp()),
        "completed_at": int(finished.timestamp()) if finished and status == "completed" else None,
        "status": status,
        "background": bool(asked.get("background")),
        "error": _error(job) if status == "failed" else None,
        "instructions": asked.get("instructions"),
        "model": asked.get("model", job.agent),
        "output": list(output),
        "usage": _usage(job) if ended else None,
        "metadata": job.metadata or {},
        "service_tier": "default",
        "truncation": "disabled",
        "top_logprobs": 0,
        **asked.get("echo", {}),
        **dict.fromkeys(_NULLS),
    }


def _error(job: Job) -> dict[str, Any]:
    limited = job.outcome is not None and job.outcome.type == "rate_limited"
    code = "rate_limit_exceeded" if limited else "server_error"
    return {"code": code, "message": why_failed(job)[1]}


def _usage(job: Job) -> dict[str, Any]:
    usage = job.usage
    given = usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens
    return {
        "input_tokens": given,
        "input_tokens_details": {
            "cached_tokens": usage.cache_read_input_tokens,
            "cache_write_tokens": usage.cache_creation_input_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": given + usage.output_tokens,
    }


def text_part(text: str) -> dict[str, Any]:
    """Give a part of text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def message_item(item_id: str, text: str | None, status: str) -> dict[str, Any]:
    """Give a message of the agent; without text it has no part yet."""
    content = [] if text is None else [text_part(text)]
    return {"type": "message", "id": item_id, "status": status, "role": "assistant", "content": content}


def tool_item(item_id: str, name: str, arguments: str, status: str) -> dict[str, Any]:
    """Give a call of one of the agent's own tools, without its output."""
    return {
        "type": "mcp_call",
        "id": item_id,
        "status": status,
        "server_label": SERVER,
        "name": name,
        "arguments": arguments,
        "output": None,
        "error": None,
        "approval_request_id": None,
    }


def function_item(item_id: str, call_id: str, name: str, arguments: str, status: str) -> dict[str, Any]:
    """Give a call that the client is to make."""
    return {
        "type": "function_call",
        "id": item_id,
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": status,
    }
