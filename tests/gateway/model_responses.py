"""Answers of the model's service as bytes, the way they are on the wire."""

import base64
import json
import zlib
from collections.abc import Iterable
from typing import Any

from steadyhand.gateway.model.usage_meter import MeasuredUsage, ResponseFormat, UsageMeter
from steadyhand.ports import TokenCounts

SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]
JSON = [(b"content-type", b"application/json")]
FRAMES = [(b"content-type", b"application/vnd.amazon.eventstream")]
MODEL = "claude-opus-5-5"
USAGE = {
    "input_tokens": 123,
    "cache_read_input_tokens": 4567,
    "cache_creation_input_tokens": 890,
    "cache_creation": {"ephemeral_5m_input_tokens": 590, "ephemeral_1h_input_tokens": 300},
    "output_tokens": 11,
}
REPORTED_USAGE = TokenCounts(input=123, output=765, cache_read=4567, cache_write_5m=590, cache_write_1h=300)
TEXT = "one two three four"

Event = dict[str, Any]


def message_start(usage: object = USAGE) -> Event:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "content": []}
    return {"type": "message_start", "message": {**message, "usage": usage}}


def content_delta(kind: str = "text_delta", name: str = "text", said: str = TEXT) -> Event:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": kind, name: said}}


def message_delta(usage: object = None, reason: str | None = "end_turn") -> Event:
    told = {"output_tokens": 765} if usage is None else usage
    return {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": told}


MESSAGE_STOP = {"type": "message_stop"}
BLOCK_START = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
BLOCK_STOP = {"type": "content_block_stop", "index": 0}
PING = {"type": "ping"}


def typical_events(deltas: int = 3) -> list[Event]:
    return [
        message_start(),
        BLOCK_START,
        PING,
        *[content_delta() for _ in range(deltas)],
        BLOCK_STOP,
        message_delta(),
        MESSAGE_STOP,
    ]


def format_sse(events: Iterable[Event], *, spaced: bool = False, newline: bytes = b"\n") -> bytes:
    separators = (", ", ": ") if spaced else (",", ":")
    lines = [
        (event["type"].encode(), json.dumps(event, separators=separators, ensure_ascii=False).encode())
        for event in events
    ]
    return b"".join(b"event: %b\ndata: %b\n\n" % line for line in lines).replace(b"\n", newline)


def event_stream_frame(payload: bytes, kind: bytes = b"chunk") -> bytes:
    headers = b"".join(
        bytes([len(name)]) + name + b"\x07" + len(value).to_bytes(2, "big") + value
        for name, value in ((b":event-type", kind), (b":message-type", b"event"))
    )
    head = (16 + len(headers) + len(payload)).to_bytes(4, "big") + len(headers).to_bytes(4, "big")
    whole = head + zlib.crc32(head).to_bytes(4, "big") + headers + payload
    return whole + zlib.crc32(whole).to_bytes(4, "big")


def event_stream_frames(events: Iterable[Event]) -> bytes:
    return b"".join(
        event_stream_frame(
            json.dumps({"bytes": base64.b64encode(json.dumps(event).encode()).decode(), "p": "abcd"}).encode()
        )
        for event in events
    )


def message_body(usage: object = None) -> bytes:
    told = {**USAGE, "output_tokens": 765} if usage is None else usage
    content = [{"type": "text", "text": TEXT}]
    return json.dumps({"type": "message", "model": MODEL, "content": content, "usage": told}).encode()


def read_with_meter(
    body: bytes | Iterable[bytes],
    headers: list[tuple[bytes, bytes]] | None = None,
    *,
    status: int = 200,
    form: ResponseFormat = "messages",
    cut: bool = False,
) -> MeasuredUsage:
    meter = UsageMeter(status, SSE if headers is None else headers, form)
    for piece in [body] if isinstance(body, bytes) else body:
        meter.feed(piece)
    return meter.finish(truncated=cut)
