"""The clients that wait for runs, and the newest run of each request, to recognize a repeated request."""

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

REQUEST_TTL_SECONDS = 3600.0
"""The time for which a request is remembered; a run may take this long before its client repeats the request."""
_MAX_ENTRIES = 10_000

RequestKey = tuple[str, str]
"""A key's id and the fingerprint of a request's body."""


class WaitingClients:
    """The clients that wait for runs of this process, and the newest run of each request."""

    def __init__(self) -> None:
        self._waiter_counts: Counter[str] = Counter()
        self._latest_jobs: OrderedDict[RequestKey, tuple[str, float]] = OrderedDict()
        self._unattended_since: OrderedDict[str, float] = OrderedDict()

    @contextmanager
    def track(self, job_id: str) -> Iterator[None]:
        """Count a client as waiting for a run until the block ends."""
        self._waiter_counts[job_id] += 1
        self._unattended_since.pop(job_id, None)
        try:
            yield
        finally:
            self._waiter_counts[job_id] -= 1
            if not self._waiter_counts[job_id]:
                del self._waiter_counts[job_id]
                self._unattended_since[job_id] = time.monotonic()
                _evict_oldest(self._unattended_since)

    def has_waiter(self, job_id: str) -> bool:
        """Return true if a client waits for this run."""
        return job_id in self._waiter_counts

    def unattended_seconds(self, job_id: str) -> float | None:
        """Return the seconds since the last client stopped waiting for a run.

        Return None while a client waits, and if none ever did.
        """
        since = self._unattended_since.get(job_id)
        return None if since is None else time.monotonic() - since

    def remember_job(self, request_key: RequestKey, job_id: str) -> None:
        """Remember the run that a request started."""
        self._latest_jobs.pop(request_key, None)
        self._latest_jobs[request_key] = (job_id, time.monotonic())
        _evict_oldest(self._latest_jobs)

    def find_job(self, request_key: RequestKey) -> str | None:
        """Return the newest run of the same request, or None if it is no longer remembered."""
        job_id, since = self._latest_jobs.get(request_key, (None, 0.0))
        return job_id if time.monotonic() - since <= REQUEST_TTL_SECONDS else None


def _evict_oldest(entries: OrderedDict[Any, Any]) -> None:
    while len(entries) > _MAX_ENTRIES:
        entries.popitem(last=False)
