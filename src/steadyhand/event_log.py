"""Events are stored first and published second: followers never see a numbered event that could be lost."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

import structlog

from steadyhand.events import (
    STEP_TYPES,
    Event,
    EventBody,
    EventDraft,
    LiveProgress,
    LiveText,
    Message,
    StateChanged,
    TextDelta,
    Thinking,
    format_rfc3339,
)
from steadyhand.job import Job, State
from steadyhand.money import format_dollars
from steadyhand.ports import Store
from steadyhand.redact import Redactor, TextStream

FeedItem = Event | LiveText | LiveProgress
MAX_BACKLOG = 1_000
"""The items that wait for one slow follower; beyond it live text is dropped and events are read from the store."""
MAX_HELD_EVENTS = 10_000
MAX_HELD_BYTES = 16 << 20
"""The events of one run that are held during an outage of the store, and their size in memory."""
OUTAGE_CHECK_SECONDS = 0.5
LIVE_TEXT_SECONDS = 0.015
"""The first piece of a message is published at once; later ones within this time are published together."""
_FOLLOWER_SECONDS = 0.00002
_MAX_LIVE_TEXT_SECONDS = 0.1
"""With many followers the time is longer by so much for each, up to a bound: sending must not fill it."""


class Subscription:
    """The items for one follower. If `lagged` is True it missed events and must read the store."""

    def __init__(self) -> None:
        self._items: list[FeedItem] = []
        self._is_ready = False
        self._waiter: asyncio.Future[None] | None = None
        self.lagged = False
        self.closed = False

    def push(self, item: FeedItem) -> None:
        """Add an item, or set `lagged` if the backlog is full."""
        if len(self._items) < MAX_BACKLOG:
            self._items.append(item)
        elif isinstance(item, Event):
            self.lagged = True
        self._wake()

    def close(self) -> None:
        """End the feed: the service is stopping."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        self._is_ready = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> list[FeedItem]:
        """Wait for items and return them all; none if it lagged or was closed. The caller bounds the wait."""
        if not self._is_ready:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._is_ready = False
        items, self._items = self._items, []
        return items


class EventFeed:
    """Publishes the events and the live text of jobs to their followers on this node."""

    def __init__(self) -> None:
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._closed = False

    @contextmanager
    def subscribe(self, job_id: str) -> Iterator[Subscription]:
        """Follow a job for the length of the block."""
        subscription = Subscription()
        if self._closed:
            subscription.close()
        self._subscriptions.setdefault(job_id, set()).add(subscription)
        try:
            yield subscription
        finally:
            subscriptions = self._subscriptions[job_id]
            subscriptions.discard(subscription)
            if not subscriptions:
                del self._subscriptions[job_id]

    def follower_count(self, job_id: str) -> int:
        """Return the number of followers of a job on this node."""
        return len(self._subscriptions.get(job_id, ()))

    def publish(self, job_id: str, items: Sequence[FeedItem]) -> None:
        """Send items to every follower of a job."""
        for subscription in self._subscriptions.get(job_id, ()):
            for item in items:
                subscription.push(item)

    def close(self) -> None:
        """End every feed, now and later."""
        self._closed = True
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.close()


def log_state_change(job: Job, target: str) -> None:
    """Log one line for a job that was accepted, started, parked or ended; no text of its caller or its agent."""
    log = structlog.get_logger("steadyhand.jobs")
    fields: dict[str, Any] = {"job": job.id, "key": job.api_key_id, "agent": job.agent, "run": job.run}
    if target == State.QUEUED and job.run == 0:
        log.info("job.accepted", **fields)
    elif target == State.QUEUED:
        log.info("job.queued", **fields)
    elif target == State.RUNNING:
        log.info("job.started", **fields)
    elif target == State.PARKED:
        until = None if job.parked_until is None else format_rfc3339(job.parked_until)
        log.info("job.parked", **fields, until=until)
    else:
        seconds = None
        if job.started_at is not None and job.finished_at is not None:
            seconds = round((job.finished_at - job.started_at).total_seconds(), 3)
        log.info(
            "job.ended",
            **fields,
            state=job.state.value,
            outcome=None if job.outcome is None else job.outcome.type,
            seconds=seconds,
            usd=format_dollars(job.cost.micros),
        )


