"""The streams of the benchmark on each API of a model: a request, and the events of its answer.

All have the same text in events of the same pace, so that their rows can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steadyhand.ports import ModelApi

BODY_BYTES = 50_000
"""What an agent sends for its first turn, about."""
TOKENS = 60
"""Events with text in a stream."""
END = b"0\r\n\r\n"
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_TEXT = "some words of an answer that comes piece by piece "
_INPUT, _CACHED = 9_012, 9_000


@dataclass(frozen=True, slots=True)
class Wire:
    """One API. `start` is the head of the answer and its events before the text; `first` is in no earlier event."""

    api: ModelApi
    path: str
    headers: Sequence[bytes]
    body: Mapping[str, Any]
    start: bytes
    piece: bytes
    last: bytes
    first: bytes

    @property
    def request(self) -> bytes:
        """Return the bytes of a request of `BODY_BYTES`."""
        before, after = json.dumps(self.body).encode().split(b"PROMPT")
        body = before + b"x" * (BODY_BYTES - len(before) - len(after)) + after
        lines = [
            f"POST {self.path} HTTP/1.1".encode(),
            b"host: model.invalid",
            b"content-type: application/json",
            b"user-agent: bench",
            b"connection: keep-alive",
            b"content-length: %d" % len(body),
            *self.headers,
        ]
        return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


def _named(kind: str, **fields: Any) -> bytes:
    """Return an event with its name, as Messages and Responses have it."""
    return _chunk(b"event: %b\ndata: %b\n\n" % (kind.encode(), json.dumps({"type": kind, **fields}).encode()))


def _data(value: Mapping[str, Any]) -> bytes:
    return _chunk(b"data: %b\n\n" % json.dumps(value).encode())


def _messages() -> Wire:
    usage = {"input_tokens": _INPUT - _CACHED, "cache_read_input_tokens": _CACHED, "output_tokens": 1}
    model = "claude-haiku-4-5"
    begin = {"type": "message", "model": model, "content": [], "usage": usage}
    return Wire(
        "anthropic",
        "/v1/messages?beta=true",
        (b"x-api-key: placeholder", b"anthropic-version: 2023-06-01", b"x-app: cli"),
        {
            "model": model,
            "messages": [{"role": "user", "content": "PROMPT"}],
            "max_tokens": 128_000,
            "stream": True,
        },
        _HEAD
        + _named("message_start", message=begin)
        + _named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        _named("content_block_delta", index=0, delta={"type": "text_delta", "text": _TEXT}),
        _named("content_block_stop", index=0)
        + _named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": TOKENS})
        + _named("message_stop")
        + END,
        b"content_block_delta",
    )


def _responses() -> Wire:
    model = "gpt-5.5"
    response = {"id": "resp_1", "object": "response", "model": model, "output": []}
    usage = {
        "input_tokens": _INPUT,
        "input_tokens_details": {"cached_tokens": _CACHED},
        "output_tokens": TOKENS,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": _INPUT + TOKENS,
    }
    item = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
    return Wire(
        "openai",
        "/v1/responses",
        (b"authorization: Bearer placeholder", b"accept: text/event-stream"),
        {
            "model": model,
            "input": [{"role": "user", "content": "PROMPT"}],
            "stream": True,
            "store": False,
        },
        _HEAD
        + _named("response.created", response={**response, "status": "in_progress"})
        + _named("response.output_item.added", output_index=0, item=item),
        _named("response.output_text.delta", item_id="msg_1", output_index=0, content_index=0, delta=_TEXT),
        _named("response.output_item.done", output_index=0, item=item)
        + _named("response.completed", response={**response, "status": "completed", "usage": usage})
        + END,
        b"response.output_text.delta",
    )


def _chat() -> Wire:
    model = "gpt-5.5"

    def chunk(choices: Sequence[Mapping[str, Any]], **more: Any) -> bytes:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
        return _data({**head, "choices": choices, **more})

    usage = {
        "prompt_tokens": _INPUT,
        "prompt_tokens_details": {"cached_tokens": _CACHED},
        "completion_tokens": TOKENS,
        "total_tokens": _INPUT + TOKENS,
    }
    return Wire(
        "openai",
        "/v1/chat/completions",
        (b"authorization: Bearer placeholder", b"accept: text/event-stream"),
        {
            "model": model,
            "messages": [{"role": "user", "content": "PROMPT"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        _HEAD + chunk([{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]),
        chunk([{"index": 0, "delta": {"content": _TEXT}, "finish_reason": None}]),
        chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        + chunk([], usage=usage)
        + _chunk(b"data: [DONE]\n\n")
        + END,
        b'"content"',
    )


def _gemini() -> Wire:
    model = "gemini-2.5-flash"

    def chunk(text: str, **more: Any) -> bytes:
        content = {"role": "model", "parts": [{"text": text}]}
        usage = {"promptTokenCount": _INPUT, "cachedContentTokenCount": _CACHED, **more}
        return _data({"candidates": [{"content": content}], "usageMetadata": usage, "modelVersion": model})

    end = {"candidates": [{"finishReason": "STOP"}], "modelVersion": model}
    usage = {
        "promptTokenCount": _INPUT,
        "cachedContentTokenCount": _CACHED,
        "candidatesTokenCount": TOKENS,
        "totalTokenCount": _INPUT + TOKENS,
    }
    return Wire(
        "gemini",
        f"/v1beta/models/{model}:streamGenerateContent?alt=sse",
        (b"x-goog-api-key: placeholder",),
        {"contents": [{"role": "user", "parts": [{"text": "PROMPT"}]}]},
        _HEAD,
        chunk(_TEXT),
        _data({**end, "usageMetadata": usage}) + END,
        b'"text"',
    )


WIRES: Mapping[str, Wire] = {
    "messages": _messages(),
    "responses": _responses(),
    "chat": _chat(),
    "gemini": _gemini(),
}
"""Each API by its name in the rows."""
