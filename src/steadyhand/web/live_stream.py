"""The stream of a browser: changes of the list, and the events of the jobs that its tabs show, as HTML.

One connection serves all tabs of a browser (`static/stream-worker.js`), so it has several topics. `jobs NUMBER` is the
list after the change of that number; the other topics are `JOB_ID AFTER`. The id of a message is its topic with the
number of the event or the change, for a stream that begins again after it; a third word marks live text, which has no
number of its own.
"""

import asyncio
import html
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from steadyhand.api.transport.sse import EventStreamResponse, Frame
from steadyhand.control import Control
from steadyhand.errors import CallerError, InvalidRequest, NotFound
from steadyhand.event_log import FeedItem, JobChanges
from steadyhand.events import (
    Event,
    LiveProgress,
    LiveText,
    Message,
    Thinking,
    ToolFinished,
)
from steadyhand.web.plain_text import visible_text
from steadyhand.web.transcript_items import CHANGES_HEAD, result_data, tool_anchor, transcript_item
from steadyhand.web.web_app import Visit

MAX_TOPICS = 32
_LIST_TOPIC = re.compile(r"jobs(?: (\d{1,10}))?")
_JOB_TOPIC = re.compile(r"([0-9a-f]{12}) (\d{1,9})(?: live)?")
_MAX_LIVE_TEXT = 20_000
_QUEUED_FRAMES = 32
_JOINED_BYTES = 64 * 1024
_PAUSE_SECONDS = 0.5
"""The shortest time between two messages that the list has changed."""

Put = Callable[[bytes], Awaitable[None]]
Follow = Callable[[Put], Coroutine[Any, Any, None]]


def message(topic: str, markup: str, event: str | None = None) -> bytes:
    """Return a message of the stream; one with an `event` is an event of the element that follows."""
    lines = [f"id: {topic}"]
    if event is not None:
        lines.append(f"event: {event}")
    lines += [f"data: {line}" for line in markup.replace("\r", "").split("\n")]
    return ("\n".join(lines) + "\n\n").encode("utf-8", "replace")


async def stream(visit: Visit) -> Response:
    """Stream the topics of the query `on`. A single topic is continued after the `Last-Event-ID`."""
    caller = visit.caller
    caller.require_scope("read")
    topics = visit.request.query_params.getlist("on")
    if not 0 < len(topics) <= MAX_TOPICS:
        raise InvalidRequest.at("?on", f"has to be there 1 to {MAX_TOPICS} times")
    if len(topics) == 1:
        topics = [visit.request.headers.get("last-event-id") or topics[0]]
    followers: list[Follow] = []
    for topic in dict.fromkeys(topics):
        if (match := _LIST_TOPIC.fullmatch(topic)) is not None:
            followers.append(_ListFollower(visit, None if match[1] is None else int(match[1])).run)
        elif (match := _JOB_TOPIC.fullmatch(topic)) is not None:
            job_id, after = match[1], int(match[2])
            job = await visit.control.get(caller, job_id)
            if after > job.last_event:
                raise InvalidRequest("The job has no such event yet.", code="bad_cursor")
            followers.append(_JobFollower(visit, job_id, after).run)
        else:
            raise InvalidRequest.at("?on", "is not a topic")
    return TopicsResponse(visit, followers)


class TopicsResponse(Response):
    """Streams what several followers put, until all have ended, the browser has left or its session has ended."""

    def __init__(self, visit: Visit, followers: Sequence[Follow]) -> None:
        super().__init__()
        self._followers = followers
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUED_FRAMES)
        self._response = EventStreamResponse(
            self._frames(), visit.is_session_open, preamble=b": following\n\n"
        )
        self.raw_headers = self._response.raw_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        async with asyncio.TaskGroup() as group:
            following = group.create_task(self._follow())
            await self._response(scope, receive, send)
            following.cancel()

    async def _follow(self) -> None:
        async with asyncio.TaskGroup() as group:
            for follow in self._followers:
                group.create_task(follow(self._queue.put))
        await self._queue.put(None)

    async def _frames(self) -> AsyncGenerator[Frame, None]:
        """Yield what the followers have put, together up to a size."""
        data = await self._queue.get()
        while data is not None:
            frames = [data]
            size = len(data)
            following: bytes | None = b""
            while size < _JOINED_BYTES and following is not None and not self._queue.empty():
                following = self._queue.get_nowait()
                if following is not None:
                    frames.append(following)
                    size += len(following)
            yield Frame(b"".join(frames))
            data = None if following is None else await self._queue.get()


class _ListFollower:
    """Puts a message whenever a job which the caller may see was accepted or has changed its state."""

    def __init__(self, visit: Visit, since: int | None) -> None:
        self._control: Control = visit.control
        self._caller = visit.caller
        self._since = since

    async def run(self, put: Put) -> None:
        """Follow until the service stops."""
        with self._control.watch_jobs(self._caller, self._since) as changes:
            while (job_ids := await changes.receive()) is not None:
                number = self._control.change_number()
                if await self._sees_any(job_ids):
                    await put(message(f"jobs {number}", "", "changed"))
                    await asyncio.sleep(_PAUSE_SECONDS)

    async def _sees_any(self, job_ids: frozenset[str]) -> bool:
        if self._caller.has_scope("read:all") or not job_ids:
            return True
        for job_id in job_ids:
            try:
                await self._control.get(self._caller, job_id)
            except NotFound:
                continue
            return True
        return False


