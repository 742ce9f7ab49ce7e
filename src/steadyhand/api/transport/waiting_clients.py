"""The clients that wait for runs, and the newest run of each request, to recognize a repeated request.

A client that comes back may come to another node. So a node that does not know a request, or has no client for a run
any more, asks the others; on one node there are none to ask.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from steadyhand.errors import SteadyhandError
from steadyhand.ports import CallBody, LocalNodeCalls, NodeCalls

REQUEST_TTL_SECONDS = 3600.0
"""The time for which a request is remembered; a run may take this long before its client repeats the request."""
_MAX_ENTRIES = 10_000
_FIND_CALL = "clients.find"
_AWAITED_CALL = "clients.awaited"
_CALL_SECONDS = 2.0
"""The time in which other nodes answer; the client waits for it."""

RequestKey = tuple[str, str]
"""A key's id and the fingerprint of a request's body."""


class WaitingClients:
    """The clients of this node that wait for runs, and the newest run of each request."""

    def __init__(self, node_calls: NodeCalls | None = None) -> None:
        self._node_calls = node_calls or LocalNodeCalls()
        self._node_calls.serve(_FIND_CALL, self._serve_find)
        self._node_calls.serve(_AWAITED_CALL, self._serve_awaited)
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

    # --- on all nodes ----------------------------------------------------------------------

    async def find_job_anywhere(self, request_key: RequestKey) -> str | None:
        """Return the newest run of the same request on any node, or None."""
        key_id, body_fingerprint = request_key
        answers = await self._ask_others(_FIND_CALL, {"key": key_id, "fingerprint": body_fingerprint})
        found = [(float(answer["age"]), str(answer["job"])) for answer in answers if answer]
        job_id = self.find_job(request_key)
        if job_id is not None:
            found.append((time.monotonic() - self._latest_jobs[request_key][1], job_id))
        return min(found)[1] if found else None

    async def is_awaited_anywhere(self, job_id: str) -> bool:
        """Return True if a client waits for this run on any node."""
        if self.has_waiter(job_id):
            return True
        answers = await self._ask_others(_AWAITED_CALL, {"job": job_id})
        return any(answer["waits"] for answer in answers)

    async def unattended_seconds_anywhere(self, job_id: str) -> float | None:
        """Return as `unattended_seconds` for the clients of all nodes."""
        answers = await self._ask_others(_AWAITED_CALL, {"job": job_id})
        if self.has_waiter(job_id) or any(answer["waits"] for answer in answers):
            return None
        ages = [self.unattended_seconds(job_id), *(answer["unattended"] for answer in answers)]
        return min((age for age in ages if age is not None), default=None)

    async def _ask_others(self, kind: str, body: CallBody) -> Sequence[CallBody]:
        """Return the answers of the other nodes that answer in time."""
        calls = self._node_calls

        async def ask(node: str) -> CallBody | None:
            try:
                return await calls.call(node, kind, body, _CALL_SECONDS)
            except SteadyhandError:  # it has just died, or it runs an older version
                return None

        try:
            others = await calls.list_others()
        except SteadyhandError:
            return ()
        if not others:
            return ()
        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(ask(node)) for node in others]
        answers = [task.result() for task in asking]
        return [answer for answer in answers if answer is not None]

    async def _serve_find(self, body: CallBody) -> CallBody:
        request_key = (body["key"], body["fingerprint"])
        job_id = self.find_job(request_key)
        if job_id is None:
            return {}
        return {"job": job_id, "age": time.monotonic() - self._latest_jobs[request_key][1]}

    async def _serve_awaited(self, body: CallBody) -> CallBody:
        job_id = body["job"]
        return {"waits": self.has_waiter(job_id), "unattended": self.unattended_seconds(job_id)}


def _evict_oldest(entries: OrderedDict[Any, Any]) -> None:
    while len(entries) > _MAX_ENTRIES:
        entries.popitem(last=False)
