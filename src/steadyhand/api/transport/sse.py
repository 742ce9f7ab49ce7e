"""Server-Sent Events: one task writes, one reads the source, one waits for the client's disconnect."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import NamedTuple

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

DEFAULT_KEEPALIVE_SECONDS = 10.0
KEEPALIVE_COMMENT = b": ping\n\n"
"""A line that clients of an event stream ignore."""
"""The longest silence on a stream; then a comment is sent."""
_QUEUE_SIZE = 256


class Frame(NamedTuple):
    """Bytes of a stream."""

    data: bytes


class _ClientDisconnected(Exception):  # not an error: it ends the task group of one stream
    """The client has closed its connection."""


class EventStreamResponse(Response):
    """Streams the items of a source until it ends or the client disconnects; then the source is closed.

    The headers and `preamble`, if there is one, are sent at once. If `is_authorized` returns false, the stream is cut
    at the next frame or comment. `on_disconnect` is awaited if the client disconnects before the end.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        source: AsyncGenerator[Frame, None],
        is_authorized: Callable[[], bool],
        *,
        preamble: bytes = b"",
        keepalive_seconds: float | None = None,
        headers: Mapping[str, str] | None = None,
        on_disconnect: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        default_headers = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
        super().__init__(status_code=200, headers={**default_headers, **(headers or {})})
        del self.headers["content-length"]
        self._source = source
        self._is_authorized = is_authorized
        self._preamble = preamble
        self._keepalive_seconds = keepalive_seconds
        self._on_disconnect = on_disconnect

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response to one request."""
        queue: asyncio.Queue[Frame | None] = asyncio.Queue(_QUEUE_SIZE)
        disconnected = False
        try:
            async with asyncio.TaskGroup() as group:
                disconnect_watcher = group.create_task(_wait_for_disconnect(receive))
                reader = group.create_task(self._read_source(queue))
                await self._write_frames(queue, send)
                reader.cancel()
                disconnect_watcher.cancel()
        except* _ClientDisconnected:
            disconnected = True  # nobody is left to write to
        if disconnected and self._on_disconnect is not None:
            await self._on_disconnect()

    async def _read_source(self, queue: asyncio.Queue[Frame | None]) -> None:
        async with aclosing(self._source) as source:  # which gives its subscription back at once
            async for item in source:
                await queue.put(item)
        await queue.put(None)

    async def _write_frames(self, queue: asyncio.Queue[Frame | None], send: Send) -> None:
        # Bytes that say the stream is open go out before the first event, so that a client sees its headers.
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if self._preamble:
            await send({"type": "http.response.body", "body": self._preamble, "more_body": True})
        silence_seconds = (
            DEFAULT_KEEPALIVE_SECONDS if self._keepalive_seconds is None else self._keepalive_seconds
        )
        more = True
        while more:
            item: Frame | None
            try:
                async with asyncio.timeout(silence_seconds):
                    item = await queue.get()
            except TimeoutError:
                item = Frame(KEEPALIVE_COMMENT)
            if not self._is_authorized():
                item = None
            data, more = _drain_queue(queue, item)
            await send({"type": "http.response.body", "body": data, "more_body": more})


def _drain_queue(queue: asyncio.Queue[Frame | None], item: Frame | None) -> tuple[bytes, bool]:
    """Return the bytes of this frame and of those in the queue; false if the stream ends with them."""
    pieces: list[bytes] = []
    while item is not None:
        pieces.append(item.data)
        if queue.empty():
            return b"".join(pieces), True
        item = queue.get_nowait()
    return b"".join(pieces), False


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise _ClientDisconnected
