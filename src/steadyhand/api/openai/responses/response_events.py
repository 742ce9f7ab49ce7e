"""What happened in a job, told as the numbered events of the Responses API: of one response, if it gave several.

The events and their numbers follow from the job's kept events alone, so that a client that comes back after any of
them is told the same rest, also by a service that was started anew. What is told of a message before it is whole is
the beginning of what its kept event will say (`pieces`); a run in the background, which may go on in another life of
the service, is told of whole messages only.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from steadyhand.api.openai.output_spec import calls_of
from steadyhand.api.openai.responses.delta_splitter import Pieces, pieces_of
from steadyhand.api.openai.responses.resource import (
    Kept,
    function_item,
    message_item,
    over,
    response_json,
    status_of,
    text_part,
    tool_item,
)
from steadyhand.api.openai.text_assembler import Told
from steadyhand.api.openai.usage_since import Spending
from steadyhand.api.schemas import openai_bodies
from steadyhand.api.schemas.openai_bodies import ResponseEvent
from steadyhand.api.transport.errors import json_bytes
from steadyhand.events import (
    CallsAnswered,
    CallsWaiting,
    Event,
    Live,
    StateChanged,
    ToolFinished,
    ToolStarted,
)
from steadyhand.job import Job, State, Usage
from steadyhand.tool_calls import PREFIX

STRUCTURED_OUTPUT = "StructuredOutput"
"""The tool by which an agent gives its object: no work of its own that is worth telling."""
_TERMINAL = {"completed": "response.completed"}


class Story:
    """One telling of a response, from its job's first event on. `output` is what there is of the answer so far."""

    def __init__(self, kept: Kept) -> None:
        job, asked = kept.job, kept.asked
        self.kept = kept
        self._background = bool(asked.get("background"))
        self._forced: Mapping[str, Any] | None = asked.get("function")
        self._whole = job.output_schema is not None
        self.output: list[dict[str, Any]] = []
        self.length = 0
        self.over = False
        """Whether it ended with calls for the client to make."""
        self._answers = 0
        self._created: datetime | None = None
        self._finished: datetime | None = None
        self._spending = Spending(0)
        self._running = False
        self._told = Told()
        self._open: _Open | None = None
        self._tools: dict[str, int] = {}
        self._last_message = ""

    def take(self, item: Event | Live) -> list[ResponseEvent]:
        """Give the events that one thing that happened means."""
        if self.over:
            return []
        if isinstance(item, Live):
            return [] if self._whole or self._background else self._text(self._told.live(item))
        self._spending.take(item)
        if item.type == CallsAnswered.type:
            self._answers += 1
            return self._begin(item) if self._answers == self.kept.number else []
        if self._answers < self.kept.number:
            self._told.take(item)
            self._told.early()
            return []
        if item.type == CallsWaiting.type:
            return self._calls(item)
        told = self._happened(item)
        return told if self._whole or self._background else told + self._text(self._told.early())

    def _happened(self, item: Event) -> list[ResponseEvent]:
        message = self._told.take(item) is not None
        if item.type == StateChanged.type:
            return self._state(item.data)
        if message and not self._whole:
            self._last_message = item.data["text"]
            return self._whole_message(self._last_message)
        if item.type == ToolStarted.type:
            return self._tool_started(item.data)
        return self._tool_finished(item.data) if item.type == ToolFinished.type else []

    def _begin(self, item: Event) -> list[ResponseEvent]:
        """Begin with what came of the calls of the response before."""
        self._created, self._running = item.at, True
        self._spending.begin(item)
        return [*self._accepted(), self._snapshot("response.in_progress", "in_progress")]

    def _accepted(self) -> list[ResponseEvent]:
        status: openai_bodies.ResponseStatus = "queued" if self._background else "in_progress"
        told = [self._snapshot("response.created", status)]
        return [*told, self._snapshot("response.queued", status)] if self._background else told

    def _state(self, data: Mapping[str, Any]) -> list[ResponseEvent]:
        if data["from"] is None:
            return self._accepted()
        if data["to"] == State.RUNNING and not self._running:
            self._running = True
            return [self._snapshot("response.in_progress", "in_progress")]
        return []

    def _snapshot(self, kind: str, status: openai_bodies.ResponseStatus) -> ResponseEvent:
        return self._event(kind, response=response_json(self.kept, status, [], created=self._created))

    def _event(self, kind: str, **fields: Any) -> ResponseEvent:
        rest: Any = fields
        told: ResponseEvent = {"type": kind, "sequence_number": self.length, **rest}
        self.length += 1
        return told

    # --- messages --------------------------------------------------------------------------

    def _text(self, text: str) -> list[ResponseEvent]:
        if not text:
            return []
        told = [] if self._open is not None else self._begin_message()
        assert self._open is not None  # noqa: S101  # it was just begun
        return told + [self._delta(piece) for piece in self._open.cut.feed(text)]

    def _begin_message(self) -> list[ResponseEvent]:
        index = len(self.output)
        item_id = f"msg_{self.kept.mark}_{index}"
        self.output.append(message_item(item_id, None, "in_progress"))
        self._open = _Open(index, item_id)
        return [
            self._event("response.output_item.added", output_index=index, item=self.output[index]),
            self._event("response.content_part.added", **self._open.place, part=text_part("")),
        ]

    def _delta(self, piece: str) -> ResponseEvent:
        assert self._open is not None  # noqa: S101  # only within a message
        self._open.deltas += 1
        return self._event("response.output_text.delta", **self._open.place, delta=piece, logprobs=[])

    def _whole_message(self, text: str, status: str = "completed") -> list[ResponseEvent]:
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

    def _tool_started(self, data: Mapping[str, Any]) -> list[ResponseEvent]:
        name: str = data["name"]
        if self._whole and name == STRUCTURED_OUTPUT:
            return []
        if self.kept.job.tools and name.startswith(PREFIX):
            return []  # the client's own: told as a call once it is the client's turn
        index = len(self.output)
        item_id = f"mcp_{self.kept.mark}_{index}"
        arguments = json.dumps(data["input"], ensure_ascii=False)
        self.output.append(tool_item(item_id, name, arguments, "in_progress"))
        self._tools[data["tool_id"]] = index
        place = {"item_id": item_id, "output_index": index}
        begun = {**self.output[index], "arguments": ""}
        return [
            self._event("response.output_item.added", output_index=index, item=begun),
            self._event("response.mcp_call.in_progress", **place),
            self._event("response.mcp_call_arguments.delta", **place, delta=arguments),
            self._event("response.mcp_call_arguments.done", **place, arguments=arguments),
        ]

    def _tool_finished(self, data: Mapping[str, Any]) -> list[ResponseEvent]:
        index = self._tools.pop(data["tool_id"], None)
        if index is None:
            return []
        if data["is_error"]:
            content = [{"type": "text", "text": data["output"]}]
            error = {"type": "mcp_tool_execution_error", "content": content}
            return self._tool_done(index, "failed", error=error)
        return self._tool_done(index, "completed", output=data["output"])

    def _tool_done(self, index: int, status: str, **result: Any) -> list[ResponseEvent]:
        self.output[index] = {**self.output[index], "status": status, **result}
        item = self.output[index]
        told = [] if status == "incomplete" else [f"response.mcp_call.{status}"]
        place = {"item_id": item["id"], "output_index": index}
        return [
            *[self._event(kind, **place) for kind in told],
            self._event("response.output_item.done", output_index=index, item=item),
        ]

    # --- the end ---------------------------------------------------------------------------

    def _calls(self, item: Event) -> list[ResponseEvent]:
        """End with calls for the client to make: what comes of them begins another response."""
        told = self._rest_incomplete()
        for call in item.data["calls"]:
            told += self._call(call["id"], call["name"], json_bytes(call["arguments"]).decode("utf-8"))
        self.over, self._finished = True, item.at
        return [
            *told,
            self._event("response.completed", response=self._ended("completed", self._spending.since())),
        ]

    def end(self, job: Job) -> list[ResponseEvent]:
        """Give the last events, once nothing more will come of the job."""
        if self.over:
            return []
        status = status_of(job)
        told = self._rest_incomplete()
        if status == "completed":
            told += self._answer(job)
        self.kept, self._finished = replace(self.kept, job=job), job.finished_at
        response = self._ended(status, self._spending.rest(job))
        return [*told, self._event(_TERMINAL.get(status, "response.failed"), response=response)]

    def response(self, job: Job) -> openai_bodies.ResponseObject:
        """Give the whole response as it stands, once all that happened was taken and, of a job that is over, `end`."""
        if self.over:
            return self._ended("completed", self._spending.since())
        self.kept = replace(self.kept, job=job)
        usage = self._spending.rest(job) if over(job) else None
        return self._ended(status_of(job), usage)

    def _ended(
        self, status: openai_bodies.ResponseStatus, usage: Usage | None
    ) -> openai_bodies.ResponseObject:
        return response_json(
            self.kept, status, self.output, created=self._created, finished=self._finished, usage=usage
        )

    def _rest_incomplete(self) -> list[ResponseEvent]:
        told: list[ResponseEvent] = []
        if self._open is not None:
            told += self._whole_message(self._open.cut.all, "incomplete")
        for index in sorted(self._tools.values()):
            told += self._tool_done(index, "incomplete")
        self._tools.clear()
        return told

    def _answer(self, job: Job) -> list[ResponseEvent]:
        answer = job.answer or ""
        if self._whole and job.structured_output is not None:
            answer = json_bytes(job.structured_output).decode("utf-8")
        if self._forced is not None:
            return [each for call in calls_of(job, self._forced) for each in self._call(*call)]
        # The result is what the last message said; it differs when there was none.
        if not self._whole and answer.strip() == self._last_message.strip():
            return []
        return self._whole_message(answer) if answer else []

    def _call(self, call_id: str, name: str, arguments: str) -> list[ResponseEvent]:
        index = len(self.output)
        item_id = f"fc_{self.kept.mark}_{index}"
        begun = function_item(item_id, call_id, name, "", "in_progress")
        self.output.append(function_item(item_id, call_id, name, arguments, "completed"))
        place = {"item_id": item_id, "output_index": index}
        return [
            self._event("response.output_item.added", output_index=index, item=begun),
            self._event("response.function_call_arguments.delta", **place, delta=arguments),
            self._event("response.function_call_arguments.done", **place, arguments=arguments),
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
