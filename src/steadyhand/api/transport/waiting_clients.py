"""Who waits for which run, and which run a client's repeat of a request belongs to."""

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

REQUEST_TTL_SECONDS = 3600.0
"""How long a request is known by its body; a run may take as long before its client asks again."""
_MAX_ENTRIES = 10_000

RequestKey = tuple[str, str]
"""A key's id and the fingerprint of what it asked."""


class WaitingClients:
    """The clients that wait for runs of this process, and the newest run of each request."""

    def __init__(self) -> None:
        self._waiter_counts: Counter[str] = Counter()
        self._latest_jobs: OrderedDict[RequestKey, tuple[str, float]] = OrderedDict()
        self._unattended_since: OrderedDict[str, float] = OrderedDict()

    @contextmanager
    def track(self, job_id: str) -> Iterator[None]:
        """Wait for a run for the length of the block."""
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
        """Say whether a client waits for this run."""
        return job_id in self._waiter_counts

    def unattended_seconds(self, job_id: str) -> float | None:
        """Give for how many seconds nobody has waited for a run that somebody waited for before; else null."""
        since = self._unattended_since.get(job_id)
        return None if since is None else time.monotonic() - since

    def remember_job(self, request_key: RequestKey, job_id: str) -> None:
        """Note the run that a request started."""
        self._latest_jobs.pop(request_key, None)
        self._latest_jobs[request_key] = (job_id, time.monotonic())
        _evict_oldest(self._latest_jobs)

    def find_job(self, request_key: RequestKey) -> str | None:
        """Give the newest run of the same request, if it is still remembered."""
        job_id, since = self._latest_jobs.get(request_key, (None, 0.0))
        return job_id if time.monotonic() - since <= REQUEST_TTL_SECONDS else None


def _evict_oldest(entries: OrderedDict[Any, Any]) -> None:
    while len(entries) > _MAX_ENTRIES:
        entries.popitem(last=False)
