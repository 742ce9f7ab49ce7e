"""The newest state of an agent's todo list, from the calls of the tools that write it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steadyhand.events import Event, StateChanged, ToolFinished, ToolStarted
from steadyhand.ports import ToolNames
from steadyhand.web.plain_text import visible_text

MAX_ENTRIES = 100
_MAX_TEXT = 500
_NUMBER = re.compile(r"#(\d{1,9})")


@dataclass(frozen=True, slots=True)
class TodoEntry:
    """One entry, as text that is not escaped yet. Its `state` is `open`, `now` or `done`."""

    text: str
    state: str


def todo_tools(names: ToolNames) -> frozenset[str]:
    """Return the names of the tools that write a todo list."""
    return frozenset({names.todo_list, names.create_todo, names.update_todo})


def todo_list(events: Sequence[Event], names: ToolNames) -> Sequence[TodoEntry]:
    """Return the entries after these events; a retry begins with an empty list, a failed call changes nothing."""
    results = {
        (event.run, event.data.get("tool_id")): event for event in events if event.type == ToolFinished.type
    }
    entries: dict[str, TodoEntry] = {}
    for event in events:
        if event.type == StateChanged.type and event.data.get("reason") == "retry":
            entries = {}
        if event.type != ToolStarted.type:
            continue
        result = results.get((event.run, event.data.get("tool_id")))
        values = event.data.get("input")
        if not isinstance(values, Mapping) or (result is not None and result.data.get("is_error")):
            continue
        name = event.data.get("name")
        if name == names.todo_list and not event.data.get("parent_tool_id"):
            entries = dict(enumerate_entries(values.get("todos")))
        elif name == names.create_todo and len(entries) < MAX_ENTRIES:
            output = "" if result is None else str(result.data.get("output", ""))
            match = _NUMBER.search(output)
            number = match[1] if match is not None else str(len(entries) + 1)
            entries[number] = TodoEntry(_text(values.get("subject")), "open")
        elif name == names.update_todo:
            _update(entries, values)
    return list(entries.values())


def enumerate_entries(todos: Any) -> Sequence[tuple[str, TodoEntry]]:
    """Return the entries of a list as a tool's input has it, by their numbers."""
    return [
        (str(number), TodoEntry(_text(each.get("content")), _state(each.get("status"))))
        for number, each in enumerate(todos[:MAX_ENTRIES] if isinstance(todos, list) else (), 1)
        if isinstance(each, Mapping)
    ]


def _update(entries: dict[str, TodoEntry], values: Mapping[str, Any]) -> None:
    number = str(values.get("taskId", ""))
    entry = entries.get(number)
    if entry is None:
        return
    if values.get("status") == "deleted":
        del entries[number]
        return
    state = _state(values["status"]) if "status" in values else entry.state
    entries[number] = TodoEntry(_text(values["subject"]) if "subject" in values else entry.text, state)


def _state(status: Any) -> str:
    return {"completed": "done", "in_progress": "now"}.get(status if isinstance(status, str) else "", "open")


def _text(value: Any) -> str:
    return visible_text(value[:_MAX_TEXT]) if isinstance(value, str) else ""
