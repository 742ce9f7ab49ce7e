"""A chat completion in one piece, and the parts that it shares with a stream of chunks."""

from collections.abc import Mapping, Sequence
from typing import Any

from steadyhand.api.openai.output_spec import OutputSpec, final_calls
from steadyhand.api.schemas import openai_bodies
from steadyhand.api.transport.errors import json_bytes
from steadyhand.job import Job, Usage


def completion_json(
    job: Job, model: str, text: str, output_spec: OutputSpec | None = None
) -> openai_bodies.Completion:
    """Return an ended job as a chat completion; `model` is the name as requested."""
    output_spec = output_spec or OutputSpec()
    message: openai_bodies.Answer = {"role": "assistant", "content": text, "refusal": None}
    if output_spec.forced_call is not None:
        message["content"] = None
        message["tool_calls"] = final_calls_json(job, output_spec.forced_call)
    return {
        "id": f"chatcmpl-{job.id}",
        "object": "chat.completion",
        "created": int(job.created_at.timestamp()),
        "model": model,
        "choices": [
            {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(output_spec)}
        ],
        "usage": usage_json(job.usage),
    }


def pending_calls_json(calls: Sequence[Mapping[str, Any]]) -> list[openai_bodies.ToolCall]:
    """Return calls that an agent waits for, in OpenAI's form."""
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


def final_calls_json(job: Job, forced_call: Mapping[str, Any]) -> list[openai_bodies.ToolCall]:
    """Return the calls that are the answer of a run."""
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in final_calls(job, forced_call)
    ]


def finish_reason(output_spec: OutputSpec) -> openai_bodies.FinishReason:
    """Return why a completion ended; a call that the client itself named ends with `stop`, as with OpenAI."""
    was_chosen = output_spec.function is not None and output_spec.function.is_named_by_client
    return "tool_calls" if output_spec.forced_call is not None and not was_chosen else "stop"


def usage_json(usage: Usage) -> openai_bodies.ChatUsage:
    """Return the tokens; cache reads and writes count as tokens of the prompt."""
    prompt_tokens = usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read_input_tokens,
            "cache_write_tokens": usage.cache_creation_input_tokens,
        },
    }
