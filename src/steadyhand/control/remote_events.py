"""Brings the events that other nodes have stored to the followers on this node.

A notification names jobs and numbers of events; the events are read from the store, once for all followers of a job on
this node. A follower joins them by their numbers, so one that is read twice is passed on once, and one that was missed
is read by the follower itself.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from steadyhand.errors import StoreError
from steadyhand.event_log import EventFeed
from steadyhand.ports import JobAnnouncement, Store

READ_AT_ONCE = 3
"""The jobs that are read at the same time; the store has as many threads for short reads."""
MAX_JOBS = 10_000
"""The followed jobs of which it is known how far they were read."""
_PAGE = 500


class RemoteEvents:
    """Publishes the events that other nodes store. It belongs to one event loop; `run` is its only task."""

    def __init__(self, store: Store, feed: EventFeed) -> None:
        self._store = store
        self._feed = feed
        self._due: dict[str, int] = {}
        self._reading: set[str] = set()
        self._read_to: OrderedDict[str, int] = OrderedDict()
        self._woken = asyncio.Event()

    def hear(self, announced: Sequence[JobAnnouncement] | None) -> None:
        """Note the jobs that another node has announced; None may be any job."""
        if announced is None:
            self._due.clear()
            self._feed.mark_gap()
            return
        for job in announced:
            if not self._feed.follower_count(job.job_id):
                self._read_to.pop(job.job_id, None)
                if job.has_changed:
                    self._feed.announce(job.job_id)
                continue
            after = max(job.first - 1, self._read_to.get(job.job_id, 0))
            if after < job.last:
                self._due[job.job_id] = min(after, self._due.get(job.job_id, after))
                self._woken.set()

    async def run(self) -> None:
        """Read and publish until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(READ_AT_ONCE):
                group.create_task(self._read_all(), name="remote events")

    async def _read_all(self) -> None:
        while True:
            # One reader for each job: its events are published in their order.
            while job_id := next((each for each in self._due if each not in self._reading), None):
                self._reading.add(job_id)
                try:
                    await self._publish(job_id, self._due.pop(job_id))
                finally:
                    self._reading.discard(job_id)
            self._woken.clear()
            await self._woken.wait()

    async def _publish(self, job_id: str, after: int) -> None:
        try:
            while events := await self._store.list_events(job_id, after, _PAGE):
                after = events[-1].seq
                self._read_to[job_id] = max(after, self._read_to.pop(job_id, 0))
                self._feed.publish(job_id, events)
                if len(events) < _PAGE:
                    break
        except StoreError:
            self._feed.mark_gap(job_id)  # its followers read the store by themselves, and see the error
        while len(self._read_to) > MAX_JOBS:
            self._read_to.popitem(last=False)
