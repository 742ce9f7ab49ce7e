"""A job's events as the native route streams them."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import cast

from steadyhand.api.native.serializers import event_json
from steadyhand.api.transport.errors import json_bytes
from steadyhand.api.transport.sse import Item, Piece, Stream
from steadyhand.events import Event, Live


def event_bytes(item: Event | Live) -> bytes:
    """Give an event as it stands on the wire; live text has no `id`, so that a client never resumes from it."""
    body = event_json(item)
    number = f"id: {body['seq']}\n" if body["seq"] is not None else ""
    return f"{number}event: {body['type']}\ndata: ".encode() + json_bytes(body) + b"\n\n"


def event_stream(source: AsyncIterator[Event | Live], welcome: Callable[[], bool]) -> Stream:
    """Stream what a job's follower gives, as the native route shows it."""
    return Stream(_written(source), welcome, opening=b": following\n\n")


async def _written(source: AsyncIterator[Event | Live]) -> AsyncIterator[Item]:
    async with aclosing(cast("AsyncGenerator[Event | Live, None]", source)) as items:
        async for item in items:
            yield Piece(event_bytes(item))
