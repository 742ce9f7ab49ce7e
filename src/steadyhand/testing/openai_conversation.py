"""Requests of OpenAI's wires, read as requests of the Messages API: the scripted model has one way to look at them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Message = dict[str, Any]
"""A message of the Messages API: ``role`` and ``content``, a text or a list of blocks."""

_CALLS = {
    "function_call": "arguments",
    "custom_tool_call": "input",
    "local_shell_call": "action",
}
"""Items of the Responses API that are a tool call, with the field that holds its input."""


def chat_messages(body: dict[str, Any]) -> list[Message]:
    """Return the messages of a request to Chat Completions; consecutive tool results stay messages of their own."""
    return [_chat_message(message) for message in _objects(body.get("messages"))]


def responses_messages(body: dict[str, Any]) -> list[Message]:
    """Return the input items of a request to Responses as messages; what one answer had is one assistant message."""
    given = body.get("input")
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    merged: list[Message] = []
    for item in _objects(given):
        message = _responses_message(item)
        if message is None:
            continue
        if message["role"] == "assistant" and merged and merged[-1]["role"] == "assistant":
            merged[-1]["content"].extend(message["content"])
        else:
            merged.append(message)
    return merged


def system_text(body: dict[str, Any], messages: list[Message]) -> str:
    """Return the instructions and all system messages as one text."""
    texts = [str(body.get("instructions") or "")]
    for message in messages:
        if message["role"] == "system":
            texts += [block["text"] for block in message["content"] if block["type"] == "text"]
    return "\n".join(text for text in texts if text)


def tools(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the offered tools in the form of the Messages API; ``type`` is the wire's own type of tool."""
    return list(_tools(body.get("tools")))


def output_schema(body: dict[str, Any]) -> dict[str, Any] | None:
    """Return the JSON schema that the answer's text has to satisfy, or None."""
    wanted = body.get("response_format") or (body.get("text") or {}).get("format") or {}
    if wanted.get("type") != "json_schema":
        return None
    schema = (wanted.get("json_schema") or wanted).get("schema")
    return schema if isinstance(schema, dict) else {}


def _tools(offered: Any) -> Iterator[dict[str, Any]]:
    for tool in _objects(offered):
        kind = str(tool.get("type"))
        if kind == "namespace":
            yield from _tools(tool.get("tools"))
            continue
        table = tool.get("function") if isinstance(tool.get("function"), dict) else tool
        name = (table or {}).get("name") or kind
        yield {"type": kind, "name": str(name), "input_schema": (table or {}).get("parameters") or {}}


def _chat_message(message: dict[str, Any]) -> Message:
    role = str(message.get("role"))
    if role == "tool":
        return _result(message.get("tool_call_id"), message.get("content"))
    blocks = _text_blocks(message.get("content"))
    for call in _objects(message.get("tool_calls")):
        table = call.get("function") or call.get("custom") or {}
        blocks.append(_call(call.get("id"), table.get("name"), table.get("arguments", table.get("input"))))
    return {"role": "system" if role == "developer" else role, "content": blocks}


def _responses_message(item: dict[str, Any]) -> Message | None:
    kind = str(item.get("type", "message"))
    if kind == "message":
        role = str(item.get("role"))
        return {
            "role": "system" if role == "developer" else role,
            "content": _text_blocks(item.get("content")),
        }
    if kind in _CALLS:
        call_id = item.get("call_id") or item.get("id")
        name = item.get("name") or kind.removesuffix("_call")
        return {"role": "assistant", "content": [_call(call_id, name, item.get(_CALLS[kind]))]}
    if kind.endswith("_output"):
        return _result(item.get("call_id"), item.get("output"))
    return None


def _call(call_id: Any, name: Any, arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": str(call_id), "name": str(name), "input": _input(arguments)}


def _input(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return {"input": arguments}


def _result(call_id: Any, output: Any) -> Message:
    block = {"type": "tool_result", "tool_use_id": str(call_id), "content": _text_blocks(output)}
    return {"role": "user", "content": [block]}


def _text_blocks(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    parts = _objects(content)
    return [{"type": "text", "text": part["text"]} for part in parts if isinstance(part.get("text"), str)]


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
