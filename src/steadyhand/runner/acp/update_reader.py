"""Translates the updates of a session into events. Pure: the time is a parameter.

They are not trusted: the models of the protocol check their shape, and one of another shape is skipped. Usage is not
read: no two agents tell the same by it, and the ledger has it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from acp import schema
from pydantic import ValidationError

from steadyhand.events import (
    EventBody,
    Message,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolFinished,
    ToolStarted,
    WarningEvent,
)
from steadyhand.job_warnings import WarningCode
from steadyhand.runner.process.event_limits import (
    MAX_EVENTS,
    MAX_OUTPUT_BYTES,
    MAX_TEXT_BYTES,
    EventLimits,
    as_mapping,
    as_name,
    as_text,
    limit_input,
    truncate,
)
from steadyhand.text_lines import split_lines

PLAN_TOOL = "update_plan"
_MAX_NOTICE_LENGTH = 2000
_MAX_PLAN_ENTRIES = 200
_MAX_OPEN_TOOLS = 200
_TOOL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,63}")
_OWN_META = "claudeCode"
"""The part of an update's `_meta` that claude-agent-acp fills."""


@dataclass(slots=True)
class _Text:
    """A message or a thought whose chunks still come."""

    is_thought: bool
    id: str
    message_id: str | None
    pieces: list[str] = field(default_factory=list)
    size: int = 0


@dataclass(slots=True)
class _Tool:
    """A tool call that goes on, with all that is known of it so far."""

    id: str
    name: str
    started_at: float
    parent_id: str | None = None
    title: str = ""
    input: Mapping[str, Any] = field(default_factory=dict)
    output: str = ""
    diff: str = ""
    is_told: bool = False


class UpdateReader:
    """Reads the updates of one run, by its number, in order."""

    def __init__(self, run: int) -> None:
        self._run = run
        self._limits = EventLimits()
        self._text: _Text | None = None
        self._tools: dict[str, _Tool] = {}
        self._seen: set[str] = set()
        self._texts = 0
        self._plans = 0
        self.answer: str | None = None
        """The newest whole message."""

    def feed(self, params: Mapping[str, Any], now: float) -> Sequence[EventBody | TextDelta]:
        """Return the events of an update. `now` is in seconds of a monotonic clock."""
        try:
            update = schema.SessionNotification.model_validate(params).update
        except (ValidationError, RecursionError):
            return ()
        return self._count(self._read(update, now))

    def finish(self) -> Sequence[EventBody | TextDelta]:
        """Return the events of a text that was not complete at the end of a turn."""
        return self._count(self._end_text())

    def _count(self, events: Iterator[EventBody | TextDelta]) -> Sequence[EventBody | TextDelta]:
        return [self._limits.count(event) for event in events if not self._limits.reached]

    def _read(self, update: Any, now: float) -> Iterator[EventBody | TextDelta]:
        if isinstance(update, schema.AgentMessageChunk | schema.AgentThoughtChunk):
            yield from self._chunk(update)
        elif isinstance(update, schema.ToolCallStart | schema.ToolCallProgress):
            yield from self._tool(update, now)
        elif isinstance(update, schema.AgentPlanUpdate):
            yield from self._end_text()
            yield from self._plan(update)
        elif isinstance(update, schema.UsageUpdate):  # the model's message is complete
            yield from self._begin_tools()

    # --- text ------------------------------------------------------------------------------------

    def _chunk(
        self, update: schema.AgentMessageChunk | schema.AgentThoughtChunk
    ) -> Iterator[EventBody | TextDelta]:
        meta = as_mapping(as_mapping(update.field_meta).get(_OWN_META))
        piece = _text_of(update.content)
        if (
            meta.get("kind") == "informational"
        ):  # it speaks for itself, in the middle of a message of the model
            yield WarningEvent(WarningCode.AGENT_NOTICE, piece[:_MAX_NOTICE_LENGTH])
            return
        if meta.get("parentToolUseId") or not piece:  # a subagent speaks to the agent
            return
        yield from self._begin_tools()
        is_thought = isinstance(update, schema.AgentThoughtChunk)
        message_id = update.message_id
        text = self._text
        if text is None or text.is_thought != is_thought or text.message_id != message_id:
            yield from self._end_text()
            self._texts += 1
            text = self._text = _Text(is_thought, f"run{self._run}_text{self._texts}", message_id)
        if text.size < MAX_TEXT_BYTES:
            text.pieces.append(piece)
            text.size += len(piece)
            yield (ThinkingDelta if is_thought else TextDelta)(text.id, piece)

    def _end_text(self) -> Iterator[EventBody]:
        text, self._text = self._text, None
        if text is None:
            return
        whole = truncate("".join(text.pieces), MAX_TEXT_BYTES)[0]
        if text.is_thought:
            yield Thinking(whole)
        else:
            self.answer = whole
            yield Message("assistant", whole)

    # --- tools -----------------------------------------------------------------------------------

    def _tool(
        self, update: schema.ToolCallStart | schema.ToolCallProgress, now: float
    ) -> Iterator[EventBody]:
        call_id = as_name(update.tool_call_id)
        tool = self._tools.get(call_id)
        if tool is None:
            if call_id in self._seen or len(self._seen) >= MAX_EVENTS or len(self._tools) >= _MAX_OPEN_TOOLS:
                return  # it has ended, or there are too many to know
            yield from self._end_text()
            yield from self._begin_tools()
            self._seen.add(call_id)
            tool = self._tools[call_id] = _Tool(f"run{self._run}_{call_id}", _tool_name(update), now)
        _add(tool, update)
        has_ended = update.status in ("completed", "failed")
        if has_ended or (update.status == "in_progress" and tool.input):
            yield from _begin(tool)
        if has_ended:
            del self._tools[call_id]
            text = "\n".join(part for part in (tool.output, tool.diff) if part)
            output, truncated = truncate(text, MAX_OUTPUT_BYTES)
            duration = round((now - tool.started_at) * 1000)
            yield ToolFinished(tool.id, update.status == "failed", output, truncated, duration)

    def _begin_tools(self) -> Iterator[EventBody]:
        """Yield the calls that are complete though no status says so: something else follows them."""
        for tool in self._tools.values():
            if tool.input:
                yield from _begin(tool)

    def _plan(self, plan: schema.AgentPlanUpdate) -> Iterator[EventBody]:
        self._plans += 1
        tool_id = f"run{self._run}_plan{self._plans}"
        items = [
            {"text": entry.content[:_MAX_NOTICE_LENGTH], "completed": entry.status == "completed"}
            for entry in plan.entries[:_MAX_PLAN_ENTRIES]
        ]
        yield ToolStarted(tool_id, PLAN_TOOL, limit_input({"items": items}))
        yield ToolFinished(tool_id, is_error=False, output="", truncated=False, duration_ms=0)


