"""The events of one run on their way to the store, and its live text on its way to followers."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime

from steadyhand.errors import Conflict
from steadyhand.event_log import LIVE_TEXT_SECONDS, MAX_BACKLOG, EventLog
from steadyhand.events import (
    STEP_TYPES,
    EventBody,
    EventDraft,
    LiveText,
    Message,
    PhaseStarted,
    TextDelta,
    Thinking,
)
from steadyhand.job import Job, State
from steadyhand.redact import TextStream

MAX_HELD_EVENTS = 10_000
MAX_HELD_BYTES = 16 << 20
"""The events of one run that are held during an outage of the store, and their size in memory."""
OUTAGE_CHECK_SECONDS = 0.5


class LiveTextBuffer:
    """Publishes the live text of one run: the first piece at once, the pieces that follow soon after together."""

    def __init__(self, publish: Callable[[LiveText], None]) -> None:
        """Create it; pieces within `LIVE_TEXT_SECONDS` are published together."""
        self._publish = publish
        self._held: LiveText | None = None
        self._timer: asyncio.TimerHandle | None = None

    def add(self, item: LiveText) -> None:
        """Publish a piece, or hold it for a moment. Pieces before a `flush` are of one message or thinking."""
        if self._held is not None:
            self._held = _joined(self._held, item)
        elif self._timer is not None:
            self._held = item
        else:
            self._publish(item)
            self._wait()

    def flush(self) -> None:
        """Publish the text held now; the next piece is a first one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held, self._held = self._held, None
        if held is not None:
            self._publish(held)

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LIVE_TEXT_SECONDS, self._end_wait)

    def _end_wait(self) -> None:
        held = self._held
        self.flush()
        if held is not None:
            self._wait()


def _joined(item: LiveText, following: LiveText) -> LiveText:
    """Return two pieces as one; the second may take back the end of the first, and more."""
    kept, body = item.body.text[: max(0, following.offset - item.offset)], item.body
    return LiveText(
        item.job_id,
        item.run,
        item.at,
        type(body)(body.message_id, kept + following.body.text),
        item.steps,
        min(item.offset, following.offset),
        item.taken_back + max(0, item.offset - following.offset),
    )