class _JobFollower:
    """Puts the events of one job as HTML, also those of later runs, until the service stops or the job is deleted."""

    def __init__(self, visit: Visit, job_id: str, after: int) -> None:
        self._visit = visit
        self._control: Control = visit.control
        self._caller = visit.caller
        self._job_id = job_id
        self._position = after
        self._live_text = LiveTextView()

    async def run(self, put: Put) -> None:
        """Follow the job."""
        try:
            with self._control.watch_jobs(self._caller) as changes:
                goes_on = True
                while goes_on:
                    await self._follow_run(put)
                    await put(self._message("", "changed"))
                    goes_on = await self._wait_for_change(changes)
        except CallerError:  # deleted
            await put(self._message("", "changed"))

    async def _wait_for_change(self, changes: JobChanges) -> bool:
        """Return True once the job may have changed, and False when the service stops."""
        while (job_ids := await changes.receive()) is not None:
            if self._job_id in job_ids or not job_ids:
                job = await self._control.get(self._caller, self._job_id)
                if not job.state.ended or job.last_event > self._position:
                    return True
        return False

    async def _follow_run(self, put: Put) -> None:
        pulse = self._visit.app.pulse
        source = self._control.follow_job(self._caller, self._job_id, self._position, pulse=pulse)
        async with aclosing(source) as batches:
            async for batch in batches:
                for data in self._render(batch):
                    await put(data)

    def _render(self, batch: Sequence[FeedItem]) -> list[bytes]:
        frames: list[bytes] = []
        head_changed = False
        for item in without_ended_text(batch):
            if isinstance(item, LiveText):
                frames.append(self._message(self._live_text.feed(item), is_live=True))
            elif isinstance(item, LiveProgress):
                markup = self._visit.app.renderer.render("live_progress.html", text=item.body.detail)
                frames.append(self._message(markup, is_live=True))
            else:
                self._position = item.seq
                head_changed = head_changed or item.type in CHANGES_HEAD
                if _ends_live_text(item):
                    self._live_text = LiveTextView()
                cache = self._visit.context.event_frames
                frames.append(cache.get(("page", item.job_id, item.seq), item, self._event_message))
        if head_changed:
            frames.append(self._message("", "changed", is_live=True))
        return frames

    def _event_message(self, event: Event) -> bytes:
        topic, renderer = f"{event.job_id} {event.seq}", self._visit.app.renderer
        if event.type == ToolFinished.type:
            anchor = tool_anchor(event.run, str(event.data.get("tool_id", "")))
            return message(
                topic, renderer.render("live_result.html", anchor=anchor, result=result_data(event))
            )
        item = transcript_item(event)
        if item is None:
            return message(topic, "")
        return message(topic, renderer.call("live_item.html", "live_item", item, _ends_live_text(event)))

    def _message(self, markup: str, event: str | None = None, *, is_live: bool = False) -> bytes:
        return message(f"{self._job_id} {self._position}{' live' if is_live else ''}", markup, event)


def _ends_live_text(item: FeedItem) -> bool:
    """Return True for an event that has the whole text of which the live text was a part."""
    return isinstance(item, Event) and item.type in (Message.type, Thinking.type)


def without_ended_text(batch: Sequence[FeedItem]) -> Sequence[FeedItem]:
    """Return a batch without the live text that an event of the batch ends: nobody would see it."""
    ends = [number for number, item in enumerate(batch) if _ends_live_text(item)]
    if not ends:
        return batch
    return [item for number, item in enumerate(batch) if number > ends[-1] or not isinstance(item, LiveText)]


class LiveTextView:
    """The text in progress, as one follower shows it: each piece is appended, unless some of it is taken back."""

    def __init__(self) -> None:
        self._part = ("", "", 0)
        self._text = ""
        self._begin = 0

    def feed(self, item: LiveText) -> str:
        """Return the HTML for a piece of text."""
        part = (item.body.type, item.body.message_id, item.run)
        is_new = part != self._part
        if is_new:
            self._part, self._text, self._begin = part, "", item.offset
        length = max(0, item.offset - self._begin)
        replaces = is_new or item.taken_back > 0 or length < len(self._text)
        self._text = self._text[:length] + item.body.text
        if replaces:
            shown = visible_text(self._text[-_MAX_LIVE_TEXT:])
            swap, ellipsis = "innerHTML", "… " if self._begin or len(self._text) > _MAX_LIVE_TEXT else ""
        else:
            shown, swap, ellipsis = visible_text(item.body.text), "beforeend", ""
        piece = f"<span>{ellipsis}{html.escape(shown)}</span>"
        return f'<hx-partial hx-target="#live" hx-swap="{swap}">{piece}</hx-partial>'
