"""OpenAI's wires: what Chat Completions and Responses share, and Chat Completions itself."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from steadyhand.testing import wire
from steadyhand.testing.request import ModelRequest
from steadyhand.testing.scenario import Failure, ModelToolCall, ModelTurn
from steadyhand.testing.tool_translation import translate
from steadyhand.testing.wire import StreamPart

ERRORS = {
    "authentication_error": ("invalid_request_error", "invalid_api_key"),
    "billing_error": ("insufficient_quota", "insufficient_quota"),
    "not_found_error": ("invalid_request_error", "model_not_found"),
    "permission_error": ("invalid_request_error", "unsupported_country_region_territory"),
    "rate_limit_error": ("requests", "rate_limit_exceeded"),
    "overloaded_error": ("server_error", "server_is_overloaded"),
    "api_error": ("server_error", "server_error"),
}
"""Type and code of OpenAI's errors by the Messages API's type; others keep their type and have no code."""
_OVERLOADED = 529
"""A status that only the Messages API has; OpenAI answers 503."""


class OpenAIResponse:
    """One answer on one of OpenAI's wires: blocks, and usage by the Messages API's names, as the model counts it.

    OpenAI bills cache writes as plain input, so they are a part of ``input_tokens`` here.
    """

    id_prefix = ""

    def __init__(self, turn: ModelTurn, request: ModelRequest) -> None:
        self.turn = turn
        self.request = request
        self.id = f"{self.id_prefix}{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.is_cut = turn.cut_after is not None
        self.is_refusal = turn.stop_reason == "refusal"
        self.blocks = [self._translated(block) for block in wire.content_blocks(turn, request)]
        counts = wire.token_counts(turn, request, self.blocks)
        self.usage = {
            "input_tokens": counts["input_tokens"] + counts["cache_creation_input_tokens"],
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": counts["cache_read_input_tokens"],
            "output_tokens": counts["output_tokens"],
        }
        self.reasoning_tokens = min(len(self.text_of("thinking")) // 4, counts["output_tokens"])

    @property
    def all_input_tokens(self) -> int:
        """Input as OpenAI counts it: cached tokens are within."""
        return self.usage["input_tokens"] + self.usage["cache_read_input_tokens"]

    def text_of(self, kind: str) -> str:
        """Return the text of the answer's ``text`` or ``thinking``."""
        return "".join(block[kind] for block in self.blocks if block["type"] == kind)

    def is_cut_after(self, deltas: int) -> bool:
        """Return whether the connection breaks after this number of deltas."""
        return self.turn.cut_after is not None and deltas >= self.turn.cut_after

    def _translated(self, block: dict[str, Any]) -> dict[str, Any]:
        if block["type"] != "tool_use":
            return block
        call = translate(ModelToolCall(block["name"], block["input"]), self.request)
        return {**block, "id": f"call_{uuid.uuid4().hex[:24]}", "name": call.name, "input": call.input}


class ChatResponse(OpenAIResponse):
    """One answer of Chat Completions."""

    id_prefix = "chatcmpl-"

    def body(self) -> dict[str, Any]:
        """Return the completion in the API's form without streaming."""
        calls = [self._call(block) for block in self.blocks if block["type"] == "tool_use"]
        text = self.text_of("text") or None
        message = {
            "role": "assistant",
            "content": None if self.is_refusal else text,
            "refusal": text if self.is_refusal else None,
            **({"reasoning_content": self.text_of("thinking")} if self.turn.thinking else {}),
            **({"tool_calls": calls} if calls else {}),
        }
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish_reason}
        return {**self._envelope("chat.completion"), "choices": [choice], "usage": self._usage_body()}

    def stream_parts(self) -> Iterator[StreamPart]:
        """Yield the completion as the API streams it; usage is told at the end to those that ask for it."""
        yield self._part({"role": "assistant", "content": ""})
        for deltas, delta in enumerate(self._deltas(), 1):
            yield self._part(delta, is_delta=True)
            if self.is_cut_after(deltas):
                return
        yield self._part({}, finish_reason=self._finish_reason)
        if self._tells_usage:
            chunk = {**self._envelope("chat.completion.chunk"), "choices": [], "usage": self._usage_body()}
            yield StreamPart(_data(json.dumps(chunk)), self.usage)
        yield StreamPart(_data("[DONE]"))

    @property
    def _tells_usage(self) -> bool:
        return bool((self.request.body.get("stream_options") or {}).get("include_usage"))

    @property
    def _finish_reason(self) -> str:
        if self.turn.stop_reason == "max_tokens":
            return "length"
        return "tool_calls" if self.turn.tool else "stop"

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.request.model}

    def _part(
        self, delta: dict[str, Any], *, is_delta: bool = False, finish_reason: str | None = None
    ) -> StreamPart:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = {**self._envelope("chat.completion.chunk"), "choices": [choice]}
        if self._tells_usage:
            chunk["usage"] = None
        return StreamPart(_data(json.dumps(chunk)), is_delta=is_delta)

    def _deltas(self) -> Iterator[dict[str, Any]]:
        calls = 0
        for block in self.blocks:
            if block["type"] == "thinking":
                for piece in wire.text_chunks(self.turn, "thinking", block["thinking"]):
                    yield {"reasoning_content": piece}
            elif block["type"] == "text":
                for piece in wire.text_chunks(self.turn, "text", block["text"]):
                    yield {"refusal" if self.is_refusal else "content": piece}
            else:
                call = self._call(block)
                arguments = call["function"].pop("arguments")
                call["function"]["arguments"] = ""
                yield {"tool_calls": [{"index": calls, **call}]}
                for piece in wire.split_text(arguments, 40):
                    yield {"tool_calls": [{"index": calls, "function": {"arguments": piece}}]}
                calls += 1

    def _call(self, block: dict[str, Any]) -> dict[str, Any]:
        function = {"name": block["name"], "arguments": json.dumps(block["input"])}
        return {"id": block["id"], "type": "function", "function": function}

    def _usage_body(self) -> dict[str, Any]:
        output = self.usage["output_tokens"]
        return {
            "prompt_tokens": self.all_input_tokens,
            "completion_tokens": output,
            "total_tokens": self.all_input_tokens + output,
            "prompt_tokens_details": {"cached_tokens": self.usage["cache_read_input_tokens"]},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }


def failure_answer(failure: Failure) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of an error in OpenAI's form."""
    kind, code = ERRORS.get(failure.type, (failure.type, None))
    error = {"message": failure.message, "type": kind, "param": None, "code": code}
    return 503 if failure.status == _OVERLOADED else failure.status, {"error": error}


def model_list(ids: Iterable[str]) -> dict[str, Any]:
    """Return the answer of ``GET /v1/models`` in OpenAI's form."""
    data = [
        {"id": name, "object": "model", "created": 1767225600, "owned_by": "steadyhand-testing"}
        for name in ids
    ]
    return {"object": "list", "data": data}


def _data(text: str) -> bytes:
    return b"data: %b\n\n" % text.encode()
