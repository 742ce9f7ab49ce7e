"""Events are stored first and published second: followers never see a numbered event that could be lost."""

import asyncio
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import structlog

from steadyhand.events import (
    Event,
    EventDraft,
    LiveProgress,
    LiveText,
    StateChanged,
    format_rfc3339,
)
from steadyhand.job import Job, State
from steadyhand.money import format_dollars
from steadyhand.ports import NO_OBSERVER, JobObserver, Store
from steadyhand.redact import Redactor

LiveItem = LiveText | LiveProgress
FeedItem = Event | LiveItem
WriteItems = Callable[[Sequence[FeedItem]], bool]
"""Sends items to a follower at once. Returns False, and sends none, if it cannot; then the follower receives them."""
MAX_BACKLOG = 1_000
"""The items that wait for one slow follower; beyond it live text is dropped and events are read from the store."""
_FIRST_NUMBERS = 100_000_000
LIVE_TEXT_SECONDS = 0.015
"""The first piece of a message is published at once; later ones within this time are published together."""
CROWD = 200
"""With so many followers of a job or more, the items of a time are sent together: each sending costs all of them."""
_FOLLOWER_SECONDS = 0.00002
_MAX_CROWD_SECONDS = 0.1
"""The time is so long for each follower, up to a bound: sending must not fill it."""


