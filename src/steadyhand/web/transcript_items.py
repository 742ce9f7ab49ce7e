"""The events of a job as the items of a readable transcript: tool calls with their results, texts, notes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from steadyhand.events import (
    BudgetNear,
    EgressRefused,
    Event,
    Message,
    PhaseStarted,
    StateChanged,
    SteerAccepted,
    SteerDropped,
    SteerUsed,
    Thinking,
    ToolCallsAnswered,
    ToolCallsRequested,
    ToolFinished,
    ToolStarted,
    UsageReported,
    WarningEvent,
    budget_near_text,
)
from steadyhand.web.plain_text import shortened, visible_text

MAX_DEPTH = 3
"""The levels of subagents that are nested. A call of a deeper one, and one whose parent is not on the page, stands in
the list itself; so it is in `live_item.html`, too."""
MAX_TEXT = 60_000
"""Characters of one text on the page; the transcript has all of it."""
_MAX_SUMMARY = 160
_SUMMARY_FIELDS = (
    "description",
    "command",
    "file_path",
    "path",
    "pattern",
    "url",
    "query",
    "prompt",
    "skill",
)
"""The fields of a tool's input of which the first one there names the call in one line."""


@dataclass(frozen=True, slots=True)
class TranscriptItem:
    """One item. `kind` names its form in the template; `data` has its values, as text that is not escaped yet.

    `children` are the tool calls of the subagent that this tool call has started.
    """

    kind: str
    seq: int
    at: Any
    run: int
    data: Mapping[str, Any]
    children: "list[TranscriptItem]" = field(default_factory=list)


def tool_anchor(run: int, tool_id: str) -> str:
    """Return the id of a tool call's element; the tool's own id is the agent's text."""
    return "tool-" + hashlib.sha256(f"{run} {tool_id}".encode("utf-8", "replace")).hexdigest()[:16]


def cut_text(value: Any) -> Mapping[str, Any]:
    """Return a text that can be shown, and the number of characters that are left out."""
    text, omitted = shortened(value if isinstance(value, str) else json.dumps(value), MAX_TEXT)
    return {"text": visible_text(text), "omitted": omitted}


def result_data(event: Event) -> Mapping[str, Any]:
    """Return the values of a tool's result."""
    data = event.data
    return {
        **cut_text(data.get("output", "")),
        "is_error": bool(data.get("is_error")),
        "is_cut": bool(data.get("truncated")),
        "duration_ms": data.get("duration_ms"),
    }


def _tool_data(event: Event) -> Mapping[str, Any]:
    name, tool_input = event.data.get("name", ""), event.data.get("input")
    if not isinstance(tool_input, Mapping):
        tool_input = {} if tool_input is None else {"input": tool_input}
    summary = next(
        (tool_input[field] for field in _SUMMARY_FIELDS if isinstance(tool_input.get(field), str)), ""
    )
    lines = [(str(key), cut_text(value)) for key, value in tool_input.items()]
    return {
        "anchor": tool_anchor(event.run, str(event.data.get("tool_id", ""))),
        "parent": tool_anchor(event.run, str(parent)) if (parent := event.data.get("parent_tool_id")) else "",
        "name": visible_text(str(name))[:_MAX_SUMMARY],
        "summary": visible_text(" ".join(summary[: 4 * _MAX_SUMMARY].split()))[:_MAX_SUMMARY],
        "fields": lines,
        "todos": _todos(tool_input),
        "result": None,
    }


def _todos(tool_input: Mapping[str, Any]) -> Sequence[Mapping[str, str]]:
    """Return the entries of a todo list, if the tool's input is one."""
    entries = tool_input.get("todos")
    if not isinstance(entries, list):
        return ()
    return [
        {"text": visible_text(str(each.get("content", "")))[:500], "status": str(each.get("status", ""))}
        for each in entries[:100]
        if isinstance(each, dict)
    ]


def transcript_item(event: Event) -> TranscriptItem | None:
    """Return the item of an event; None for one that only changes another item or the head of the page."""
    kind, data = _KINDS.get(event.type), event.data
    if kind is None:
        return None
    values: Mapping[str, Any] = {**_ABSENT, **data}
    if kind == "tool":
        values = _tool_data(event)
    elif kind in ("message", "thinking"):
        values = {"role": data.get("role", ""), **cut_text(data.get("text", ""))}
    elif kind in ("steer", "steer_mark"):
        mark = {SteerUsed.type: "used", SteerDropped.type: "dropped"}.get(event.type, "read")
        anchor = tool_anchor(event.run, str(data.get("steer_id", "")))
        values = {"anchor": anchor, "mark": mark, **cut_text(data.get("text", ""))}
    elif event.type == BudgetNear.type:
        values = {**_ABSENT, "code": event.type, "message": budget_near_text(data)}
    elif kind == "calls":
        calls = data.get("calls", ())
        values = {
            "calls": [
                (visible_text(str(each.get("name", ""))), cut_text(each.get("arguments", "")))
                for each in calls
            ]
        }
    return TranscriptItem(kind, event.seq, event.at, event.run, values)


_KINDS = {
    Message.type: "message",
    Thinking.type: "thinking",
    ToolStarted.type: "tool",
    ToolCallsRequested.type: "calls",
    ToolCallsAnswered.type: "answered",
    EgressRefused.type: "egress",
    BudgetNear.type: "warning",
    WarningEvent.type: "warning",
    PhaseStarted.type: "phase",
    StateChanged.type: "state",
    SteerAccepted.type: "steer",
    SteerUsed.type: "steer_mark",
    SteerDropped.type: "steer_mark",
}
_ABSENT: Mapping[str, Any] = {
    **dict.fromkeys(("to", "outcome", "reason", "phase", "detail", "host", "code", "message"), ""),
    "ids": (),
}
"""Values of events that an earlier version stored without them."""
CHANGES_HEAD = frozenset({StateChanged.type, UsageReported.type, WarningEvent.type, PhaseStarted.type})
"""The events that change the figures and buttons of a job's page."""


def transcript_items(events: Sequence[Event]) -> Sequence[TranscriptItem]:
    """Return the items of stored events, with the result of a tool in its call, and subagents in theirs."""
    results = {
        tool_anchor(event.run, str(event.data.get("tool_id", ""))): event
        for event in events
        if event.type == ToolFinished.type
    }
    marks = {
        item.data["anchor"]: item.data["mark"]
        for event in events
        if event.type in (SteerUsed.type, SteerDropped.type) and (item := transcript_item(event)) is not None
    }
    items: list[TranscriptItem] = []
    parents: dict[str, tuple[int, TranscriptItem]] = {}
    for event in events:
        item = transcript_item(event)
        if item is None:
            continue
        if item.kind == "tool" and (result := results.get(item.data["anchor"])) is not None:
            item = TranscriptItem(
                item.kind, item.seq, item.at, item.run, {**item.data, "result": result_data(result)}
            )
        if item.kind == "steer":
            mark = marks.get(item.data["anchor"], "read")
            item = replace(item, data={**item.data, "mark": mark})
        if item.kind != "tool":
            items += [] if item.kind == "steer_mark" else [item]
            continue
        depth, parent = parents.get(item.data["parent"], (0, None))
        if parent is None or depth > MAX_DEPTH:
            depth = 0
        (items if parent is None or not depth else parent.children).append(item)
        parents.setdefault(item.data["anchor"], (depth + 1, item))
    return items
