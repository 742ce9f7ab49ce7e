"""Stdin and stdout: JSON lines out, and lines in without ever blocking a turn."""

from __future__ import annotations

import json
import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CHUNK = 1 << 16


class InvalidLine(Exception):
    """A line on stdin that is not JSON."""


class StdinReader:
    """JSON lines from stdin as they come; ``ended`` once the other side has closed it."""

    def __init__(self) -> None:
        self.ended = False
        self._buffer = b""

    def read_messages(self, seconds: float | None) -> list[dict[str, Any]]:
        """Return the messages that have come; wait at most so many seconds for the first (None: without end)."""
        end = None if seconds is None else time.monotonic() + seconds
        while not self.ended:
            seconds_left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([0], [], [], seconds_left)[0]:
                return []
            piece = os.read(0, _CHUNK)
            self.ended = not piece
            *lines, self._buffer = (self._buffer + piece).split(b"\n")
            if self.ended and self._buffer.strip():
                lines.append(self._buffer)
            messages = [_parse_line(line) for line in lines if line.strip()]
            if messages:
                return messages
        return []


def write_message(message: dict[str, Any]) -> None:
    """Write one message as a line on stdout."""
    write(json.dumps(message, separators=(",", ":")).encode() + b"\n")


def write(data: bytes, stream: int = 1) -> None:
    """Write all of these bytes, however the pipe accepts them."""
    view = memoryview(data)
    while view:
        view = view[os.write(stream, view) :]


def read_all() -> bytes:
    """Read all of stdin."""
    pieces: list[bytes] = []
    while True:
        piece = os.read(0, _CHUNK)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)


def _parse_line(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError as error:
        raise InvalidLine(
            f"Error parsing streaming input line (type=unknown, {len(line)} chars): SyntaxError"
        ) from error
    if not isinstance(message, dict):
        raise InvalidLine(
            f"Error parsing streaming input line (type=unknown, {len(line)} chars): not an object"
        )
    return message
