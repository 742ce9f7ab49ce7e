"""Translates the lines of `codex exec --json` into events. Pure: the time is a parameter.

They are not trusted: one of a wrong shape is skipped, and never raises. Usage is not read: after a resume the figure is
that of the whole session, and the ledger has the run's own.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from steadyhand.events import EventBody, Message, TextDelta, Thinking, ToolFinished, ToolStarted, WarningEvent
from steadyhand.job import OutcomeType
from steadyhand.job_warnings import WarningCode
from steadyhand.outcome import AgentResult
from steadyhand.runner.process.event_limits import (
    MAX_EVENTS,
    MAX_OUTPUT_BYTES,
    MAX_TEXT_BYTES,
    EventLimits,
    as_mapping,
    as_name,
    as_text,
    limit_input,
    parse_session_id,
    truncate,
)

_MAX_ERROR_LENGTH = 2000
_TOOL_NAMES = {
    "command_execution": "shell",
    "file_change": "apply_patch",
    "web_search": "web_search",
    "todo_list": "update_plan",
}
_FAILED = frozenset({"failed", "declined"})


class CodexReader:
    """Reads the lines of one run, by its number, in order. With `has_schema` its answer is an object."""

    def __init__(self, run: int, *, has_schema: bool) -> None:
        self._run = run
        self._has_schema = has_schema
        self.thread_id: str | None = None
        self.result: AgentResult | None = None
        """The result of the run, once its turn has ended."""
        self._limits = EventLimits()
        self._answer: str | None = None
        self._started_at: dict[str, float] = {}

    def feed(self, line: Mapping[str, Any], now: float) -> Sequence[EventBody | TextDelta]:
        """Return the events of a line. `now` is in seconds of a monotonic clock."""
        return [self._limits.count(event) for event in self._read(line, now) if not self._limits.reached]

    def _read(self, line: Mapping[str, Any], now: float) -> Iterator[EventBody]:
        kind, item = line.get("type"), as_mapping(line.get("item"))
        if kind == "thread.started":
            self.thread_id = parse_session_id(line.get("thread_id"))
        elif kind in ("item.started", "item.completed"):
            yield from self._item(item, now, is_complete=kind == "item.completed")
        elif kind == "turn.completed":
            self.result = self._ended(OutcomeType.SUCCESS, self._answer, line)
        elif kind == "turn.failed":
            message = as_text(as_mapping(line.get("error")).get("message"))[:_MAX_ERROR_LENGTH]
            self.result = self._ended(OutcomeType.AGENT_ERROR, None, line, message)

    def _ended(
        self, reported: OutcomeType, text: str | None, line: Mapping[str, Any], error: str | None = None
    ) -> AgentResult:
        return AgentResult(
            reported=reported,
            is_error=reported is not OutcomeType.SUCCESS,
            text=text,
            label=as_text(line.get("type")),
            structured_output=_parse_answer(text) if self._has_schema and text else None,
            errors=() if not error else (error,),
            session_id=self.thread_id,
            is_judged_by_calls=True,
            raw=line,
        )

    def _item(self, item: Mapping[str, Any], now: float, *, is_complete: bool) -> Iterator[EventBody]:
        kind = as_text(item.get("type"))
        item_id = f"run{self._run}_{as_name(item.get('id'))}"  # Codex counts them anew in each run
        if kind == "agent_message" and is_complete:
            self._answer = truncate(as_text(item.get("text")), MAX_TEXT_BYTES)[0]
            yield Message("assistant", self._answer)
        elif kind == "reasoning" and is_complete:
            yield Thinking(truncate(as_text(item.get("text")), MAX_TEXT_BYTES)[0])
        elif kind == "error":
            yield WarningEvent(WarningCode.AGENT_NOTICE, as_text(item.get("message"))[:_MAX_ERROR_LENGTH])
        elif kind in _TOOL_NAMES or kind == "mcp_tool_call":
            yield from self._tool(kind, item_id, item, now, is_complete=is_complete)

    def _tool(
        self, kind: str, item_id: str, item: Mapping[str, Any], now: float, *, is_complete: bool
    ) -> Iterator[EventBody]:
        if item_id not in self._started_at and len(self._started_at) < MAX_EVENTS:
            self._started_at[item_id] = now
            yield ToolStarted(item_id, _tool_name(kind, item), _tool_input(kind, item))
        if is_complete:
            output, truncated = truncate(_tool_output(kind, item), MAX_OUTPUT_BYTES)
            duration = round((now - self._started_at.get(item_id, now)) * 1000)
            is_error = item.get("status") in _FAILED or item.get("exit_code") not in (None, 0)
            yield ToolFinished(item_id, is_error, output, truncated, duration)


def _tool_name(kind: str, item: Mapping[str, Any]) -> str:
    if kind == "mcp_tool_call":
        return f"{as_text(item.get('server'))}.{as_text(item.get('tool'))}"[:256]
    return _TOOL_NAMES[kind]


def _tool_input(kind: str, item: Mapping[str, Any]) -> Mapping[str, Any]:
    if kind == "command_execution":
        values: Mapping[str, Any] = {"command": as_text(item.get("command"))}
    elif kind == "file_change":
        values = {"changes": item.get("changes")}
    elif kind == "web_search":
        values = {"query": as_text(item.get("query"))}
    elif kind == "todo_list":
        values = {"items": item.get("items")}
    else:
        values = as_mapping(item.get("arguments"))
    return limit_input(values)


def _tool_output(kind: str, item: Mapping[str, Any]) -> str:
    if kind == "command_execution":
        return as_text(item.get("aggregated_output"))
    if kind != "mcp_tool_call":
        return ""
    error = as_mapping(item.get("error")).get("message")
    return as_text(error) if error else json.dumps(item.get("result"), ensure_ascii=False)


def _parse_answer(text: str) -> Any:
    """Return the value of an answer that is JSON, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
