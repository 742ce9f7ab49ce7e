"""Server-Sent Events: one task reads the source and writes, one fills silences, one waits for the disconnect."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

DEFAULT_KEEPALIVE_SECONDS = 10.0
"""The longest silence on a stream; then a comment is sent."""
KEEPALIVE_COMMENT = b": ping\n\n"
"""A line that clients of an event stream ignore."""
MAX_CACHED_BYTES = 4 << 20
"""The bytes that are kept for other streams; those that follow live need the newest few."""
_MAX_CACHED_FRAME = MAX_CACHED_BYTES // 16
WRITE_CHUNK_SCOPE_KEY = "steadyhand.write_chunk"
"""The key in the ASGI scope of the server's function that writes a `framed_chunk` of the response at once.

It returns False, and writes nothing, if the response has not begun, or if its client reads more slowly than is written.
"""
T = TypeVar("T")


class Frame(NamedTuple):
    """Bytes of a stream that are sent together: whole events."""

    data: bytes


def joined_frame(frames: Sequence[Frame]) -> Frame:
    """Return frames as one."""
    return frames[0] if len(frames) == 1 else Frame(b"".join(frame.data for frame in frames))


class FrameCache:
    """The bytes of items that several streams send, rendered once for all; the oldest are forgotten."""

    def __init__(self) -> None:
        self._frames: dict[Hashable, tuple[object, bytes]] = {}
        self._size = 0

    def get(self, key: Hashable, item: T, render: Callable[[T], bytes]) -> bytes:
        """Return the bytes of an item, rendered unless an equal one was rendered by this key before."""
        entry = self._frames.get(key)
        if entry is not None and (entry[0] is item or entry[0] == item):
            return entry[1]
        data = render(item)
        if entry is None and len(data) <= _MAX_CACHED_FRAME:
            self._frames[key] = (item, data)
            self._size += len(data)
            while self._size > MAX_CACHED_BYTES:
                self._size -= len(self._frames.pop(next(iter(self._frames)))[1])
        return data


def framed_chunk(data: bytes) -> bytes:
    """Return bytes as a chunk of a response body (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class DirectWriter:
    """Writes items to the client of one stream without a step of its task, once its response has begun."""

    def __init__(self, chunk: Callable[[Any], bytes]) -> None:
        """Create it; `chunk` returns the framed bytes of some items."""
        self._chunk = chunk
        self._write_chunk: Callable[[bytes], bool] | None = None
        self._is_authorized: Callable[[], bool] = bool
        self._loop = asyncio.get_running_loop()
        self.written_at = 0.0
        """The time of the event loop at which something was written last."""

    def open(self, write_chunk: Callable[[bytes], bool] | None, is_authorized: Callable[[], bool]) -> None:
        """Begin to write, while the key of the client is valid."""
        self._write_chunk, self._is_authorized = write_chunk, is_authorized

    def write(self, items: Any) -> bool:
        """Write items and return True, or return False: the stream's task sends them then, when it can."""
        write_chunk = self._write_chunk
        if write_chunk is None or not self._is_authorized() or not write_chunk(self._chunk(items)):
            return False
        self.written_at = self._loop.time()
        return True


class _ClientDisconnected(Exception):  # not an error: it ends the task group of one stream
    """The client has closed its connection."""


class _Unauthorized(Exception):  # not an error either
    """The key of the client is no longer valid."""


class EventStreamResponse(Response):
    """Streams the items of a source until it ends or the client disconnects; then the source is closed.

    The headers and `preamble`, if there is one, are sent at once. If `is_authorized` returns false, the stream is cut
    at the next frame or comment. `on_disconnect` is awaited if the client disconnects before the end. What
    `direct_writer` writes does not come from the source.
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
        direct_writer: DirectWriter | None = None,
    ) -> None:
        default_headers = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
        super().__init__(status_code=200, headers={**default_headers, **(headers or {})})
        del self.headers["content-length"]
        self._source = source
        self._is_authorized = is_authorized
        self._preamble = preamble
        self._keepalive_seconds = keepalive_seconds
        self._on_disconnect = on_disconnect
        self._direct_writer = direct_writer
        self._silent_since = 0.0
        self._is_sending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response to one request."""
        disconnected = False
        try:
            async with asyncio.TaskGroup() as group:
                disconnect_watcher = group.create_task(_wait_for_disconnect(receive))
                # Bytes that say the stream is open go out before the first event, so that a client sees its headers.
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                if self._preamble:
                    await self._send(send, self._preamble)
                if self._direct_writer is not None:
                    self._direct_writer.open(scope.get(WRITE_CHUNK_SCOPE_KEY), self._is_authorized)
                keepalive = group.create_task(self._fill_silence(send))
                async with aclosing(self._source) as source:  # which gives its subscription back at once
                    async for frame in source:
                        self._check_authorization()
                        await self._send(send, frame.data)
                keepalive.cancel()
                disconnect_watcher.cancel()
        except* _ClientDisconnected:
            disconnected = True  # nobody is left to write to
        except* _Unauthorized:
            pass
        if not disconnected:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        elif self._on_disconnect is not None:
            await self._on_disconnect()

    async def _send(self, send: Send, data: bytes) -> None:
        self._is_sending = True
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._is_sending = False
        self._silent_since = asyncio.get_running_loop().time()

    async def _fill_silence(self, send: Send) -> None:
        """Send a comment whenever nothing was sent for a time; a client that is slow to read gets none."""
        loop = asyncio.get_running_loop()
        seconds = DEFAULT_KEEPALIVE_SECONDS if self._keepalive_seconds is None else self._keepalive_seconds
        self._silent_since = loop.time()
        while True:
            if self._direct_writer is not None:
                self._silent_since = max(self._silent_since, self._direct_writer.written_at)
            left = self._silent_since + seconds - loop.time()
            if left > 0 or self._is_sending:
                await asyncio.sleep(left if left > 0 else seconds)
            else:
                self._check_authorization()
                await self._send(send, KEEPALIVE_COMMENT)

    def _check_authorization(self) -> None:
        if not self._is_authorized():
            raise _Unauthorized


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise _ClientDisconnected
