"""What happens is kept first and told second: followers never see a numbered event that could be lost."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

from steadyhand.events import STEP_TYPES, Event, EventBody, EventDraft, LiveText, Message, TextDelta
from steadyhand.job import Job, State
from steadyhand.ports import Store
from steadyhand.redact import Redactor, TextStream

MAX_BACKLOG = 1_000
"""How many items wait for one slow follower before pieces of text are dropped and events are read again."""


class Subscription:
    """One follower's end of the feed. What it missed is in the store; `lagged` says to look there."""

    def __init__(self) -> None:
        self._items: deque[Event | LiveText] = deque()
        self._ready = asyncio.Event()
        self.lagged = False
        self.closed = False

    def push(self, item: Event | LiveText) -> None:
        """Hand over an item, or note that there was no room."""
        if len(self._items) < MAX_BACKLOG:
            self._items.append(item)
        elif isinstance(item, Event):
            self.lagged = True
        self._ready.set()

    def close(self) -> None:
        """End the feed: the service is stopping."""
        self.closed = True
        self._ready.set()

    async def receive(self) -> list[Event | LiveText]:
        """Wait for items and take them all; empty when it lagged or was closed. The caller bounds the wait."""
        await self._ready.wait()
        self._ready.clear()
        items = list(self._items)
        self._items.clear()
        return items


class EventFeed:
    """Tells those who follow a job on this node what happens in it."""

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

    def publish(self, job_id: str, items: Sequence[Event | LiveText]) -> None:
        """Tell everybody who follows this job."""
        for subscription in self._subscriptions.get(job_id, ()):
            for item in items:
                subscription.push(item)

    def close(self) -> None:
        """End every feed, now and later."""
        self._closed = True
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.close()


class EventLog:
    """Keeps changes and events, then publishes them, all without live secrets."""

    def __init__(self, store: Store, feed: EventFeed, redactor: Redactor) -> None:
        """Create it; `redactor` removes secrets from all that is stored or published."""
        self._store = store
        self._feed = feed
        self.redactor = redactor

    async def update_job(
        self,
        job_id: str,
        expected: frozenset[State],
        update: Callable[[Job], Job],
        drafts: Sequence[EventDraft] = (),
    ) -> Job:
        """Change a job and tell its followers. Raises as `Store.change` does."""
        redactor = self.redactor
        job, events = await self._store.update_job(
            job_id,
            expected,
            lambda old: _without_new_secrets(redactor, old, update(old)),
            self._redact(drafts),
        )
        self._feed.publish(job_id, events)
        return job

    async def append(self, job_id: str, drafts: Sequence[EventDraft]) -> None:
        """Keep events and tell the job's followers."""
        self._feed.publish(job_id, await self._store.append_events(job_id, self._redact(drafts)))

    def publish_live(self, item: LiveText) -> None:
        """Tell followers of a piece of text that is not kept. Secrets go across pieces: `Journal` takes them out."""
        self._feed.publish(item.job_id, [item])

    def _redact(self, drafts: Sequence[EventDraft]) -> Sequence[EventDraft]:
        return [replace(draft, body=self.redactor.body(draft.body)) for draft in drafts]


def _without_new_secrets(redactor: Redactor, old: Job, job: Job) -> Job:
    """Return a job without live secrets in what its agent and the service say of it, as far as that is not as before.

    What its caller sent stays as it came.
    """

    def clean(value: Any, before: Any, redact: Callable[[Any], Any]) -> Any:
        return value if value is None or value is before else redact(value)

    runs_before = {run.number: run.outcome for run in old.runs}
    runs = tuple(
        replace(run, outcome=clean(run.outcome, runs_before.get(run.number), redactor.body))
        for run in job.runs
    )
    warnings = tuple(each if each in old.warnings else redactor.body(each) for each in job.warnings)
    return replace(
        job,
        runs=runs,
        warnings=warnings,
        outcome=clean(job.outcome, old.outcome, redactor.body),
        error=clean(job.error, old.error, redactor.body),
        answer=clean(job.answer, old.answer, redactor.value),
        structured_output=clean(job.structured_output, old.structured_output, redactor.value),
    )


class RunEventWriter:
    """The events of one run on their way to the store: the agent is read on while a commit is under way.

    `emit` waits only when more than `BACKLOG` events are on their way. `write` runs beside the run, in the
    worker's task group, until `close`.
    """

    MAX_BATCH = 64

    def __init__(self, recorder: EventLog, job_id: str, run: int, clock: Callable[[], datetime]) -> None:
        self._recorder = recorder
        self._job_id = job_id
        self._run = run
        self._clock = clock
        self._drafts: asyncio.Queue[EventDraft | None] = asyncio.Queue(MAX_BACKLOG)
        self._steps = 0
        self._message_id = ""
        self._offset = 0
        self._text_stream: tuple[str, TextStream] | None = None

    async def emit(self, body: EventBody | TextDelta) -> None:
        """Take what happened; pieces of text go to the followers at once, but for what may begin a secret."""
        if isinstance(body, TextDelta):
            self._emit_text(body)
            return
        if isinstance(body, Message) and body.role == "assistant":
            self._flush_text()
            self._offset = 0
        self._steps += body.type in STEP_TYPES
        await self._drafts.put(EventDraft(self._run, self._clock(), body))

    def _emit_text(self, delta: TextDelta) -> None:
        if self._text_stream is None or self._text_stream[0] != delta.message_id:
            self._flush_text()
            self._text_stream = delta.message_id, self._recorder.redactor.text_stream()
        if delta.message_id != self._message_id:
            self._message_id, self._offset = delta.message_id, 0
        self._publish_text(delta.message_id, self._text_stream[1].feed(delta.text))

    def _flush_text(self) -> None:
        if self._text_stream is not None:
            (message_id, stream), self._text_stream = self._text_stream, None
            self._publish_text(message_id, stream.end())

    def _publish_text(self, message_id: str, text: str) -> None:
        if text:
            position = (self._steps, self._offset)
            self._offset += len(text)
            delta = TextDelta(message_id, text)
            self._recorder.publish_live(LiveText(self._job_id, self._run, self._clock(), delta, *position))

    async def close(self) -> None:
        """Let `write` end once all is kept."""
        self._flush_text()
        await self._drafts.put(None)

    async def run(self) -> None:
        """Keep what was emitted, in order, as many at a time as are there."""
        while (draft := await self._drafts.get()) is not None:
            batch = [draft]
            ended = False
            while len(batch) < self.MAX_BATCH and not self._drafts.empty():
                next_draft = self._drafts.get_nowait()
                if next_draft is None:
                    ended = True
                    break
                batch.append(next_draft)
            await self._recorder.append(self._job_id, batch)
            if ended:
                return
