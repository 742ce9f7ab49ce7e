"""Server-Sent Events: one writer, one reader of the source, one ear for the client's leaving."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

from fastapi.sse import KEEPALIVE_COMMENT
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

KEEPALIVE_SECONDS = 10.0
"""The longest silence on a stream; a comment breaks it."""
_WAITING = 256


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a stream. One that does not `open` waits until something else has opened the stream."""

    data: bytes
    opens: bool = True


@dataclass(frozen=True, slots=True)
class Ending:
    """The last of a stream: `data`, or, while nothing has been sent yet, a whole response in place of the stream."""

    data: bytes
    instead: Response


Item = Piece | Ending


class _ClientLeft(Exception):  # not an error: it ends the task group of one stream
    """The client has closed its connection."""


class Stream(Response):
    """Streams what a source gives, until it ends or the client leaves; then the source is closed.

    With `patience` the answer begins with the first piece that opens it, or after so many seconds. A client that is
    no longer `welcome` is told nothing more: its stream is cut at the next piece or comment. `left` is awaited when
    the client went away before the end.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        source: AsyncIterator[Item],
        welcome: Callable[[], bool],
        *,
        opening: bytes = b"",
        patience: float = 0.0,
        keepalive: float | None = None,
        headers: Mapping[str, str] | None = None,
        left: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        fixed = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
        super().__init__(status_code=200, headers={**fixed, **(headers or {})})
        del self.headers["content-length"]
        # A source is a generator; closing it gives its subscription back at once.
        self._source = cast("AsyncGenerator[Item, None]", source)
        self._welcome = welcome
        self._opening = opening
        self._patience = patience
        self._keepalive = keepalive
        self._left = left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        queue: asyncio.Queue[Item | None] = asyncio.Queue(_WAITING)
        instead: Response | None = None
        gone = False
        try:
            async with asyncio.TaskGroup() as group:
                ear = group.create_task(_until_left(receive))
                reader = group.create_task(self._read(queue))
                instead = await self._write(queue, send)
                reader.cancel()
                ear.cancel()
        except* _ClientLeft:
            gone = True  # nobody is left to write to
        if gone and self._left is not None:
            await self._left()
        elif instead is not None:
            await instead(scope, receive, send)

    async def _read(self, queue: asyncio.Queue[Item | None]) -> None:
        async with aclosing(self._source) as source:
            async for item in source:
                await queue.put(item)
        await queue.put(None)

    async def _write(self, queue: asyncio.Queue[Item | None], send: Send) -> Response | None:
        """Write until the end; give what is to be answered when nothing was sent."""
        now = asyncio.get_running_loop().time
        opened = self._patience <= 0
        opens_at = now() + self._patience
        held: list[bytes] = []
        if opened:
            # Bytes that say the stream is open go out before the first event, so that a client sees its headers.
            await self._open(send, self._opening)
        while True:
            wait = (KEEPALIVE_SECONDS if self._keepalive is None else self._keepalive) if opened else None
            item: Item | None
            try:
                async with asyncio.timeout(max(0.0, opens_at - now()) if wait is None else wait):
                    item = await queue.get()
            except TimeoutError:
                item = Piece(KEEPALIVE_COMMENT)
            if not self._welcome():
                item = None
            pieces, last = _drained(queue, item)
            opening = any(piece.opens for piece in pieces)
            if not opened and not opening and isinstance(last, Ending):
                return last.instead
            held += [piece.data for piece in pieces]
            more = last is _MORE
            if not opened and not opening and more:
                continue
            if not opened:
                await self._open(send, b"")
                opened = True
            if isinstance(last, Ending):
                held.append(last.data)
            await send({"type": "http.response.body", "body": b"".join(held), "more_body": more})
            held.clear()
            if not more:
                return None

    async def _open(self, send: Send, first: bytes) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if first:
            await send({"type": "http.response.body", "body": first, "more_body": True})


class _More:
    """Says that a stream goes on."""


_MORE = _More()


def _drained(
    queue: asyncio.Queue[Item | None], item: Item | None
) -> tuple[list[Piece], Ending | _More | None]:
    """Give this item's pieces and those that wait, and how it goes on: null at the end."""
    pieces: list[Piece] = []
    while isinstance(item, Piece):
        pieces.append(item)
        if queue.empty():
            return pieces, _MORE
        item = queue.get_nowait()
    return pieces, item


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise _ClientLeft
