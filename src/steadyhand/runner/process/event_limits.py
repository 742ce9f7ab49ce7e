"""The bounds of the events of a run, and how values of an agent's messages are read. Pure.

Messages of an agent are not trusted: a value of a wrong shape is an empty one.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from steadyhand.events import (
    EventBody,
    Message,
    TextDelta,
    Thinking,
    ToolFinished,
    ToolStarted,
    WarningEvent,
)
from steadyhand.job_warnings import WarningCode

MAX_OUTPUT_BYTES = 64 * 1024
"""Most bytes of a tool's output in an event."""
MAX_TEXT_BYTES = 1024 * 1024
"""Most bytes of a message or of thinking in an event."""
MAX_INPUT_BYTES = 256 * 1024
"""Most bytes of a tool call's input, as JSON, in an event; a larger one is replaced by its size."""
MAX_EVENTS = 50_000
MAX_EVENT_BYTES = 64 * 1024 * 1024
"""Limits of one run: the number of its events, and the bytes of text in them."""
_MAX_NAME = 200
_SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class EventLimits:
    """Counts the events of a run. `reached` is True once there are too many, or too large ones."""

    def __init__(self) -> None:
        self.reached = False
        self._events = 0
        self._bytes = 0

    def count(self, event: EventBody | TextDelta) -> EventBody | TextDelta:
        """Return the event, or the warning in its place that the rest is left out."""
        if isinstance(event, TextDelta) or self.reached:
            return event
        self._events += 1
        self._bytes += _event_bytes(event)
        self.reached = self._events > MAX_EVENTS or self._bytes > MAX_EVENT_BYTES
        if self.reached:
            return WarningEvent(
                WarningCode.EVENTS_LEFT_OUT, "The agent has too many events to record; the rest is left out."
            )
        return event


def _event_bytes(event: EventBody) -> int:
    if isinstance(event, Message | Thinking):
        return len(event.text)
    if isinstance(event, ToolFinished):
        return len(event.output)
    if isinstance(event, ToolStarted):
        return len(json.dumps(event.input))
    return 0


def limit_input(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the input of a tool call, or its size in place of one that is too large."""
    size = len(json.dumps(arguments))
    return {"left_out": f"{size} bytes"} if size > MAX_INPUT_BYTES else arguments


def truncate(text: str, limit: int) -> tuple[str, bool]:
    """Cut text to `limit` bytes of UTF-8, never inside a character; return it, and True if it was cut."""
    if len(text) * 4 <= limit:
        return text, False
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return text, False
    return data[:limit].decode("utf-8", "ignore"), True


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return an object, or an empty one."""
    return value if isinstance(value, dict) else {}


def as_text(value: Any) -> str:
    """Return a text, or an empty one."""
    return value if isinstance(value, str) else ""


def as_name(value: Any) -> str:
    """Return the beginning of a text, as a name or an id, or an empty one."""
    return value[:_MAX_NAME] if isinstance(value, str) else ""


def parse_session_id(value: Any) -> str | None:
    """Return the id of a session, or None. Jobs are looked up by it, so it must be valid in a column of the store."""
    return value if isinstance(value, str) and _SESSION_ID.fullmatch(value) else None
