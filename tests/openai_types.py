"""Reads what the OpenAI routes answer by the types of OpenAI's own client; what they do not name does not pass."""

import json
from collections.abc import Iterator
from typing import Any, TypeVar

from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

T = TypeVar("T")

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

RESPONSE_KEYS = {
    "id", "object", "created_at", "completed_at", "status", "incomplete_details", "model",
    "previous_response_id", "instructions", "output", "error", "tools", "tool_choice", "truncation",
    "parallel_tool_calls", "text", "top_p", "presence_penalty", "frequency_penalty", "top_logprobs",
    "temperature", "reasoning", "user", "usage", "max_output_tokens", "max_tool_calls", "store", "background",
    "service_tier", "metadata", "safety_identifier", "prompt_cache_key",
}  # fmt: skip
"""The keys of a response that the Open Responses specification requires."""
ITEM_KEYS = {
    "message": {"type", "id", "status", "role", "content"},
    "function_call": {"type", "id", "call_id", "name", "arguments", "status"},
    "function_call_output": {"type", "id", "call_id", "output", "status"},
}
"""The keys of items that it requires."""
USAGE_KEYS = {
    "input_tokens", "output_tokens", "total_tokens", "input_tokens_details", "output_tokens_details",
}  # fmt: skip
TOOL_KEYS = {"type", "name", "description", "parameters", "strict"}
FORMAT_KEYS = {"type", "name", "description", "schema", "strict"}
PART_KEYS = {"type", "text", "annotations", "logprobs"}
_UNTYPED_KEYS = {"presence_penalty", "frequency_penalty", "store"}
"""Keys that the specification requires and OpenAI's own types do not name."""


def parse_strict(type_: type[T] | TypeAdapter[T], value: Any, *, allowed_extra: set[str] = frozenset()) -> T:  # type: ignore[assignment]
    """Read a value by a type, to the letter: nothing is converted, and a key that the type does not name fails.

    `unnamed` are keys of the value itself that may be there all the same.
    """
    adapter: TypeAdapter[T] = type_ if isinstance(type_, TypeAdapter) else TypeAdapter(type_)
    parsed = adapter.validate_json(json.dumps(value), strict=True)
    unknown = {path for path in _unknown_keys(parsed, "") if path.lstrip(".") not in allowed_extra}
    assert not unknown, f"{adapter} does not name {sorted(unknown)} in {json.dumps(value)[:2000]}"
    return parsed


def _unknown_keys(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from (f"{path}.{name}" for name in value.model_extra or ())
        for name in type(value).model_fields:
            yield from _unknown_keys(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from _unknown_keys(each, f"{path}.{place}")


def parse_response(body: dict[str, Any]) -> Response:
    """Read a response, which has every key that the specification and the type name."""
    missing = (RESPONSE_KEYS | set(Response.model_fields)) - set(body)
    assert not missing, missing
    if body["usage"] is not None:
        assert set(body["usage"]) >= USAGE_KEYS
    form = body["text"]["format"]
    assert set(form) >= (FORMAT_KEYS if form["type"] == "json_schema" else {"type"}), form
    assert set(body["reasoning"] or {"effort", "summary"}) >= {"effort", "summary"}
    assert set(body["error"] or {"code", "message"}) == {"code", "message"}
    for tool in body["tools"]:
        assert set(tool) >= (
            {"type", "name", "description", "tools"} if tool["type"] == "namespace" else TOOL_KEYS
        )
    for item in body["output"]:
        check_item(item)
    return parse_strict(Response, body, allowed_extra=_UNTYPED_KEYS)


def parse_completion(body: dict[str, Any]) -> ChatCompletion:
    """Read a chat completion, which says what it used."""
    assert set(body) >= {"id", "object", "created", "model", "choices", "usage"}
    for choice in body["choices"]:
        assert set(choice) >= {"index", "message", "logprobs", "finish_reason"}
        assert set(choice["message"]) >= {"role", "content", "refusal"}
    return parse_strict(ChatCompletion, body, allowed_extra={"choices.0.message.reasoning_content"})


def parse_chunk(body: dict[str, Any]) -> ChatCompletionChunk:
    """Read a chunk of a streamed chat completion; what reasons is the one thing that OpenAI's types do not name."""
    return parse_strict(ChatCompletionChunk, body, allowed_extra={"choices.0.delta.reasoning_content"})


def parse_error(body: dict[str, Any]) -> dict[str, Any]:
    """Read an error: OpenAI's clients show its parts only when they are there and of these types."""
    parsed: dict[str, Any] = body["error"]
    assert set(parsed) == {"message", "type", "param", "code"}, parsed
    assert parsed["param"] is None or isinstance(parsed["param"], str)
    assert all(isinstance(parsed[name], str) and parsed[name] for name in ("message", "type", "code"))
    return parsed


def check_item(item: dict[str, Any]) -> None:
    """See that an item has all keys that the specification requires of it."""
    assert set(item) >= ITEM_KEYS.get(item["type"], {"id", "type"}), item
    for part in item.get("content") or ():
        assert part["type"] != "output_text" or set(part) >= PART_KEYS, part
    if item["type"] == "reasoning":
        assert item["status"] != "completed" or all(part["text"] for part in item["summary"]), item


def parse_event(body: dict[str, Any]) -> Any:
    """Read an event of a stream of the Responses API, with the response or the item in it."""
    assert isinstance(body["sequence_number"], int)
    if "response" in body:
        parse_response(body["response"])
        body = {**body, "response": {k: v for k, v in body["response"].items() if k not in _UNTYPED_KEYS}}
    if "item" in body:
        check_item(body["item"])
    return parse_strict(_EVENT, body)
