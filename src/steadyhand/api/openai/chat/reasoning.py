"""The reasoning of a chat completion: thinking of the model and calls of the agent's own tools, as its alias says."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from steadyhand.api.transport.context import ReasoningMode
from steadyhand.events import Event, Thinking, ToolStarted

_MAX_INPUT_LENGTH = 200


class ReasoningText:
    """Joins the parts of one answer's reasoning; each method returns the text that it adds, empty for none."""

    def __init__(self, mode: ReasoningMode, is_own_tool: Callable[[str], bool]) -> None:
        """Create it; `is_own_tool` returns false for the name of a tool that the client itself has set."""
        self._shows_thinking = mode in ("thinking", "all")
        self._shows_tools = mode in ("tools", "all")
        self._is_own_tool = is_own_tool
        self._in_thinking = False
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self._pieces)

    def add_event(self, event: Event) -> str:
        """Add whole thinking or the start of a tool."""
        if event.type == Thinking.type:
            return self.add_thinking(event.data["text"], is_last=True)
        return self.add_tool(event.data) if event.type == ToolStarted.type else ""

    def add_thinking(self, text: str, *, is_last: bool) -> str:
        """Add a piece of thinking."""
        added = ""
        if text and self._shows_thinking:
            added = self._add(text, begins=not self._in_thinking)
            self._in_thinking = True
        if is_last:
            self._in_thinking = False
        return added

    def add_tool(self, data: Mapping[str, Any]) -> str:
        """Add the call of a tool as one line: its name, and its input in short."""
        if not self._shows_tools or not self._is_own_tool(data["name"]):
            return ""
        self._in_thinking = False
        tool_input = json.dumps(data["input"], ensure_ascii=False)
        if len(tool_input) > _MAX_INPUT_LENGTH:
            tool_input = f"{tool_input[:_MAX_INPUT_LENGTH]}…"
        return self._add(f"{tool_name(data)} {tool_input}\n", begins=True)

    def _add(self, text: str, *, begins: bool) -> str:
        if begins and self._pieces and not self._pieces[-1].endswith("\n"):
            text = f"\n\n{text}"
        self._pieces.append(text)
        return text


def tool_name(data: Mapping[str, Any]) -> str:
    """Return the name of a tool that started, on one line."""
    return " ".join(str(data["name"]).split())[:80] or "unknown"
