"""Answers of OpenAI's APIs and of Gemini's as bytes, the way they are on the wire, streamed and in one piece."""

import json
from collections.abc import Sequence
from typing import Any

from tests.gateway.model_responses import JSON, MODEL, SSE, TEXT

from steadyhand.gateway.model.usage_meter import ResponseFormat
from steadyhand.ports import TokenCounts

WIRE_USAGE = TokenCounts(input=123, output=765, cache_read=4567, cache_write_5m=0)
"""What all bodies here report: 4690 tokens of input, of which 4567 were cached."""
RESPONSES_USAGE = {
    "input_tokens": 4690,
    "input_tokens_details": {"cached_tokens": 4567},
    "output_tokens": 765,
    "output_tokens_details": {"reasoning_tokens": 700},
    "total_tokens": 5455,
}
CHAT_USAGE = {
    "prompt_tokens": 4690,
    "completion_tokens": 765,
    "total_tokens": 5455,
    "prompt_tokens_details": {"cached_tokens": 4567},
    "completion_tokens_details": {"reasoning_tokens": 700},
}
GEMINI_USAGE = {
    "promptTokenCount": 4680,
    "cachedContentTokenCount": 4567,
    "toolUsePromptTokenCount": 10,
    "candidatesTokenCount": 65,
    "thoughtsTokenCount": 700,
    "totalTokenCount": 5455,
}

Event = dict[str, Any]
Wire = ResponseFormat


# --- Responses ---------------------------------------------------------------------------------


def response(status: str, usage: object = None, **more: object) -> Event:
    return {
        "id": "resp_1",
        "object": "response",
        "status": status,
        "model": MODEL,
        "tools": [
            {"type": "function", "name": "f", "parameters": {"properties": {"usage": {"type": "object"}}}}
        ],
        "output": [{"type": "message", "content": [{"type": "output_text", "text": TEXT}]}],
        "usage": usage,
        **more,
    }


def responses_delta(said: str = TEXT, kind: str = "response.output_text.delta") -> Event:
    return {"type": kind, "item_id": "msg_1", "output_index": 0, "delta": said, "obfuscation": "x" * 9}


def responses_events(
    deltas: int = 3, usage: object = RESPONSES_USAGE, end: str = "completed", **more: object
) -> list[Event]:
    return [
        {"type": "response.created", "response": response("in_progress")},
        {"type": "response.in_progress", "response": response("in_progress")},
        {"type": "response.output_item.added", "output_index": 0, "item": {"type": "message", "content": []}},
        *[responses_delta() for _ in range(deltas)],
        {"type": "response.output_text.done", "item_id": "msg_1", "text": TEXT * deltas},
        {"type": f"response.{end}", "response": response(end, usage, **more)},
    ]


# --- Chat Completions --------------------------------------------------------------------------


def chat_chunk(
    delta: object = None, finish: str | None = None, usage: object = None, **more: object
) -> Event:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    chunk = {"id": "c", "object": "chat.completion.chunk", "model": MODEL, "choices": choices}
    return {**chunk, "usage": usage, **more}


def chat_events(deltas: int = 3, usage: object = CHAT_USAGE, **more: object) -> list[Event]:
    return [
        chat_chunk({"role": "assistant", "content": ""}),
        *[chat_chunk({"content": TEXT}) for _ in range(deltas)],
        chat_chunk({}, "stop"),
        chat_chunk(None, None, usage, **more),
    ]


def chat_body(usage: object = CHAT_USAGE, **more: object) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
    completion = {"object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}
    return json.dumps({**completion, **more}).encode()


# --- Gemini ------------------------------------------------------------------------------------


def gemini_chunk(said: str = TEXT, finish: str | None = None, usage: object = None) -> Event:
    told = {"promptTokenCount": 4680, "totalTokenCount": 4680} if usage is None else usage
    candidate: Event = {"content": {"parts": [{"text": said}], "role": "model"}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "usageMetadata": told, "modelVersion": MODEL, "responseId": "r"}


def gemini_events(deltas: int = 3, usage: object = GEMINI_USAGE) -> list[Event]:
    return [*[gemini_chunk() for _ in range(deltas)], gemini_chunk("", "STOP", usage)]


# --- bytes -------------------------------------------------------------------------------------


def to_sse(wire: Wire, events: Sequence[Event], *, spaced: bool = False, done: bool = True) -> bytes:
    """Return a stream: Responses name each event, and Chat Completions end with a word of their own."""
    separators = (", ", ": ") if spaced else (",", ":")
    found = b""
    for event in events:
        name = f"event: {event['type']}\n" if wire == "responses" else ""
        found += f"{name}data: {json.dumps(event, separators=separators)}\n\n".encode()
    return found + (b"data: [DONE]\n\n" if wire == "chat" and done else b"")


def wire_events(wire: Wire, deltas: int = 3) -> list[Event]:
    if wire == "gemini":
        return gemini_events(deltas)
    return chat_events(deltas) if wire == "chat" else responses_events(deltas)


def wire_stream(wire: Wire, deltas: int = 3) -> bytes:
    return to_sse(wire, wire_events(wire, deltas))


def wire_body(wire: Wire) -> bytes:
    """Return an answer in one piece."""
    if wire == "chat":
        return chat_body()
    if wire == "gemini":
        return json.dumps(gemini_chunk(TEXT, "STOP", GEMINI_USAGE)).encode()
    return json.dumps(response("completed", RESPONSES_USAGE)).encode()


WIRES: Sequence[Wire] = ("responses", "chat", "gemini")
WIRE_BODIES: list[tuple[bytes, list[tuple[bytes, bytes]], ResponseFormat]] = [
    (to_sse("responses", responses_events(), spaced=True), SSE, "responses"),
    (wire_stream("chat").replace(b"\n", b"\r\n"), SSE, "chat"),
    *((wire_stream(wire), SSE, wire) for wire in WIRES),
    *((wire_body(wire), JSON, wire) for wire in WIRES),
]
