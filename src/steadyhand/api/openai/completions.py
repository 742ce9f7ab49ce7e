"""A chat completion in one piece, and what a stream of chunks shares with it."""

from collections.abc import Mapping, Sequence
from typing import Any

from steadyhand.api.openai.wanted import Function, Wanted
from steadyhand.api.problems import json_bytes
from steadyhand.job import Job, Usage


def completion_json(job: Job, model: str, text: str, wanted: Wanted | None = None) -> dict[str, Any]:
    """Give an ended job as a chat completion; `model` is the name that was asked for."""
    wanted = wanted or Wanted()
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if wanted.function is not None:
        message |= {"content": None, "tool_calls": tool_calls(job, wanted.function, text)}
    return {
        "id": f"chatcmpl-{job.id}",
        "object": "chat.completion",
        "created": int(job.created_at.timestamp()),
        "model": model,
        "choices": [
            {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(wanted)}
        ],
        "usage": usage_json(job.usage),
    }


def calls_json(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give calls that an agent waits for as OpenAI's clients know them."""
    return [
        {
            "id": call["id"],
            "type": "function",
            "function": {
                "name": call["name"],
                "arguments": json_bytes(call["arguments"]).decode("utf-8", "replace"),
            },
        }
        for call in calls
    ]


def tool_calls(job: Job, function: Function, arguments: str) -> list[dict[str, Any]]:
    """Give the one call of a run for a function's arguments."""
    called = {"name": function.name, "arguments": arguments}
    return [{"id": f"call_{job.id}", "type": "function", "function": called}]


def finish_reason(wanted: Wanted) -> str:
    """Say why a completion ended: a call that the caller itself named ends with `stop`, as with OpenAI."""
    return "tool_calls" if wanted.function is not None and not wanted.function.named else "stop"


def usage_json(usage: Usage) -> dict[str, Any]:
    """Give tokens; cache reads and writes are among the prompt's."""
    prompt = usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage.output_tokens,
        "total_tokens": prompt + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_input_tokens},
    }
