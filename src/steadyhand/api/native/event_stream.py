"""A job's events as the native route streams them."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from steadyhand.api.native.serializers import event_json
from steadyhand.api.transport.errors import json_bytes
from steadyhand.api.transport.sse import EventStreamResponse, Frame
from steadyhand.events import Event, LiveProgress, LiveText


def event_frame(item: Event | LiveText | LiveProgress) -> bytes:
    """Return an event as SSE bytes; live text has no `id`, so that a client never resumes from it."""
    body = event_json(item)
    id_line = f"id: {body['seq']}\n" if body["seq"] is not None else ""
    return f"{id_line}event: {body['type']}\ndata: ".encode() + json_bytes(body) + b"\n\n"


def event_stream_response(
    source: AsyncGenerator[Event | LiveText | LiveProgress, None], is_authorized: Callable[[], bool]
) -> EventStreamResponse:
    """Stream the events of a job's follower."""
    return EventStreamResponse(_event_frames(source), is_authorized, preamble=b": following\n\n")


async def _event_frames(
    source: AsyncGenerator[Event | LiveText | LiveProgress, None],
) -> AsyncGenerator[Frame, None]:
    async with aclosing(source) as items:
        async for item in items:
            yield Frame(event_frame(item))
