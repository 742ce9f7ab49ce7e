"""Reads what the OpenAI routes answer by the types of OpenAI's own client; what they do not name does not pass."""

import json
from collections.abc import Iterator
from typing import Any, TypeVar

from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

T = TypeVar("T")

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

SPECIFIED = {
    "id", "object", "created_at", "completed_at", "status", "incomplete_details", "model",
    "previous_response_id", "instructions", "output", "error", "tools", "tool_choice", "truncation",
    "parallel_tool_calls", "text", "top_p", "presence_penalty", "frequency_penalty", "top_logprobs",
    "temperature", "reasoning", "user", "usage", "max_output_tokens", "max_tool_calls", "store", "background",
    "service_tier", "metadata", "safety_identifier", "prompt_cache_key",
}  # fmt: skip
"""The keys of a response that the Open Responses specification requires."""
ITEMS = {
    "message": {"type", "id", "status", "role", "content"},
    "function_call": {"type", "id", "call_id", "name", "arguments", "status"},
    "function_call_output": {"type", "id", "call_id", "output", "status"},
}
"""The keys of items that it requires."""
USAGE = {
    "input_tokens", "output_tokens", "total_tokens", "input_tokens_details", "output_tokens_details",
}  # fmt: skip
TOOL = {"type", "name", "description", "parameters", "strict"}
FORMAT = {"type", "name", "description", "schema", "strict"}
PART = {"type", "text", "annotations", "logprobs"}
_UNNAMED = {"presence_penalty", "frequency_penalty", "store"}
"""Keys that the specification requires and OpenAI's own types do not name."""


def read(kind: type[T] | TypeAdapter[T], value: Any, *, unnamed: set[str] = frozenset()) -> T:  # type: ignore[assignment]
    """Read a value by a type, to the letter: nothing is converted, and a key that the type does not name fails.

    `unnamed` are keys of the value itself that may be there all the same.
    """
    adapter: TypeAdapter[T] = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
    found = adapter.validate_json(json.dumps(value), strict=True)
    strange = {path for path in _unknown(found, "") if path.lstrip(".") not in unnamed}
    assert not strange, f"{adapter} does not name {sorted(strange)} in {json.dumps(value)[:2000]}"
    return found


def _unknown(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from (f"{path}.{name}" for name in value.model_extra or ())
        for name in type(value).model_fields:
            yield from _unknown(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from _unknown(each, f"{path}.{place}")


def response(body: dict[str, Any]) -> Response:
    """Read a response, which has every key that the specification and the type name."""
    missing = (SPECIFIED | set(Response.model_fields)) - set(body)
    assert not missing, missing
    if body["usage"] is not None:
        assert set(body["usage"]) >= USAGE
    form = body["text"]["format"]
    assert set(form) >= (FORMAT if form["type"] == "json_schema" else {"type"}), form
    assert set(body["reasoning"] or {"effort", "summary"}) >= {"effort", "summary"}
    assert set(body["error"] or {"code", "message"}) == {"code", "message"}
    for tool in body["tools"]:
        assert set(tool) >= TOOL
    for item in body["output"]:
        check_item(item)
    return read(Response, body, unnamed=_UNNAMED)


def completion(body: dict[str, Any]) -> ChatCompletion:
    """Read a chat completion, which says what it used."""
    assert set(body) >= {"id", "object", "created", "model", "choices", "usage"}
    for choice in body["choices"]:
        assert set(choice) >= {"index", "message", "logprobs", "finish_reason"}
        assert set(choice["message"]) >= {"role", "content", "refusal"}
    return read(ChatCompletion, body)


def chunk(body: dict[str, Any]) -> ChatCompletionChunk:
    """Read a chunk of a streamed chat completion; what reasons is the one thing that OpenAI's types do not name."""
    return read(ChatCompletionChunk, body, unnamed={"choices.0.delta.reasoning_content"})


def error(body: dict[str, Any]) -> dict[str, Any]:
    """Read an error: OpenAI's clients show its parts only when they are there and of these types."""
    found: dict[str, Any] = body["error"]
    assert set(found) == {"message", "type", "param", "code"}, found
    assert found["param"] is None or isinstance(found["param"], str)
    assert all(isinstance(found[name], str) and found[name] for name in ("message", "type", "code"))
    return found


def check_item(item: dict[str, Any]) -> None:
    """See that an item has all keys that the specification requires of it."""
    assert set(item) >= ITEMS.get(item["type"], {"id", "type"}), item
    for part in item.get("content") or ():
        assert part["type"] != "output_text" or set(part) >= PART, part


def event(body: dict[str, Any]) -> Any:
    """Read an event of a stream of the Responses API, with the response or the item in it."""
    assert isinstance(body["sequence_number"], int)
    if "response" in body:
        response(body["response"])
        body = {**body, "response": {k: v for k, v in body["response"].items() if k not in _UNNAMED}}
    if "item" in body:
        check_item(body["item"])
    return read(_EVENT, body)
