"""Who waits for which run, and which run a client's repeat of a request belongs to."""

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

REMEMBERED_SECONDS = 3600.0
"""How long a request is known by its body; a run may take as long before its client asks again."""
_MOST = 10_000

Asked = tuple[str, str]
"""A key's id and the fingerprint of what it asked."""


class Attending:
    """The clients that wait for runs of this process, and the newest run of each request."""

    def __init__(self) -> None:
        self._present: Counter[str] = Counter()
        self._newest: OrderedDict[Asked, tuple[str, float]] = OrderedDict()
        self._alone: OrderedDict[str, float] = OrderedDict()

    @contextmanager
    def at(self, job_id: str) -> Iterator[None]:
        """Wait for a run for the length of the block."""
        self._present[job_id] += 1
        self._alone.pop(job_id, None)
        try:
            yield
        finally:
            self._present[job_id] -= 1
            if not self._present[job_id]:
                del self._present[job_id]
                self._alone[job_id] = time.monotonic()
                _bound(self._alone)

    def anybody_at(self, job_id: str) -> bool:
        """Say whether a client waits for this run."""
        return job_id in self._present

    def alone_for(self, job_id: str) -> float | None:
        """Give for how many seconds nobody has waited for a run that somebody waited for before; else null."""
        since = self._alone.get(job_id)
        return None if since is None else time.monotonic() - since

    def remember(self, asked: Asked, job_id: str) -> None:
        """Note the run that a request started."""
        self._newest.pop(asked, None)
        self._newest[asked] = (job_id, time.monotonic())
        _bound(self._newest)

    def recall(self, asked: Asked) -> str | None:
        """Give the newest run of the same request, if it is still remembered."""
        job_id, since = self._newest.get(asked, (None, 0.0))
        return job_id if time.monotonic() - since <= REMEMBERED_SECONDS else None


def _bound(kept: OrderedDict[Any, Any]) -> None:
    while len(kept) > _MOST:
        kept.popitem(last=False)