class EventLog:
    """Stores changes and events, then publishes them, all without live secrets."""

    def __init__(self, store: Store, feed: EventFeed, redactor: Redactor, *, hold: bool = False) -> None:
        """Create it; `redactor` removes secrets from all that is stored or published.

        With `hold` every write waits for the end of an outage of the store; without it, it raises `StoreUnavailable`.
        """
        self._store = store
        self._feed = feed
        self._hold = hold
        self.redactor = redactor

    @property
    def outage(self) -> str | None:
        """The reason why nothing can be stored now, or None."""
        return self._store.outage

    async def update_job(
        self,
        job_id: str,
        expected: frozenset[State],
        update: Callable[[Job], Job],
        drafts: Sequence[EventDraft] = (),
    ) -> Job:
        """Change a job and publish the events. Raise as `Store.update_job` does."""
        redactor = self.redactor
        job, events = await self._store.update_job(
            job_id,
            expected,
            lambda old: _without_new_secrets(redactor, old, update(old)),
            self._redact(drafts),
            hold=self._hold,
        )
        self._feed.publish(job_id, events)
        for draft in drafts:
            if isinstance(draft.body, StateChanged):
                log_state_change(job, draft.body.target)
        return job

    async def append(self, job_id: str, drafts: Sequence[EventDraft]) -> None:
        """Store events and publish them to the job's followers."""
        events = await self._store.append_events(job_id, self._redact(drafts), hold=self._hold)
        self._feed.publish(job_id, events)

    def publish_live(self, item: LiveText | LiveProgress) -> None:
        """Publish a piece of text or a progress that is not stored.

        Secrets span pieces of text: `RunEventWriter` removes them. A progress is in the service's own words.
        """
        self._feed.publish(item.job_id, [item])

    def live_text_seconds(self, job_id: str) -> float:
        """Return the time in which pieces of a job's live text are published together."""
        followers = self._feed.follower_count(job_id)
        return min(LIVE_TEXT_SECONDS + followers * _FOLLOWER_SECONDS, _MAX_LIVE_TEXT_SECONDS)

    def _redact(self, drafts: Sequence[EventDraft]) -> Sequence[EventDraft]:
        return [replace(draft, body=self.redactor.body(draft.body)) for draft in drafts]


def _without_new_secrets(redactor: Redactor, old: Job, job: Job) -> Job:
    """Return a job without live secrets in the texts that changed since `old`.

    The caller's own input is not changed.
    """

    def clean(value: Any, before: Any, redact: Callable[[Any], Any]) -> Any:
        return value if value is None or value is before else redact(value)

    runs_before = {run.number: run.outcome for run in old.runs}
    runs = tuple(
        replace(run, outcome=clean(run.outcome, runs_before.get(run.number), redactor.body))
        for run in job.runs
    )
    warnings = tuple(
        warning if warning in old.warnings else redactor.body(warning) for warning in job.warnings
    )
    return replace(
        job,
        runs=runs,
        warnings=warnings,
        outcome=clean(job.outcome, old.outcome, redactor.body),
        error=clean(job.error, old.error, redactor.body),
        answer=clean(job.answer, old.answer, redactor.value),
        structured_output=clean(job.structured_output, old.structured_output, redactor.value),
    )


class LiveTextBuffer:
    """Publishes the live text of one run: the first piece at once, the pieces that follow soon after together."""

    def __init__(self, publish: Callable[[LiveText], None], seconds: Callable[[], float]) -> None:
        """Create it; pieces within `seconds` are published together."""
        self._publish = publish
        self._seconds = seconds
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
        self._timer = asyncio.get_running_loop().call_later(self._seconds(), self._end_wait)

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
    `run` is a task beside the run, in the worker's task group, until `close`.
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
    ) -> None:
        self._recorder = recorder
        self._job_id = job_id
        self._run = run
        self._clock = clock
        self._on_overflow = on_overflow
        self._drafts: deque[tuple[EventDraft, int]] = deque()
        self._unstored = 0
        self._held_bytes = 0
        self._closed = False
        self._changed = asyncio.Event()
        self._stored = asyncio.Event()
        self._steps = 0
        self._part = ("", "")
        self._offset = 0
        self._taken_back = 0
        self._text_stream: tuple[TextDelta, TextStream] | None = None
        self._live_text = LiveTextBuffer(recorder.publish_live, partial(recorder.live_text_seconds, job_id))
        self.left_out = 0
        """The number of events that did not fit during an outage."""

    async def emit(self, body: EventBody | TextDelta) -> None:
        """Queue an event; publish a piece of text soon, except for an end that may begin a secret."""
        if isinstance(body, TextDelta):
            self._emit_text(body)
            return
        self._live_text.flush()
        if isinstance(body, Thinking) or (isinstance(body, Message) and body.role == "assistant"):
            self._flush_text()
            self._offset = self._taken_back = 0
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

    async def flush(self) -> None:
        """Wait until all events so far are stored."""
        self._flush_text()
        while self._unstored:
            self._stored.clear()
            await self._stored.wait()

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
            await self._recorder.append(self._job_id, [draft for draft, _ in batch])
            self._unstored -= len(batch)
            self._held_bytes -= sum(size for _, size in batch)
            self._stored.set()