class RunEventWriter:
    """Writes the events of one run to the store, while the agent's output is read on.

    `emit` waits only if more than `MAX_BACKLOG` events are not stored yet. During an outage of the store it holds up to
    `MAX_HELD_EVENTS` and `MAX_HELD_BYTES` instead. Then it calls `on_overflow` and leaves out what does not fit.
    Events are stored within the block of `running`.
    """

    MAX_BATCH = 64

    def __init__(
        self,
        recorder: EventLog,
        job_id: str,
        run: int,
        clock: Callable[[], datetime],
        *,
        on_overflow: Callable[[], None] = lambda: None,
        on_refused: Callable[[], None] = lambda: None,
        steps: int = 0,
    ) -> None:
        """Create it. `steps` is the number of stored events of the run in `STEP_TYPES`.

        `on_refused` is called if the run is over in the store: others have ended it.
        """
        self._recorder = recorder
        self._job_id = job_id
        self._run = run
        self._clock = clock
        self._on_overflow = on_overflow
        self._on_refused = on_refused
        self._drafts: deque[tuple[EventDraft, int]] = deque()
        self._unstored = 0
        self._held_bytes = 0
        self._closed = False
        self._changed = asyncio.Event()
        self._stored = asyncio.Event()
        self._steps = steps
        self._part = ("", "")
        self._offset = 0
        self._taken_back = 0
        self._text_stream: tuple[TextDelta, TextStream] | None = None
        self._live_text = LiveTextBuffer(recorder.publish_live)
        self.left_out = 0
        """The number of events that did not fit during an outage."""

    @property
    def run_number(self) -> int:
        """The number of the run."""
        return self._run

    async def emit(self, body: EventBody | TextDelta) -> None:
        """Queue an event; publish a piece of text soon, except for an end that may begin a secret."""
        if isinstance(body, TextDelta):
            self._emit_text(body)
            return
        self._live_text.flush()
        if isinstance(body, Thinking) or (isinstance(body, Message) and body.role == "assistant"):
            self._flush_text()
            self._offset = self._taken_back = 0
        if isinstance(body, PhaseStarted):
            self._recorder.observer.phase_began(self._job_id, body.phase)
        self._steps += body.type in STEP_TYPES
        await self._add(EventDraft(self._run, self._clock(), body))

    async def _add(self, draft: EventDraft) -> None:
        while self._unstored >= MAX_BACKLOG and self._recorder.outage is None:
            self._stored.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(OUTAGE_CHECK_SECONDS):  # the outage may begin while this waits
                    await self._stored.wait()
        size = 0
        if self._recorder.outage is not None:
            size = len(repr(draft.body))
            if self._unstored >= MAX_HELD_EVENTS or self._held_bytes + size > MAX_HELD_BYTES:
                self.left_out += 1
                self._on_overflow()
                return
        self._drafts.append((draft, size))
        self._unstored += 1
        self._held_bytes += size
        self._changed.set()

    def _emit_text(self, delta: TextDelta) -> None:
        part = (delta.type, delta.message_id)
        if part != self._part:
            self._flush_text()
            self._part, self._offset, self._taken_back = part, 0, 0
        if self._text_stream is None:
            self._text_stream = delta, self._recorder.redactor.text_stream()
        stream = self._text_stream[1]
        self._publish_text(delta, stream.feed(delta.text), stream.taken_back)

    def _flush_text(self) -> None:
        if self._text_stream is not None:
            (delta, stream), self._text_stream = self._text_stream, None
            self._publish_text(delta, stream.end(), stream.taken_back)
        self._live_text.flush()

    def _publish_text(self, delta: TextDelta, text: str, taken_back: int) -> None:
        self._offset -= taken_back
        self._taken_back += taken_back
        if text:
            body = type(delta)(delta.message_id, text)
            position = (self._steps, self._offset, self._taken_back)
            self._live_text.add(LiveText(self._job_id, self._run, self._clock(), body, *position))
            self._offset += len(text)
            self._taken_back = 0

    async def update_job(
        self, expected: frozenset[State], update: Callable[[Job], Job], drafts: Sequence[EventDraft]
    ) -> Job:
        """Change the job, in one commit with the events that are not passed to the store yet; they come first.

        Raise as `Store.update_job` does; `run` then stores the events.
        """
        self._flush_text()
        for draft in drafts:
            if isinstance(draft.body, PhaseStarted):
                self._recorder.observer.phase_began(self._job_id, draft.body.phase)
        waiting = list(self._drafts)
        self._drafts.clear()
        events = [draft for draft, _ in waiting]
        try:
            job = await self._recorder.update_job(self._job_id, expected, update, [*events, *drafts])
        except BaseException:  # also when cancelled: raised again
            self._drafts.extendleft(reversed(waiting))
            self._changed.set()
            raise
        self._count_stored(waiting)
        return job

    def _count_stored(self, batch: Sequence[tuple[EventDraft, int]]) -> None:
        self._unstored -= len(batch)
        self._held_bytes -= sum(size for _, size in batch)
        self._stored.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Store events for the length of the block, and all when it ends. Raise an error of the block as it is."""
        failure = None
        async with asyncio.TaskGroup() as group:
            group.create_task(self.run(), name=f"journal {self._job_id}")
            try:
                yield
            except Exception as error:  # noqa: BLE001  # raised below, as it is: the group would wrap it
                failure = error
            finally:
                await self.close()
        if failure is not None:
            raise failure

    async def close(self) -> None:
        """Let `run` end once all events are stored."""
        self._flush_text()
        self._closed = True
        self._changed.set()

    async def run(self) -> None:
        """Store the emitted events in order, in batches."""
        while self._drafts or not self._closed:
            if not self._drafts:
                self._changed.clear()
                await self._changed.wait()
                continue
            batch = [self._drafts.popleft() for _ in range(min(len(self._drafts), self.MAX_BATCH))]
            try:
                await self._recorder.append(self._job_id, [draft for draft, _ in batch], run=self._run)
            except Conflict:
                self._on_refused()  # nothing of this run is stored any more
            self._count_stored(batch)
