"""The light client, in a process of its own: so many POSTs over so many kept connections, as fast as they are answered.

It reads a JSON object on stdin (`host port path headers bodies connections`), sends every body once and prints
`{"seconds": .., "answers": [..]}`. It does no more for a request than to write bytes that were made beforehand and
to find the end of the answer, so that the server is what is measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

SECONDS = 120.0
_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length: "


class _Connection(asyncio.Protocol):
    def __init__(self, requests: Iterator[bytes], answers: list[bytes], done: asyncio.Future[None]) -> None:
        self._requests = requests
        self._answers = answers
        self.done = done
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self) -> None:
        request = next(self._requests, None)
        if request is None:
            if not self.done.done():
                self.done.set_result(None)
        elif self._transport is not None:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(_END_OF_HEAD)
        if end < 0:
            return
        head = self._buffer[:end]
        at = head.lower().find(_LENGTH) + len(_LENGTH)
        stop = head.find(b"\r\n", at)
        whole = end + 4 + int(head[at : stop if stop > 0 else None])
        if len(self._buffer) < whole:
            return
        if b" 202 " not in head[:16]:
            self._fail(f"{head[:64]!r} {self._buffer[end:whole]!r}")
            return
        self._answers.append(self._buffer[end + 4 : whole])
        self._buffer = b""
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the server closed the connection: {exc}")

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(why))


async def post_all(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Send every body; gives the seconds from the first byte sent to the last answer, and the answers."""
    head = "".join(f"{name}: {value}\r\n" for name, value in asked["headers"].items())
    requests = [
        f"POST {asked['path']} HTTP/1.1\r\nhost: {asked['host']}:{asked['port']}\r\n{head}"
        f"content-length: {len(body.encode())}\r\n\r\n{body}".encode()
        for body in asked["bodies"]
    ]
    waiting = iter(requests)
    answers: list[bytes] = []
    loop = asyncio.get_running_loop()
    connections = []
    for _ in range(asked["connections"]):
        connection = _Connection(waiting, answers, loop.create_future())
        await loop.create_connection(lambda made=connection: made, asked["host"], asked["port"])  # type: ignore[misc]
        connections.append(connection)
    began = time.monotonic()
    for connection in connections:
        connection.send()
    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*(connection.done for connection in connections))
    return {"seconds": time.monotonic() - began, "answers": [answer.decode() for answer in answers]}


def main() -> None:
    """Do as stdin says."""
    print(json.dumps(asyncio.run(post_all(json.load(sys.stdin)))))


if __name__ == "__main__":
    main()
