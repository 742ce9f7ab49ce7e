"""The events of a job as the numbered events of one response of the Responses API.

The events and their numbers depend on the job's stored events alone, so that a client that reconnects after any of
them gets the same rest, also after a restart of the service. Text sent before a message is whole is the beginning of
its stored event (`delta_splitter`). A run in the background may continue after a restart; its stream has whole messages
only.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from steadyhand.api.openai.client_tools import is_own_tool, namespaces_of
from steadyhand.api.openai.output_spec import final_calls
from steadyhand.api.openai.request_document import get_document
from steadyhand.api.openai.responses.delta_splitter import split_into_deltas
from steadyhand.api.openai.responses.resource import (
    StoredResponse,
    function_call_item,
    mcp_call_item,
    response_json,
    response_status,
)
from steadyhand.api.openai.responses.text_items import (
    LIVE_KINDS,
    MESSAGE,
    REASONING,
    REFUSAL,
    OpenItem,
    TextKind,
)
from steadyhand.api.openai.run_failure import refusal_text
from steadyhand.api.openai.text_assembler import TextAssembler
from steadyhand.api.openai.usage_since import UsageSince
from steadyhand.api.schemas import openai_bodies
from steadyhand.api.schemas.openai_bodies import ResponseEvent
from steadyhand.api.transport.errors import json_bytes
from steadyhand.events import (
    Event,
    LiveProgress,
    LiveText,
    Message,
    PhaseStarted,
    StateChanged,
    Thinking,
    ToolCallsAnswered,
    ToolCallsRequested,
    ToolFinished,
    ToolStarted,
)
from steadyhand.job import Job, State, Usage
from steadyhand.ports import ToolNames

_FINAL_EVENT_TYPES = {"completed": "response.completed"}


class ResponseEvents:
    """Builds the events of one response, from its job's first event on. `output` is the answer so far."""

    def __init__(self, stored: StoredResponse, tool_names: ToolNames) -> None:
        job, request = stored.job, stored.request
        self.stored = stored
        self._tool_names = tool_names
        self._background = bool(request.get("background"))
        self._forced_call = request.get("function")
        # The tools of a run are those of its first request.
        self._namespaces = namespaces_of(get_document(job).get("echo", {}).get("tools", ()))
        self._is_structured = job.spec.output_schema is not None
        self.output: list[dict[str, Any]] = []
        self.event_count = 0
        self.ended_with_calls = False
        """Return True if it ended with calls for the client to make."""
        self._answered_rounds = 0
        self._created_at: datetime | None = None
        self._finished_at: datetime | None = None
        self._answered_at: datetime | None = None
        self._usage = UsageSince(0)
        self._running = False
        self._assembler = TextAssembler()
        self._open_item: OpenItem | None = None
        reasoning = request.get("echo", {}).get("reasoning") or {}
        self._summarizes = reasoning.get("summary") is not None
        self._open_tools: dict[str, int] = {}
        self._messages: list[str] = []

    def feed(self, item: Event | LiveText | LiveProgress) -> list[ResponseEvent]:
        """Return the events for one event or piece of live text of the job; none for the progress of a phase."""
        if self.ended_with_calls or isinstance(item, LiveProgress):
            return []
        if isinstance(item, LiveText):
            return self._live_text(item)
        self._usage.feed(item)
        if item.type == PhaseStarted.type and item.data["phase"] == "harvesting":
            self._answered_at = item.at
        if item.type == ToolCallsAnswered.type:
            self._answered_rounds += 1
            return self._begin_next_response(item) if self._answered_rounds == self.stored.number else []
        if self._answered_rounds < self.stored.number:
            self._assembler.feed(item)
            self._assembler.drain_early()
            return []
        if item.type == ToolCallsRequested.type:
            return self._end_with_calls(item)
        events = self._convert(item)
        for early in self._assembler.drain_early():
            events += self._live_text(early)
        return events

    def _convert(self, item: Event) -> list[ResponseEvent]:
        is_message = self._assembler.feed(item) is not None and item.type == Message.type
        if item.type == StateChanged.type:
            return self._state_changed(item.data)
        if is_message and not self._is_structured:
            self._messages.append(item.data["text"])
            return self._finish_item(MESSAGE, item.data["text"])
        if item.type == Thinking.type:
            return self._finish_item(REASONING, item.data["text"])
        if item.type == ToolStarted.type:
            return self._tool_started(item.data)
        return self._tool_finished(item.data) if item.type == ToolFinished.type else []

    def _begin_next_response(self, item: Event) -> list[ResponseEvent]:
        """Start the response after the results of the previous response's calls."""
        self._created_at, self._running = item.at, True
        self._usage.restart_at(item)
        return [*self._created_events(), self._snapshot("response.in_progress", "in_progress")]

    def _created_events(self) -> list[ResponseEvent]:
        status: openai_bodies.ResponseStatus = "queued" if self._background else "in_progress"
        events = [self._snapshot("response.created", status)]
        return [*events, self._snapshot("response.queued", status)] if self._background else events

    def _state_changed(self, data: Mapping[str, Any]) -> list[ResponseEvent]:
        if data["from"] is None:
            return self._created_events()
        if data["to"] == State.RUNNING and not self._running:
            self._running = True
            return [self._snapshot("response.in_progress", "in_progress")]
        return []

    def _snapshot(self, event_type: str, status: openai_bodies.ResponseStatus) -> ResponseEvent:
        return self._make_event(
            event_type, response=response_json(self.stored, status, [], created_at=self._created_at)
        )

    def _make_event(self, event_type: str, **fields: Any) -> ResponseEvent:
        rest: Any = fields
        event: ResponseEvent = {"type": event_type, "sequence_number": self.event_count, **rest}
        self.event_count += 1
        return event

    # --- messages and thinking -------------------------------------------------------------

    def _live_text(self, item: LiveText) -> list[ResponseEvent]:
        kind = LIVE_KINDS[item.body.type]
        if self._background or (self._is_structured and kind is MESSAGE):
            return []
        text = self._assembler.feed_live(item)
        if not text:
            return []
        events, open_item = self._begin_item(kind)
        if not self._shows_text(kind):
            return events
        events += self._begin_part(open_item)
        deltas = open_item.splitter.feed_live(text, item.taken_back)
        return events + [self._text_delta(open_item, delta) for delta in deltas]

    def _shows_text(self, kind: TextKind) -> bool:
        return kind is not REASONING or self._summarizes

    def _begin_item(self, kind: TextKind) -> tuple[list[ResponseEvent], OpenItem]:
        """Return the open item, begun with these events unless one of this kind is open."""
        if self._open_item is not None and self._open_item.kind is kind:
            return [], self._open_item
        events = self._close_open_item()
        index = len(self.output)
        self._open_item = OpenItem(kind, index, self.stored.id_suffix)
        self.output.append(kind.make_item(self._open_item.id, [], "in_progress"))
        events.append(
            self._make_event("response.output_item.added", output_index=index, item=self.output[index])
        )
        return events, self._open_item

    def _begin_part(self, item: OpenItem) -> list[ResponseEvent]:
        if item.has_part:
            return []
        item.has_part = True
        return [self._make_event(f"{item.kind.part_event}.added", **item.ids, part=item.kind.make_part(""))]

    def _text_delta(self, item: OpenItem, delta: str) -> ResponseEvent:
        item.delta_count += 1
        return self._make_event(f"{item.kind.text_event}.delta", **item.ids, delta=delta, **item.kind.fields)

    def _finish_item(self, kind: TextKind, text: str, status: str = "completed") -> list[ResponseEvent]:
        events, item = self._begin_item(kind)
        parts = []
        if self._shows_text(kind) and (text or kind is not REASONING):
            part, fields = kind.make_part(text), {kind.text_key: text, **kind.fields}
            events += self._begin_part(item)
            # Pieces that were told before are the first of these; if the model has begun anew, `done` is the truth.
            events += [self._text_delta(item, delta) for delta in split_into_deltas(text)[item.delta_count :]]
            events.append(self._make_event(f"{kind.text_event}.done", **item.ids, **fields))
            events.append(self._make_event(f"{kind.part_event}.done", **item.ids, part=part))
            parts.append(part)
        self.output[item.index] = kind.make_item(item.id, parts, status)
        self._open_item = None
        done = self._make_event(
            "response.output_item.done", output_index=item.index, item=self.output[item.index]
        )
        return [*events, done]

    def _close_open_item(self) -> list[ResponseEvent]:
        if self._open_item is None:
            return []
        return self._finish_item(self._open_item.kind, self._open_item.splitter.text, "incomplete")

    # --- tools -----------------------------------------------------------------------------

    def _tool_started(self, data: Mapping[str, Any]) -> list[ResponseEvent]:
        name: str = data["name"]
        if not is_own_tool(self.stored.job.spec, self._tool_names, name):
            return []
        index = len(self.output)
        item_id = f"mcp_{self.stored.id_suffix}_{index}"
        arguments = json.dumps(data["input"], ensure_ascii=False)
        self.output.append(mcp_call_item(item_id, name, arguments, "in_progress"))
        self._open_tools[data["tool_id"]] = index
        ids = {"item_id": item_id, "output_index": index}
        started_item = {**self.output[index], "arguments": ""}
        return [
            self._make_event("response.output_item.added", output_index=index, item=started_item),
            self._make_event("response.mcp_call.in_progress", **ids),
            self._make_event("response.mcp_call_arguments.delta", **ids, delta=arguments),
            self._make_event("response.mcp_call_arguments.done", **ids, arguments=arguments),
        ]

    def _tool_finished(self, data: Mapping[str, Any]) -> list[ResponseEvent]:
        index = self._open_tools.pop(data["tool_id"], None)
        if index is None:
            return []
        if data["is_error"]:
            content = [{"type": "text", "text": data["output"]}]
            error = {"type": "mcp_tool_execution_error", "content": content}
            return self._finish_tool(index, "failed", error=error)
        return self._finish_tool(index, "completed", output=data["output"])

    def _finish_tool(self, index: int, status: str, **result: Any) -> list[ResponseEvent]:
        self.output[index] = {**self.output[index], "status": status, **result}
        item = self.output[index]
        event_types = [] if status == "incomplete" else [f"response.mcp_call.{status}"]
        ids = {"item_id": item["id"], "output_index": index}
        return [
            *[self._make_event(event_type, **ids) for event_type in event_types],
            self._make_event("response.output_item.done", output_index=index, item=item),
        ]

    # --- the end ---------------------------------------------------------------------------

    def _end_with_calls(self, item: Event) -> list[ResponseEvent]:
        """End with calls for the client; their results start another response."""
        events = self._close_open_items()
        for call in item.data["calls"]:
            events += self._function_call_events(
                call["id"], call["name"], json_bytes(call["arguments"]).decode("utf-8")
            )
        self.ended_with_calls, self._finished_at = True, item.at
        return [
            *events,
            self._make_event(
                "response.completed", response=self._final_json("completed", self._usage.so_far())
            ),
        ]

    def finish(self, job: Job) -> list[ResponseEvent]:
        """Return the last events, once the job has no more events."""
        if self.ended_with_calls:
            return []
        status = response_status(job)
        events = self._close_open_items()
        refusal = refusal_text(job)
        if refusal is not None:
            events += self._finish_item(REFUSAL, refusal)
        elif status == "completed":
            events += self._final_answer(job)
        self.stored, self._finished_at = replace(self.stored, job=job), job.finished_at
        if status == "completed" and self._answered_at is not None:
            self._finished_at = self._answered_at  # the same before and after the end of the run
        response = self._final_json(status, self._usage.final(job))
        return [
            *events,
            self._make_event(_FINAL_EVENT_TYPES.get(status, "response.failed"), response=response),
        ]

    def to_json(self, job: Job) -> openai_bodies.ResponseObject:
        """Return the whole response; feed all events first and, if the job has ended, call `finish`."""
        if self.ended_with_calls:
            return self._final_json("completed", self._usage.so_far())
        self.stored = replace(self.stored, job=job)
        usage = self._usage.final(job) if job.is_final else None
        return self._final_json(response_status(job), usage)

    def _final_json(
        self, status: openai_bodies.ResponseStatus, usage: Usage | None
    ) -> openai_bodies.ResponseObject:
        return response_json(
            self.stored,
            status,
            self.output,
            created_at=self._created_at,
            finished_at=self._finished_at,
            usage=usage,
        )

    def _close_open_items(self) -> list[ResponseEvent]:
        events = self._close_open_item()
        for index in sorted(self._open_tools.values()):
            events += self._finish_tool(index, "incomplete")
        self._open_tools.clear()
        return events

    def _final_answer(self, job: Job) -> list[ResponseEvent]:
        answer = job.answer or ""
        if self._is_structured and job.structured_output is not None:
            answer = json_bytes(job.structured_output).decode("utf-8")
        if self._forced_call is not None:
            return [
                each
                for call in final_calls(job, self._forced_call)
                for each in self._function_call_events(*call)
            ]
        # The result is what the last messages said; it differs when there was none.
        if not self._is_structured and "\n\n".join(self._messages).strip().endswith(answer.strip()):
            return []
        return self._finish_item(MESSAGE, answer) if answer else []

    def _function_call_events(self, call_id: str, name: str, arguments: str) -> list[ResponseEvent]:
        index = len(self.output)
        item_id = f"fc_{self.stored.id_suffix}_{index}"
        namespace, own_name = self._namespaces.get(name, (None, name))
        item = function_call_item(item_id, call_id, own_name, arguments, namespace=namespace)
        started_item = {**item, "arguments": "", "status": "in_progress"}
        self.output.append(item)
        ids = {"item_id": item_id, "output_index": index}
        return [
            self._make_event("response.output_item.added", output_index=index, item=started_item),
            self._make_event("response.function_call_arguments.delta", **ids, delta=arguments),
            self._make_event("response.function_call_arguments.done", **ids, arguments=arguments),
            self._make_event("response.output_item.done", output_index=index, item=self.output[index]),
        ]
