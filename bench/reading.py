"""The reader of streams, in a process of its own: it notes when each part of the text came, and parses afterwards.

It reads a JSON object on stdin (`host port requests field`), opens a connection for each request, prints a line once
all have an answer, and at the end of all streams a list for each: pairs of a time (ns) and the characters so far. With
`keys` it prints the time at which each match of `field` came last; with `stops` the end is another line on stdin.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

SECONDS = 150.0


class _Stream(asyncio.Protocol):
    def __init__(self, request: bytes, loop: asyncio.AbstractEventLoop) -> None:
        self._request = request
        self.came: list[tuple[int, bytes]] = []
        self.open: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.came.append((time.monotonic_ns(), data))
        if not self.open.done():
            self.open.set_result(None)

    def connection_lost(self, _exc: Exception | None) -> None:
        for future in (self.open, self.ended):
            if not future.done():
                future.set_result(None)

    def text(self, pattern: re.Pattern[bytes]) -> list[tuple[int, int]]:
        """Give when each part of the text came, and the characters of text until then."""
        found: list[tuple[int, int]] = []
        characters, rest = 0, b""
        for at, data in self.came:
            *lines, rest = (rest + data).split(b"\n")
            before = characters
            for line in lines:
                match = pattern.search(line)
                characters += len(match[1]) if match else 0
            if characters > before:
                found.append((at, characters))
        return found

    def keys(self, pattern: re.Pattern[bytes]) -> dict[str, int]:
        """Give when each key came last."""
        found: dict[str, int] = {}
        rest = b""
        for at, data in self.came:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                found.update((key.decode(), at) for key in pattern.findall(line))
        return found


async def read_all(asked: Mapping[str, Any]) -> list[Any]:
    """Send every request, and read until each stream has ended."""
    loop = asyncio.get_running_loop()
    streams = []
    async with asyncio.timeout(SECONDS):
        for request in asked["requests"]:
            stream = _Stream(request.encode(), loop)
            await loop.create_connection(lambda made=stream: made, asked["host"], asked["port"])  # type: ignore[misc]
            streams.append(stream)
        await asyncio.gather(*(stream.open for stream in streams))
        print("{}", flush=True)
        if asked.get("stops"):
            await asyncio.to_thread(sys.stdin.readline)
        else:
            await asyncio.gather(*(stream.ended for stream in streams))
    wrong = next((stream.came[:1] for stream in streams if b" 200 " not in stream.came[0][1][:16]), None)
    if wrong is not None:
        message = f"a stream was answered with {wrong!r}"
        raise RuntimeError(message)
    pattern = re.compile(asked["field"].encode())
    if asked.get("keys"):
        return [stream.keys(pattern) for stream in streams]
    return [stream.text(pattern) for stream in streams]


def main() -> None:
    """Do as stdin says."""
    print(json.dumps(asyncio.run(read_all(json.loads(sys.stdin.readline())))))


if __name__ == "__main__":
    main()
