"""Server-Sent Events: one task writes, one reads the source, one waits for the client's disconnect."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

from fastapi.sse import KEEPALIVE_COMMENT
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

DEFAULT_KEEPALIVE_SECONDS = 10.0
"""The longest silence on a stream; then a comment is sent."""
_QUEUE_SIZE = 256


@dataclass(frozen=True, slots=True)
class Frame:
    """Bytes of a stream. If `opens_stream` is false, they wait until another frame has opened the stream."""

    data: bytes
    opens_stream: bool = True


@dataclass(frozen=True, slots=True)
class FinalFrame:
    """The last frame of a stream: `data`, or, if nothing has been sent yet, a whole response instead of the stream."""

    data: bytes
    fallback: Response


StreamItem = Frame | FinalFrame


class _ClientDisconnected(Exception):  # not an error: it ends the task group of one stream
    """The client has closed its connection."""


class EventStreamResponse(Response):
    """Streams the items of a source until it ends or the client disconnects; then the source is closed.

    With `open_timeout_seconds` the response begins with the first frame that opens it, or after that time. If
    `is_authorized` returns false, the stream is cut at the next frame or comment. `on_disconnect` is awaited if
    the client disconnects before the end.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        source: AsyncIterator[StreamItem],
        is_authorized: Callable[[], bool],
        *,
        preamble: bytes = b"",
        open_timeout_seconds: float = 0.0,
        keepalive_seconds: float | None = None,
        headers: Mapping[str, str] | None = None,
        on_disconnect: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        default_headers = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
        super().__init__(status_code=200, headers={**default_headers, **(headers or {})})
        del self.headers["content-length"]
        # A source is a generator; closing it gives its subscription back at once.
        self._source = cast("AsyncGenerator[StreamItem, None]", source)
        self._is_authorized = is_authorized
        self._preamble = preamble
        self._open_timeout_seconds = open_timeout_seconds
        self._keepalive_seconds = keepalive_seconds
        self._on_disconnect = on_disconnect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response to one request."""
        queue: asyncio.Queue[StreamItem | None] = asyncio.Queue(_QUEUE_SIZE)
        fallback: Response | None = None
        disconnected = False
        try:
            async with asyncio.TaskGroup() as group:
                disconnect_watcher = group.create_task(_wait_for_disconnect(receive))
                reader = group.create_task(self._read_source(queue))
                fallback = await self._write_frames(queue, send)
                reader.cancel()
                disconnect_watcher.cancel()
        except* _ClientDisconnected:
            disconnected = True  # nobody is left to write to
        if disconnected and self._on_disconnect is not None:
            await self._on_disconnect()
        elif fallback is not None:
            await fallback(scope, receive, send)

    async def _read_source(self, queue: asyncio.Queue[StreamItem | None]) -> None:
        async with aclosing(self._source) as source:
            async for item in source:
                await queue.put(item)
        await queue.put(None)

    async def _write_frames(self, queue: asyncio.Queue[StreamItem | None], send: Send) -> Response | None:
        """Write until the end; return the fallback response if nothing was sent."""
        now = asyncio.get_running_loop().time
        opened = self._open_timeout_seconds <= 0
        opens_at = now() + self._open_timeout_seconds
        pending: list[bytes] = []
        if opened:
            # Bytes that say the stream is open go out before the first event, so that a client sees its headers.
            await self._send_headers(send, self._preamble)
        while True:
            silence_timeout = (
                (DEFAULT_KEEPALIVE_SECONDS if self._keepalive_seconds is None else self._keepalive_seconds)
                if opened
                else None
            )
            item: StreamItem | None
            try:
                async with asyncio.timeout(
                    max(0.0, opens_at - now()) if silence_timeout is None else silence_timeout
                ):
                    item = await queue.get()
            except TimeoutError:
                item = Frame(KEEPALIVE_COMMENT)
            if not self._is_authorized():
                item = None
            frames, last = _drain_queue(queue, item)
            has_opening_frame = any(frame.opens_stream for frame in frames)
            if not opened and not has_opening_frame and isinstance(last, FinalFrame):
                return last.fallback
            pending += [frame.data for frame in frames]
            more = last is _CONTINUES
            if not opened and not has_opening_frame and more:
                continue
            if not opened:
                await self._send_headers(send, b"")
                opened = True
            if isinstance(last, FinalFrame):
                pending.append(last.data)
            await send({"type": "http.response.body", "body": b"".join(pending), "more_body": more})
            pending.clear()
            if not more:
                return None

    async def _send_headers(self, send: Send, preamble: bytes) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if preamble:
            await send({"type": "http.response.body", "body": preamble, "more_body": True})


class _StreamContinues:
    """Marks that more items follow."""


_CONTINUES = _StreamContinues()


def _drain_queue(
    queue: asyncio.Queue[StreamItem | None], item: StreamItem | None
) -> tuple[list[Frame], FinalFrame | _StreamContinues | None]:
    """Return the frames of this item and of those in the queue, and the end: a final frame, `_CONTINUES` or None."""
    frames: list[Frame] = []
    while isinstance(item, Frame):
        frames.append(item)
        if queue.empty():
            return frames, _CONTINUES
        item = queue.get_nowait()
    return frames, item


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise _ClientDisconnected
