"""A chat completion in one piece, and the parts that it shares with a stream of chunks."""

from collections.abc import Mapping, Sequence
from typing import Any

from steadyhand.api.openai.output_spec import OutputSpec, final_calls
from steadyhand.api.openai.run_failure import refusal_text
from steadyhand.api.schemas import openai_bodies
from steadyhand.api.transport.errors import json_bytes
from steadyhand.job import Job, Usage


def completion_id(job: Job, after: int) -> str:
    """Return the id of a response: each round of a job has its own."""
    return f"chatcmpl-{job.id}" + (f"-{after}" if after else "")


def completion_json(
    job: Job,
    model: str,
    message: openai_bodies.Answer,
    finish_reason: openai_bodies.FinishReason = "stop",
    *,
    usage: Usage | None = None,
    after: int = 0,
) -> openai_bodies.Completion:
    """Return the answer of a job, or of its round after the event `after`; `model` is the name as requested."""
    return {
        "id": completion_id(job, after),
        "object": "chat.completion",
        "created": int(job.created_at.timestamp()),
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}],
        "usage": usage_json(job.usage if usage is None else usage),
    }


def message_json(
    text: str | None,
    calls: Sequence[openai_bodies.ToolCall] = (),
    *,
    refusal: str | None = None,
    reasoning: str = "",
) -> openai_bodies.Answer:
    """Return a message of the agent; keys that are empty are left out."""
    message: openai_bodies.Answer = {"role": "assistant", "content": text, "refusal": refusal}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = list(calls)
    return message


def final_message_json(job: Job, text: str, output_spec: OutputSpec, reasoning: str) -> openai_bodies.Answer:
    """Return the message of a job that ended with an answer: its text, its calls, or the model's refusal."""
    refusal = refusal_text(job)
    if refusal is not None:
        return message_json(None, refusal=refusal, reasoning=reasoning)
    if output_spec.forced_call is None:
        return message_json(text, reasoning=reasoning)
    return message_json(None, final_calls_json(job, output_spec.forced_call), reasoning=reasoning)


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


def final_finish_reason(job: Job, output_spec: OutputSpec) -> openai_bodies.FinishReason:
    """Return why a completion ended; a call that the client itself named ends with `stop`, as with OpenAI."""
    if refusal_text(job) is not None:
        return "content_filter"
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