class Pulse:
    """Wakes many followers together, a time after the first of them has items: each then takes all that came."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._wakes: list[Callable[[], None]] = []

    def add(self, wake: Callable[[], None]) -> None:
        """Call `wake` with those of others, within `seconds`."""
        if not self._wakes:
            asyncio.get_running_loop().call_later(self._seconds, self._beat)
        self._wakes.append(wake)

    def _beat(self) -> None:
        wakes, self._wakes = self._wakes, []
        for wake in wakes:
            wake()


class Subscription:
    """The items for one follower. If `lagged` is True it missed events and must read the store.

    Items are sent by `write` if the follower waits for items, so that all before them has been sent: a wake-up of the
    follower costs more than the sending. With a `pulse` the items are held for its time, so that few wake-ups and few
    writes serve many items.
    """

    def __init__(self, write: WriteItems | None = None, pulse: Pulse | None = None) -> None:
        self._write = write
        self._pulse = pulse
        self._is_held = False
        self._items: list[FeedItem] = []
        self._is_ready = False
        self._waiter: asyncio.Future[None] | None = None
        self.lagged = False
        self.closed = False

    def push(self, items: Sequence[FeedItem]) -> None:
        """Send or add items, or set `lagged` if the backlog is full."""
        write, waiter = self._write, self._waiter
        waits = waiter is not None and not waiter.done()
        if waits and write is not None and write(items):
            return
        for item in items:
            if len(self._items) < MAX_BACKLOG:
                self._items.append(item)
            elif isinstance(item, Event):
                self.lagged = True
        self._wake()

    def lag(self) -> None:
        """Set `lagged`: events may have been missed."""
        self.lagged = True
        self._wake()

    def close(self) -> None:
        """End the feed: the service is stopping."""
        self.closed = True
        self._is_ready = True
        self._wake_now()

    def _wake(self) -> None:
        self._is_ready = True
        if self._pulse is None:
            self._wake_now()
        elif not self._is_held:
            self._is_held = True
            self._pulse.add(self._wake_now)

    def _wake_now(self) -> None:
        self._is_held = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> list[FeedItem]:
        """Wait for items and return them all; none if it lagged or was closed. The caller bounds the wait."""
        if not self._is_ready or self._is_held:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._is_ready = False
        items, self._items = self._items, []
        return items


class JobChanges:
    """The ids of jobs that were accepted or have changed their state, for one reader."""

    def __init__(self) -> None:
        self._job_ids: set[str] = set()
        self._overflowed = False
        self._changed = asyncio.Event()
        self._closed = False

    def add(self, job_id: str) -> None:
        """Add a job. Of more than `MAX_BACKLOG` jobs the ids are dropped."""
        self._overflowed = self._overflowed or len(self._job_ids) >= MAX_BACKLOG
        if self._overflowed:
            self._job_ids.clear()
        else:
            self._job_ids.add(job_id)
        self._changed.set()

    def add_any(self) -> None:
        """Add jobs that are not known."""
        self._overflowed = True
        self._job_ids.clear()
        self._changed.set()

    def close(self) -> None:
        """End it: the service is stopping."""
        self._closed = True
        self._changed.set()

    async def receive(self) -> frozenset[str] | None:
        """Wait for changes and return the jobs; empty if it may be any job, None at the end of the feed."""
        await self._changed.wait()
        self._changed.clear()
        job_ids = frozenset() if self._overflowed else frozenset(self._job_ids)
        self._job_ids.clear()
        self._overflowed = False
        return None if self._closed else job_ids


class EventFeed:
    """Publishes the events and the live text of jobs to their followers on this node."""

    def __init__(self) -> None:
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._held: dict[str, list[FeedItem]] = {}
        """The items of jobs with a `CROWD` of followers, until they are sent together."""
        self._watchers: set[JobChanges] = set()
        self._closed = False
        self.on_followed: Callable[[str], None] | None = None
        """Is called for each job that is followed and was not before."""
        self.change_number = secrets.randbelow(_FIRST_NUMBERS)
        """Counts the changes of jobs. It begins anywhere: a number of an earlier service is another one."""

    @contextmanager
    def subscribe(
        self, job_id: str, write: WriteItems | None = None, pulse: Pulse | None = None
    ) -> Iterator[Subscription]:
        """Follow a job for the length of the block. `write` must not raise."""
        subscription = Subscription(write, pulse)
        if self._closed:
            subscription.close()
        if job_id not in self._subscriptions and self.on_followed is not None:
            self.on_followed(job_id)
        self._subscriptions.setdefault(job_id, set()).add(subscription)
        try:
            yield subscription
        finally:
            subscriptions = self._subscriptions[job_id]
            subscriptions.discard(subscription)
            if not subscriptions:
                del self._subscriptions[job_id]

    @property
    def followers(self) -> int:
        """The number of followers of all jobs on this node."""
        return sum(map(len, self._subscriptions.values()))

    def followed_jobs(self) -> Sequence[str]:
        """Return the jobs that have followers on this node."""
        return list(self._subscriptions)

    def follower_count(self, job_id: str) -> int:
        """Return the number of followers of a job on this node."""
        return len(self._subscriptions.get(job_id, ()))

    @contextmanager
    def watch_jobs(self, since: int | None = None) -> Iterator[JobChanges]:
        """Watch for jobs that are accepted or change their state, for the length of the block.

        Of changes after the `change_number` `since` the jobs are not known.
        """
        changes = JobChanges()
        if since is not None and since != self.change_number:
            changes.add_any()
        if self._closed:
            changes.close()
        self._watchers.add(changes)
        try:
            yield changes
        finally:
            self._watchers.discard(changes)

    def announce(self, job_id: str) -> None:
        """Add a job to the changes of all that watch."""
        self.change_number += 1
        for changes in self._watchers:
            changes.add(job_id)

    def publish(self, job_id: str, items: Sequence[FeedItem]) -> None:
        """Send items to every follower of a job, to a crowd of them a moment later."""
        if any(isinstance(item, Event) and item.type == StateChanged.type for item in items):
            self.announce(job_id)
        followers = self.follower_count(job_id)
        if job_id in self._held:
            self._held[job_id] += items
        elif followers >= CROWD:
            self._held[job_id] = [*items]
            seconds = min(followers * _FOLLOWER_SECONDS, _MAX_CROWD_SECONDS)
            asyncio.get_running_loop().call_later(seconds, self._send_held, job_id)
        else:
            self._send(job_id, items)

    def _send_held(self, job_id: str) -> None:
        self._send(job_id, self._held.pop(job_id))

    def _send(self, job_id: str, items: Sequence[FeedItem]) -> None:
        for subscription in self._subscriptions.get(job_id, ()):
            subscription.push(items)

    def mark_gap(self, job_id: str | None = None) -> None:
        """Let the followers of a job read the store, as events may have been missed; without a job, all of them."""
        for followed in self._subscriptions if job_id is None else (job_id,):
            for subscription in self._subscriptions.get(followed, ()):
                subscription.lag()
        if job_id is None:
            self.change_number += 1
            for changes in self._watchers:
                changes.add_any()

    def close(self) -> None:
        """End every feed, now and later."""
        self._closed = True
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.close()
        for changes in self._watchers:
            changes.close()


def log_state_change(job: Job, target: str) -> None:
    """Log one line for a job that was accepted, started, parked or ended; no text of its caller or its agent."""
    log = structlog.get_logger("steadyhand.jobs")
    fields: dict[str, Any] = {**job.log_fields, "agent": job.agent, "run": job.run}
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

    def __init__(
        self,
        store: Store,
        feed: EventFeed,
        redactor: Redactor,
        *,
        hold: bool = False,
        observer: JobObserver = NO_OBSERVER,
        relay_live: Callable[[LiveItem], None] | None = None,
    ) -> None:
        """Create it; `redactor` removes secrets from all that is stored or published.

        With `hold` every write waits for the end of an outage of the store; without it, it raises `StoreUnavailable`.
        `relay_live` gets each live item, for followers on other nodes.
        """
        self._store = store
        self._feed = feed
        self._hold = hold
        self._relay_live = relay_live
        self.redactor = redactor
        self.observer = observer

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
        *,
        as_new: bool = False,
    ) -> Job:
        """Change a job and publish the events. Raise as `Store.update_job` does."""
        redactor = self.redactor
        job, events = await self._store.update_job(
            job_id,
            expected,
            lambda old: _without_new_secrets(redactor, old, update(old)),
            self._redact(drafts),
            hold=self._hold,
            as_new=as_new,
        )
        self._feed.publish(job_id, events)
        self.observer.events_stored(events)
        for draft in drafts:
            body = draft.body
            if isinstance(body, StateChanged):
                self.observer.state_changed(job, body.source, body.target)
                log_state_change(job, body.target)
        return job

    async def append(self, job_id: str, drafts: Sequence[EventDraft], *, run: int | None = None) -> None:
        """Store events and publish them to the job's followers. With a `run` raise `Conflict` if it is over."""
        events = await self._store.append_events(job_id, self._redact(drafts), hold=self._hold, run=run)
        self._feed.publish(job_id, events)
        self.observer.events_stored(events)

    def publish_live(self, item: LiveItem) -> None:
        """Publish a piece of text or a progress that is not stored.

        Secrets span pieces of text: `RunEventWriter` removes them. A progress is in the service's own words.
        """
        self._feed.publish(item.job_id, [item])
        if self._relay_live is not None:
            self._relay_live(item)

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
