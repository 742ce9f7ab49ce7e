"""The parser of a stream of server-sent events."""

import json
from collections.abc import Iterator
from typing import Any

from steadyhand.errors import ServiceUnreachable

_MAX_LINE_BYTES = 32 * 1024 * 1024


def parse_server_sent_events(chunks: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """Parse server-sent events whose data is one JSON object; comments and unknown fields are skipped.

    Lines end at line feeds only: the JSON may contain characters that Unicode counts as line ends.
    """
    data: list[bytes] = []
    for line in _lines(chunks):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            try:
                event = json.loads(b"\n".join(data))
            except (ValueError, RecursionError) as error:
                raise ServiceUnreachable(
                    "The stream of events contains an unreadable line.", code="bad_answer"
                ) from error
            data.clear()
            if isinstance(event, dict):
                yield event


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    partial: list[bytes] = []
    size = 0
    for chunk in chunks:
        *lines, remainder = chunk.split(b"\n")
        for line in lines:
            yield b"".join([*partial, line]).removesuffix(b"\r")
            partial.clear()
            size = 0
        if remainder:
            partial.append(remainder)
            size += len(remainder)
        if size > _MAX_LINE_BYTES:
            raise ServiceUnreachable(
                "The stream of events contains a line that is too long.", code="bad_answer"
            )
