"""Server-Sent Events: one writer, one reader of the source, one ear for the client's leaving."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

from fastapi.sse import KEEPALIVE_COMMENT
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

DEFAULT_KEEPALIVE_SECONDS = 10.0
"""The longest silence on a stream; a comment breaks it."""
_QUEUE_SIZE = 256


@dataclass(frozen=True, slots=True)
class Frame:
    """Bytes of a stream. One that does not `open` waits until something else has opened the stream."""

    data: bytes
    opens_stream: bool = True


@dataclass(frozen=True, slots=True)
class FinalFrame:
    """The last of a stream: `data`, or, while nothing has been sent yet, a whole response in place of the stream."""

    data: bytes
    fallback: Response


StreamItem = Frame | FinalFrame


class _ClientDisconnected(Exception):  # not an error: it ends the task group of one stream
    """The client has closed its connection."""


class EventStreamResponse(Response):
    """Streams what a source gives, until it ends or the client leaves; then the source is closed.

    With `patience` the answer begins with the first piece that opens it, or after so many seconds. A client that is
    no longer `welcome` is told nothing more: its stream is cut at the next piece or comment. `left` is awaited when
    the client went away before the end.
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
        """Answer one request."""
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
        """Write until the end; give what is to be answered when nothing was sent."""
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
    """Says that a stream goes on."""


_CONTINUES = _StreamContinues()


def _drain_queue(
    queue: asyncio.Queue[StreamItem | None], item: StreamItem | None
) -> tuple[list[Frame], FinalFrame | _StreamContinues | None]:
    """Give this item's pieces and those that wait, and how it goes on: null at the end."""
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
