"""What happened in a job, told as the numbered events of the Responses API.

The events and their numbers follow from the job's kept events alone, so that a client that comes back after any of
them is told the same rest, also by a service that was started anew. What is told of a message before it is whole is
the beginning of what its kept event will say (`pieces`); a run in the background, which may go on in another life of
the service, is told of whole messages only.
"""

import json
from collections.abc import Mapping
from typing import Any

from steadyhand.api.openai.pieces import Pieces, pieces_of
from steadyhand.api.openai.resource import (
    function_item,
    message_item,
    response_json,
    text_part,
    tool_item,
)
from steadyhand.api.openai.told import Told
from steadyhand.api.problems import json_bytes
from steadyhand.events import Event, Live, StateChanged, ToolFinished, ToolStarted
from steadyhand.job import Job, State

STRUCTURED_OUTPUT = "StructuredOutput"
"""The tool by which an agent gives its object: no work of its own that is worth telling."""
_TERMINAL = {"completed": "response.completed"}

Telling = dict[str, Any]


class Story:
    """One telling of a job, from its first event on. `output` is what there is of the answer so far."""

    def __init__(self, job: Job) -> None:
        asked: Mapping[str, Any] = job.request or {}
        self._job = job
        self._background = bool(asked.get("background"))
        self._function: Mapping[str, Any] | None = asked.get("function")
        self._whole = job.output_schema is not None
        self.output: list[Telling] = []
        self.length = 0
        self._running = False
        self._told = Told()
        self._open: _Open | None = None
        self._tools: dict[str, int] = {}
        self._last_message = ""

    def take(self, item: Event | Live) -> list[Telling]:
        """Give the events that one thing that happened means."""
        if isinstance(item, Live):
            return [] if self._whole or self._background else self._text(self._told.live(item))
        message = self._told.take(item) is not None
        told: list[Telling] = []
        if item.type == StateChanged.type:
            told = self._state(item.data)
        elif message and not self._whole:
            self._last_message = item.data["text"]
            told = self._whole_message(self._last_message)
        elif item.type == ToolStarted.type:
            told = self._tool_started(item.data)
        elif item.type == ToolFinished.type:
            told = self._tool_finished(item.data)
        return told if self._whole or self._background else told + self._text(self._told.early())

    def _state(self, data: Mapping[str, Any]) -> list[Telling]:
        if data["from"] is None:
            status = "queued" if self._background else "in_progress"
            told = [self._snapshot("response.created", status)]
            return [*told, self._snapshot("response.queued", status)] if self._background else told
        if data["to"] == State.RUNNING and not self._running:
            self._running = True
            return [self._snapshot("response.in_progress", "in_progress")]
        return []

    def _snapshot(self, kind: str, status: str) -> Telling:
        return self._event(kind, response=response_json(self._job, status, []))

    def _event(self, kind: str, **fields: Any) -> Telling:
        told = {"type": kind, "sequence_number": self.length, **fields}
        self.length += 1
        return told

    # --- messages --------------------------------------------------------------------------

    def _text(self, text: str) -> list[Telling]:
        if not text:
            return []
        told = [] if self._open is not None else self._begin_message()
        assert self._open is not None  # noqa: S101  # it was just begun
        return told + [self._delta(piece) for piece in self._open.cut.feed(text)]

    def _begin_message(self) -> list[Telling]:
        index = len(self.output)
        item_id = f"msg_{self._job.id}_{index}"
        self.output.append(message_item(item_id, None, "in_progress"))
        self._open = _Open(index, item_id)
        return [
            self._event("response.output_item.added", output_index=index, item=self.output[index]),
            self._event("response.content_part.added", **self._open.place, part=text_part("")),
        ]

    def _delta(self, piece: str) -> Telling:
        assert self._open is not None  # noqa: S101  # only within a message
        self._open.deltas += 1
        return self._event("response.output_text.delta", **self._open.place, delta=piece, logprobs=[])

    def _whole_message(self, text: str, status: str = "completed") -> list[Telling]:
        told = [] if self._open is not None else self._begin_message()
        assert self._open is not None  # noqa: S101  # it was just begun
        # Pieces that were told before are the first of these; should the model have begun anew, `done` is the truth.
        told += [self._delta(piece) for piece in pieces_of(text)[self._open.deltas :]]
        place, index = self._open.place, self._open.index
        self.output[index] = message_item(self._open.item_id, text, status)
        self._open = None
        return [
            *told,
            self._event("response.output_text.done", **place, text=text, logprobs=[]),
            self._event("response.content_part.done", **place, part=text_part(text)),
            self._event("response.output_item.done", output_index=index, item=self.output[index]),
        ]

    # --- tools -----------------------------------------------------------------------------

    def _tool_started(self, data: Mapping[str, Any]) -> list[Telling]:
        if self._whole and data["name"] == STRUCTURED_OUTPUT:
            return []
        index = len(self.output)
        item_id = f"mcp_{self._job.id}_{index}"
        arguments = json.dumps(data["input"], ensure_ascii=False)
        self.output.append(tool_item(item_id, data["name"], arguments, "in_progress"))
        self._tools[data["tool_id"]] = index
        place = {"item_id": item_id, "output_index": index}
        begun = {**self.output[index], "arguments": ""}
        return [
            self._event("response.output_item.added", output_index=index, item=begun),
            self._event("response.mcp_call.in_progress", **place),
            self._event("response.mcp_call_arguments.delta", **place, delta=arguments),
            self._event("response.mcp_call_arguments.done", **place, arguments=arguments),
        ]

    def _tool_finished(self, data: Mapping[str, Any]) -> list[Telling]:
        index = self._tools.pop(data["tool_id"], None)
        if index is None:
            return []
        if data["is_error"]:
            content = [{"type": "text", "text": data["output"]}]
            error = {"type": "mcp_tool_execution_error", "content": content}
            return self._tool_done(index, "failed", error=error)
        return self._tool_done(index, "completed", output=data["output"])

    def _tool_done(self, index: int, status: str, **result: Any) -> list[Telling]:
        self.output[index] = {**self.output[index], "status": status, **result}
        item = self.output[index]
        told = [] if status == "incomplete" else [f"response.mcp_call.{status}"]
        place = {"item_id": item["id"], "output_index": index}
        return [
            *[self._event(kind, **place) for kind in told],
            self._event("response.output_item.done", output_index=index, item=item),
        ]

    # --- the end ---------------------------------------------------------------------------

    def end(self, job: Job, status: str) -> list[Telling]:
        """Give the last events, once nothing more will come; `status` is the API's word for how it ended."""
        told: list[Telling] = []
        if self._open is not None:
            told += self._whole_message(self._open.cut.all, "incomplete")
        for index in sorted(self._tools.values()):
            told += self._tool_done(index, "incomplete")
        self._tools.clear()
        if status == "completed":
            told += self._answer(job)
        response = response_json(job, status, self.output)
        return [*told, self._event(_TERMINAL.get(status, "response.failed"), response=response)]

    def _answer(self, job: Job) -> list[Telling]:
        answer = job.answer or ""
        if self._whole and job.structured_output is not None:
            answer = json_bytes(job.structured_output).decode("utf-8")
        if self._function is not None:
            return self._call(self._function["name"], answer)
        # The result is what the last message said; it differs when there was none.
        if not self._whole and answer.strip() == self._last_message.strip():
            return []
        return self._whole_message(answer) if answer else []

    def _call(self, name: str, arguments: str) -> list[Telling]:
        index = len(self.output)
        item_id, call_id = f"fc_{self._job.id}_{index}", f"call_{self._job.id}"
        begun = function_item(item_id, call_id, name, "", "in_progress")
        self.output.append(function_item(item_id, call_id, name, arguments, "completed"))
        place = {"item_id": item_id, "output_index": index}
        return [
            self._event("response.output_item.added", output_index=index, item=begun),
            self._event("response.function_call_arguments.delta", **place, delta=arguments),
            self._event("response.function_call_arguments.done", **place, name=name, arguments=arguments),
            self._event("response.output_item.done", output_index=index, item=self.output[index]),
        ]


class _Open:
    """A message that is being told."""

    def __init__(self, index: int, item_id: str) -> None:
        self.index = index
        self.item_id = item_id
        self.cut = Pieces()
        self.deltas = 0

    @property
    def place(self) -> dict[str, Any]:
        return {"item_id": self.item_id, "output_index": self.index, "content_index": 0}
