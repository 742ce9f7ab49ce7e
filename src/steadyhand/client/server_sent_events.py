"""The parser of a stream of server-sent events."""

import json
from collections.abc import Iterator
from typing import Any

from steadyhand.errors import ServiceUnreachable

_MAX_EVENT_BYTES = 32 * 1024 * 1024
_END_OF_RESPONSES = b"[DONE]"


class ServerSentEventParser:
    """Parses server-sent events whose data is one JSON object; comments, unknown fields and `[DONE]` are skipped.

    Lines end at line feeds only: the JSON may contain characters that Unicode counts as line ends.
    """

    def __init__(self) -> None:
        self._partial: list[bytes] = []
        self._size = 0
        self._data: list[bytes] = []
        self._data_size = 0

    def feed(self, chunk: bytes) -> Iterator[dict[str, Any]]:
        """Yield the events that end in this part of the stream."""
        for line in self._lines(chunk):
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._data_size += len(line)
                _check_size(self._data_size)
            elif not line and self._data:
                data = b"\n".join(self._data)
                self._data.clear()
                self._data_size = 0
                event = None if data == _END_OF_RESPONSES else _parse(data)
                if isinstance(event, dict):
                    yield event

    def _lines(self, chunk: bytes) -> Iterator[bytes]:
        *lines, remainder = chunk.split(b"\n")
        for line in lines:
            yield b"".join([*self._partial, line]).removesuffix(b"\r")
            self._partial.clear()
            self._size = 0
        if remainder:
            self._partial.append(remainder)
            self._size += len(remainder)
        _check_size(self._size)


def _check_size(size: int) -> None:
    if size > _MAX_EVENT_BYTES:
        raise ServiceUnreachable(
            "The stream of events contains an event that is too long.", code="bad_answer"
        )


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ServiceUnreachable(
            "The stream of events contains an unreadable line.", code="bad_answer"
        ) from error