def _begin(tool: _Tool) -> Iterator[EventBody]:
    if not tool.is_told:
        tool.is_told = True
        yield ToolStarted(tool.id, tool.name, tool.input or {"title": tool.title}, tool.parent_id)


def _tool_name(update: schema.ToolCallStart | schema.ToolCallProgress) -> str:
    """Return the name of a tool as the agent has it, or else its kind. A title may be a whole command."""
    own = as_mapping(as_mapping(update.field_meta).get(_OWN_META)).get("toolName")
    for name in (own, update.title):
        if isinstance(name, str) and _TOOL_NAME.fullmatch(name):
            return name
    return as_text(update.kind) or "other"


def _add(tool: _Tool, update: schema.ToolCallStart | schema.ToolCallProgress) -> None:
    """Add the fields of an update to a tool call."""
    tool.title = (update.title or tool.title)[:_MAX_NOTICE_LENGTH]
    if update.raw_input:
        tool.input = limit_input(as_mapping(update.raw_input))
    parent = as_mapping(as_mapping(update.field_meta).get(_OWN_META)).get("parentToolUseId")
    if isinstance(parent, str) and tool.parent_id is None:
        tool.parent_id = f"{tool.id.partition('_')[0]}_{as_name(parent)}"
    texts, diffs = [], []
    for content in update.content or ():
        if isinstance(content, schema.FileEditToolCallContent):
            diffs.append(_diff(content))
        elif isinstance(content, schema.ContentToolCallContent):
            texts.append(_text_of(content.content))
    if diffs:
        tool.diff = truncate("\n".join(diffs), MAX_OUTPUT_BYTES + 1)[0]
    if texts:
        tool.output = truncate("\n".join(texts), MAX_OUTPUT_BYTES + 1)[0]
    elif update.raw_output is not None and not update.content:
        raw = update.raw_output
        text = raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False)
        tool.output = truncate(text, MAX_OUTPUT_BYTES + 1)[0]


def _text_of(content: Any) -> str:
    if isinstance(content, schema.TextContentBlock):
        return content.text
    if isinstance(content, schema.ResourceContentBlock):
        return content.uri
    resource = getattr(content, "resource", None)
    return resource.text if isinstance(resource, schema.TextResourceContents) else ""


def _diff(content: schema.FileEditToolCallContent) -> str:
    """Return the change of a file: the lines before, then the lines after. To compare would take quadratic time."""
    lines = [f"--- {content.path}", f"+++ {content.path}"]
    lines += [f"-{line}" for line in split_lines(content.old_text or "")]
    lines += [f"+{line}" for line in split_lines(content.new_text)]
    return truncate("\n".join(lines), MAX_OUTPUT_BYTES)[0]
