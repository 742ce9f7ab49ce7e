"""The Responses API on the wire: a turn as streamed events or as one response."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from steadyhand.testing import wire
from steadyhand.testing.openai_wire import OpenAIResponse
from steadyhand.testing.wire import StreamPart

Event = dict[str, Any]
Item = dict[str, Any]


class ResponsesResponse(OpenAIResponse):
    """One answer of the Responses API: reasoning, then a message, then tool calls, each an item of its output."""

    id_prefix = "resp_"

    def body(self) -> dict[str, Any]:
        """Return the response in the API's form without streaming."""
        return self._response(self._status, [self._item(block) for block in self.blocks])

    def stream_parts(self) -> Iterator[StreamPart]:
        """Yield the response as the API streams it; its usage is in the last event."""
        for number, event in enumerate(self._events()):
            data = wire.format_sse({**event, "sequence_number": number})
            is_last = event["type"] in ("response.completed", "response.incomplete")
            yield StreamPart(data, self.usage if is_last else {}, is_delta=event["type"].endswith(".delta"))

    def _events(self) -> Iterator[Event]:
        yield {"type": "response.created", "response": self._response("in_progress", [])}
        yield {"type": "response.in_progress", "response": self._response("in_progress", [])}
        deltas, output = 0, []
        for index, block in enumerate(self.blocks):
            item = self._item(block)
            output.append(item)
            for event in self._item_events(block, item):
                yield {**event, "output_index": index}
                deltas += event["type"].endswith(".delta")
                if self.is_cut_after(deltas):
                    return
        yield {"type": f"response.{self._status}", "response": self._response(self._status, output)}

    @property
    def _status(self) -> str:
        return "incomplete" if self.turn.stop_reason == "max_tokens" else "completed"

    def _item_events(self, block: dict[str, Any], item: Item) -> Iterator[Event]:
        yield {"type": "response.output_item.added", "item": _without_content(item)}
        if block["type"] == "thinking":
            yield from self._reasoning_events(block["thinking"], item["id"])
        elif block["type"] == "text":
            yield from self._message_events(block["text"], item)
        elif item["type"] != "local_shell_call":
            yield from _call_events(item)
        yield {"type": "response.output_item.done", "item": item}

    def _reasoning_events(self, text: str, item_id: str) -> Iterator[Event]:
        at = {"item_id": item_id, "summary_index": 0}
        empty, part = ({"type": "summary_text", "text": shown} for shown in ("", text))
        yield {"type": "response.reasoning_summary_part.added", **at, "part": empty}
        for piece in wire.text_chunks(self.turn, "thinking", text):
            yield {"type": "response.reasoning_summary_text.delta", **at, "delta": piece}
        yield {"type": "response.reasoning_summary_text.done", **at, "text": text}
        yield {"type": "response.reasoning_summary_part.done", **at, "part": part}

    def _message_events(self, text: str, item: Item) -> Iterator[Event]:
        at = {"item_id": item["id"], "content_index": 0}
        field = "refusal" if self.is_refusal else "text"
        kind = "response.refusal" if self.is_refusal else "response.output_text"
        part = item["content"][0]
        yield {"type": "response.content_part.added", **at, "part": {**part, field: ""}}
        for piece in wire.text_chunks(self.turn, "text", text):
            yield {"type": f"{kind}.delta", **at, "delta": piece}
        yield {"type": f"{kind}.done", **at, field: text}
        yield {"type": "response.content_part.done", **at, "part": part}

    def _item(self, block: dict[str, Any]) -> Item:
        if block["type"] == "thinking":
            summary = [{"type": "summary_text", "text": block["thinking"]}]
            return {**self._ids("rs", block), "type": "reasoning", "summary": summary}
        if block["type"] == "text":
            part: dict[str, Any] = {"type": "output_text", "text": block["text"], "annotations": []}
            if self.is_refusal:
                part = {"type": "refusal", "refusal": block["text"]}
            item: Item = {"type": "message", "status": "completed", "role": "assistant", "content": [part]}
            return {**self._ids("msg", block), **item}
        kind = self.request.tool_kind(block["name"])
        call = {"call_id": block["id"], "status": "completed"}
        if kind == "local_shell":
            return {**self._ids("lsh", block), "type": "local_shell_call", **call, "action": block["input"]}
        call["name"] = block["name"]
        if kind == "custom":
            text = str(block["input"].get("input", ""))
            return {**self._ids("ctc", block), "type": "custom_tool_call", **call, "input": text}
        arguments = json.dumps(block["input"])
        return {**self._ids("fc", block), "type": "function_call", **call, "arguments": arguments}

    def _ids(self, prefix: str, block: dict[str, Any]) -> dict[str, str]:
        """Return the id of a block's item, which is the same each time."""
        return {"id": f"{prefix}_{self.id.removeprefix(self.id_prefix)}{self.blocks.index(block)}"}

    def _response(self, status: str, output: list[Item]) -> dict[str, Any]:
        is_over = status != "in_progress"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": None,
            "metadata": {},
            "model": self.request.model,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": self._usage_body() if is_over else None,
        }

    def _usage_body(self) -> dict[str, Any]:
        output = self.usage["output_tokens"]
        return {
            "input_tokens": self.all_input_tokens,
            "input_tokens_details": {"cached_tokens": self.usage["cache_read_input_tokens"]},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.all_input_tokens + output,
        }


def _call_events(item: Item) -> Iterator[Event]:
    is_custom = item["type"] == "custom_tool_call"
    field = "input" if is_custom else "arguments"
    kind = "response.custom_tool_call_input" if is_custom else "response.function_call_arguments"
    for piece in wire.split_text(item[field], 40):
        yield {"type": f"{kind}.delta", "item_id": item["id"], "delta": piece}
    yield {"type": f"{kind}.done", "item_id": item["id"], field: item[field]}


def _without_content(item: Item) -> Item:
    """Return an item as it is before its first delta."""
    empty: dict[str, Any] = {
        "summary": [],
        "content": [],
        "arguments": "",
        "input": "",
        "status": "in_progress",
    }
    return {name: empty.get(name, value) for name, value in item.items()}
