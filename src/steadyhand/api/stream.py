"""Events as a stream (Server-Sent Events): one writer, one reader of the job, one ear for the client's leaving."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import cast

from fastapi.sse import KEEPALIVE_COMMENT
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from steadyhand.api.problems import json_bytes
from steadyhand.api.render import event_json
from steadyhand.events import Event, Live

KEEPALIVE_SECONDS = 10.0
"""The longest silence on a stream; a comment breaks it."""
_WAITING = 256


class _ClientLeft(Exception):  # not an error: it ends the task group of one stream
    """The client has closed its connection."""


def event_bytes(item: Event | Live) -> bytes:
    """Give an event as it stands on the wire; live text has no `id`, so that a client never resumes from it."""
    body = event_json(item)
    number = f"id: {body['seq']}\n" if body["seq"] is not None else ""
    return f"{number}event: {body['type']}\ndata: ".encode() + json_bytes(body) + b"\n\n"


class EventStream(Response):
    """Streams what a job's follower gives, until it ends or the client leaves; then the follower is let go.

    A client that is no longer `welcome` is told nothing more: its stream is cut at the next event or comment.
    """

    media_type = "text/event-stream"

    def __init__(self, source: AsyncIterator[Event | Live], welcome: Callable[[], bool]) -> None:
        super().__init__(
            status_code=200,
            headers={"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"},
        )
        del self.headers["content-length"]
        # `follow` is a generator; closing it gives its subscription back at once.
        self._welcome = welcome
        self._source = cast("AsyncGenerator[Event | Live, None]", source)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI's signature
        """Answer one request."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        queue: asyncio.Queue[Event | Live | None] = asyncio.Queue(_WAITING)
        try:
            async with asyncio.TaskGroup() as group:
                ear = group.create_task(_until_left(receive))
                reader = group.create_task(self._read(queue))
                await _write(queue, send, self._welcome)
                reader.cancel()
                ear.cancel()
        except* _ClientLeft:
            pass  # nobody is left to write to

    async def _read(self, queue: asyncio.Queue[Event | Live | None]) -> None:
        async with aclosing(self._source) as source:
            async for item in source:
                await queue.put(item)
        await queue.put(None)


async def _write(queue: asyncio.Queue[Event | Live | None], send: Send, welcome: Callable[[], bool]) -> None:
    # Bytes that say the stream is open go out before the first event, so that a client sees its headers at once.
    await send({"type": "http.response.body", "body": b": following\n\n", "more_body": True})
    while True:
        try:
            async with asyncio.timeout(KEEPALIVE_SECONDS):
                item = await queue.get()
        except TimeoutError:
            if welcome():
                await send({"type": "http.response.body", "body": KEEPALIVE_COMMENT, "more_body": True})
                continue
            item = None
        if not welcome():
            item = None
        pieces: list[bytes] = []
        while item is not None:
            pieces.append(event_bytes(item))
            if queue.empty():
                break
            item = queue.get_nowait()
        await send({"type": "http.response.body", "body": b"".join(pieces), "more_body": item is not None})
        if item is None:
            return


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise _ClientLeft
