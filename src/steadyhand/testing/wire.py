"""The Messages API on the wire: a turn as streamed events or as one message."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from steadyhand.testing.request import ModelRequest
from steadyhand.testing.scenario import ModelTurn, fill_variables

_CACHED_TOKENS_PER_TURN = 100
"""Tokens a turn adds to the cache, so that cache figures grow the way real ones do."""

_OUTPUT_TOLD_AT_START = 1

CACHE_WRITE_FIELDS = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")


@dataclass(frozen=True, slots=True)
class StreamPart:
    """A part of a streamed answer: its bytes, the tokens that it tells, and whether the pace of a turn holds for it."""

    data: bytes
    usage: dict[str, int] = field(default_factory=dict)
    is_delta: bool = False


class WireResponse(Protocol):
    """One answer to one request on any wire; ``usage`` has the names of the Messages API."""

    id: str
    turn: ModelTurn
    request: ModelRequest
    is_cut: bool
    usage: dict[str, int]

    def body(self) -> dict[str, Any]:
        """Return the answer without streaming."""

    def stream_parts(self) -> Iterator[StreamPart]:
        """Yield the answer as it is streamed; a cut one just ends."""


class ModelResponse:
    """One answer of the Messages API, with its ids and its usage."""

    def __init__(self, turn: ModelTurn, request: ModelRequest) -> None:
        self.turn = turn
        self.request = request
        self.id = f"msg_{uuid.uuid4().hex[:24]}"
        self.is_cut = turn.cut_after is not None
        self._blocks = content_blocks(turn, request)
        self.usage = token_counts(turn, request, self._blocks)
        self.stop_reason = turn.stop_reason or ("tool_use" if turn.tool else "end_turn")

    def body(self) -> dict[str, Any]:
        """Return the message in the API's form without streaming."""
        return {
            **self._envelope(usage_body(self.usage)),
            "content": self._blocks,
            "stop_reason": self.stop_reason,
        }

    def stream_parts(self) -> Iterator[StreamPart]:
        """Yield the message as the API streams it; input is told at its start, output at its end."""
        for event in self._events():
            usage: dict[str, int] = {}
            if event["type"] == "message_start":
                usage = {**self.usage, "output_tokens": _OUTPUT_TOLD_AT_START}
            elif event["type"] == "message_delta":
                usage = {"output_tokens": self.usage["output_tokens"] - _OUTPUT_TOLD_AT_START}
            yield StreamPart(format_sse(event), usage, is_delta=event["type"] == "content_block_delta")

    def _events(self) -> Iterator[dict[str, Any]]:
        yield {
            "type": "message_start",
            "message": self._envelope(usage_body({**self.usage, "output_tokens": _OUTPUT_TOLD_AT_START})),
        }
        yield {"type": "ping"}
        deltas = 0
        for index, block in enumerate(self._blocks):
            yield {"type": "content_block_start", "index": index, "content_block": _empty_block(block)}
            for delta in self._deltas(block):
                yield {"type": "content_block_delta", "index": index, "delta": delta}
                deltas += 1
                if self.turn.cut_after is not None and deltas >= self.turn.cut_after:
                    return
            yield {"type": "content_block_stop", "index": index}
        yield {
            "type": "message_delta",
            "delta": {"stop_reason": self.stop_reason, "stop_sequence": None},
            "usage": {name: count for name, count in self.usage.items() if name not in CACHE_WRITE_FIELDS},
        }
        yield {"type": "message_stop"}

    def _envelope(self, usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.request.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }

    def _deltas(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        kind = block["type"]
        if kind == "thinking":
            for piece in text_chunks(self.turn, "thinking", block["thinking"]):
                yield {"type": "thinking_delta", "thinking": piece}
            yield {"type": "signature_delta", "signature": block["signature"]}
        elif kind == "text":
            for piece in text_chunks(self.turn, "text", block["text"]):
                yield {"type": "text_delta", "text": piece}
        else:
            for piece in split_text(json.dumps(block["input"]), 40):
                yield {"type": "input_json_delta", "partial_json": piece}


def text_chunks(turn: ModelTurn, kind: str, text: str) -> Iterator[str]:
    """Yield a block's text in the pieces of its turn, over and over if it is the endless one."""
    yield from split_text(text, turn.chunk_chars)
    if turn.endless == kind:
        until = time.monotonic() + turn.endless_seconds
        while time.monotonic() < until:
            yield from split_text(text, turn.chunk_chars)


def usage_body(usage: dict[str, int]) -> dict[str, Any]:
    """Return usage in the API's form: the durations of the cache writes are a table of its own."""
    plain = {name: count for name, count in usage.items() if name not in CACHE_WRITE_FIELDS}
    return {**plain, "cache_creation": {name: usage[name] for name in CACHE_WRITE_FIELDS}}


def format_sse(event: dict[str, Any]) -> bytes:
    """Return one event as a server-sent event."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode())


def error_body(kind: str, message: str) -> dict[str, Any]:
    """Return an error in the API's form."""
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_scripted"}


def model_list(ids: Iterable[str]) -> dict[str, Any]:
    """Return the answer of ``GET /v1/models``."""
    data = [
        {"type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z"}
        for name in ids
    ]
    return {"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}


def side_turn(request: ModelRequest) -> ModelTurn:
    """Return a harmless answer to a request of the CLI for itself."""
    wants_json = "json" in request.system.lower() or "output_config" in request.body
    return ModelTurn(text='{"title": "Scripted", "isNewTopic": false}' if wants_json else "Scripted")


def content_blocks(turn: ModelTurn, request: ModelRequest) -> list[dict[str, Any]]:
    """Return the blocks of an answer, with the variables filled in."""
    blocks: list[dict[str, Any]] = []
    if turn.thinking:
        blocks.append(
            {
                "type": "thinking",
                "thinking": fill_variables(turn.thinking, request),
                "signature": "c2NyaXB0ZWQ=",
            }
        )
    if turn.text:
        blocks.append({"type": "text", "text": fill_variables(turn.text, request)})
    for call in turn.tool:
        tool_use_id = f"toolu_{uuid.uuid4().hex[:24]}"
        blocks.append(
            {
                "type": "tool_use",
                "id": tool_use_id,
                "name": call.name,
                "input": fill_variables(call.input, request),
            }
        )
    return blocks


def token_counts(turn: ModelTurn, request: ModelRequest, blocks: list[dict[str, Any]]) -> dict[str, int]:
    """Return the tokens of an answer by the Messages API's names: those of the script, else grown from its text."""
    output_characters = sum(len(json.dumps(block)) for block in blocks)
    scripted = turn.usage
    cache_read = request.turn_index * _CACHED_TOKENS_PER_TURN
    cache_written = _or_default(scripted.cache_creation_input_tokens, _CACHED_TOKENS_PER_TURN)
    written_1h = min(scripted.ephemeral_1h_input_tokens, cache_written)
    return {
        "input_tokens": scripted.input_tokens,
        "cache_creation_input_tokens": cache_written,
        "cache_read_input_tokens": _or_default(scripted.cache_read_input_tokens, cache_read),
        "output_tokens": _or_default(scripted.output_tokens, max(1, output_characters // 4)),
        "ephemeral_5m_input_tokens": cache_written - written_1h,
        "ephemeral_1h_input_tokens": written_1h,
    }


def _or_default(claimed: int | None, otherwise: int) -> int:
    return otherwise if claimed is None else claimed


def _empty_block(block: dict[str, Any]) -> dict[str, Any]:
    empty: dict[str, dict[str, Any]] = {
        "thinking": {"thinking": "", "signature": ""},
        "text": {"text": ""},
        "tool_use": {"input": {}},
    }
    return {**block, **empty[block["type"]]}


def split_text(text: str, size: int) -> Iterator[str]:
    """Yield a text in pieces of a size."""
    for at in range(0, len(text), max(1, size)):
        yield text[at : at + max(1, size)]
