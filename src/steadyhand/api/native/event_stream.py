"""A job's events as the native route streams them."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from steadyhand.api.native.serializers import event_json
from steadyhand.api.transport.errors import json_bytes
from steadyhand.api.transport.sse import DirectWriter, EventStreamResponse, Frame, FrameCache, framed_chunk
from steadyhand.event_log import WriteItems
from steadyhand.events import Event, LiveProgress, LiveText

StreamItem = Event | LiveText | LiveProgress


def event_frame(item: StreamItem) -> bytes:
    """Return an event as SSE bytes; live text has no `id`, so that a client never resumes from it."""
    body = event_json(item)
    id_line = f"id: {body['seq']}\n" if body["seq"] is not None else ""
    return f"{id_line}event: {body['type']}\ndata: ".encode() + json_bytes(body) + b"\n\n"


def event_stream_response(
    follow: Callable[[WriteItems], AsyncGenerator[Sequence[StreamItem], None]],
    is_authorized: Callable[[], bool],
    cache: FrameCache,
) -> EventStreamResponse:
    """Stream the events of a job's follower; an event is rendered once for all followers, by way of the cache."""

    def chunk(items: Sequence[StreamItem]) -> bytes:
        return framed_chunk(b"".join(cache.get(_cache_key(item), item, event_frame) for item in items))

    # Followers are given the same list.
    writer = DirectWriter(lambda items: cache.get(("chunk", id(items)), items, chunk))
    return EventStreamResponse(
        _event_frames(follow(writer.write), cache),
        is_authorized,
        preamble=b": following\n\n",
        direct_writer=writer,
    )


async def _event_frames(
    source: AsyncGenerator[Sequence[StreamItem], None], cache: FrameCache
) -> AsyncGenerator[Frame, None]:
    async with aclosing(source) as batches:
        async for batch in batches:
            frames = [cache.get(_cache_key(item), item, event_frame) for item in batch]
            yield Frame(frames[0] if len(frames) == 1 else b"".join(frames))


def _cache_key(item: StreamItem) -> object:
    # Followers read an event from the store one by one; live items are the same object for all.
    return (item.job_id, item.seq) if isinstance(item, Event) else id(item)
