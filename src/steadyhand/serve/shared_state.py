"""Wires the state that nodes share by one Postgres: who hears of the changes of others, and the reads that follow.

With SQLite there is one process, and none of this exists.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from steadyhand.control.remote_events import RemoteEvents
from steadyhand.control.remote_live import FOLLOWED_CHANNEL, RemoteLive, live_channel
from steadyhand.errors import StoreError
from steadyhand.event_log import EventFeed, LiveItem
from steadyhand.keyring import Keyring
from steadyhand.store import SqlStore
from steadyhand.store.announcements import (
    ENDPOINTS_CHANNEL,
    JOBS_CHANNEL,
    KEYS_CHANNEL,
    SCHEDULES_CHANNEL,
    SESSIONS_CHANNEL,
    decode_jobs,
)
from steadyhand.store.postgres.listener import Listener

_RETRY_SECONDS = 1.0


class Refresher:
    """Reads something again whenever it may have changed elsewhere. Changes during a read lead to one more."""

    def __init__(self, name: str, refresh: Callable[[], Awaitable[None]]) -> None:
        self.name = name
        self._refresh = refresh
        self._asked = asyncio.Event()

    def hear(self, _payload: str | None) -> None:
        """Read it soon."""
        self._asked.set()

    async def run(self) -> None:
        """Read until cancelled. A failure of the store is waited for."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await self._refresh()
            except StoreError as error:
                structlog.get_logger("steadyhand.store").warning(
                    "store.not_refreshed", what=self.name, reason=error.detail
                )
                await asyncio.sleep(_RETRY_SECONDS)
                self._asked.set()


@dataclass(slots=True)
class SharedState:
    """The listener of this process, and the tasks that it wakes."""

    listener: Listener
    tasks: list[tuple[str, Callable[[], Awaitable[None]]]] = field(default_factory=list)

    def follow_events(self, store: SqlStore, feed: EventFeed) -> Callable[[LiveItem], None]:
        """Bring the events and the live text of other nodes to the followers on this one.

        Return a function that sends live items of a run here to followers elsewhere.
        """
        remote, origin = RemoteEvents(store, feed), store.origin
        self.listener.on(
            JOBS_CHANNEL,
            lambda payload: remote.hear(None if payload is None else decode_jobs(payload, origin)),
        )
        live = RemoteLive(feed, origin, self.listener.send)
        self.listener.on(FOLLOWED_CHANNEL, live.hear_followed)
        self.listener.on(live_channel(origin), live.hear_text)
        self.tasks += [("remote events", remote.run), ("live text", live.run)]
        return live.relay

    def follow_settings(
        self,
        store: SqlStore,
        keyring: Keyring,
        load_endpoints: Callable[[], Awaitable[None]],
        wake_schedules: Callable[[], None],
    ) -> None:
        """Follow the changes of keys, endpoints of callbacks, sessions of the page and schedules on other nodes."""
        self.refresh(KEYS_CHANNEL, keyring.refresh)
        self.refresh(ENDPOINTS_CHANNEL, load_endpoints)
        self.refresh(SESSIONS_CHANNEL, store.page_sessions.check)
        self.wake(SCHEDULES_CHANNEL, wake_schedules)

    def refresh(self, channel: str, refresh: Callable[[], Awaitable[None]]) -> None:
        """Call `refresh` after each notification on a channel, and after each gap."""
        refresher = Refresher(channel, refresh)
        self.listener.on(channel, refresher.hear)
        self.tasks.append((f"refresh {channel}", refresher.run))

    def wake(self, channel: str, wake: Callable[[], None]) -> None:
        """Call `wake` after each notification on a channel, and after each gap."""
        self.listener.on(channel, lambda _payload: wake())

    async def run(self) -> None:
        """Run all of it until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name, task in self.tasks:
                group.create_task(_run(task), name=name)
            group.create_task(self.listener.run(), name="listener")


async def _run(task: Callable[[], Awaitable[None]]) -> None:
    await task()
