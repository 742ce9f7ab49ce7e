"""Calls that agents of this node wait for, made by those who asked for the runs."""

import asyncio
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from weakref import WeakValueDictionary

from steadyhand.ports import ClientCall

SERVER = "client"
"""What an agent knows its caller's tools by: the server that has them."""
PREFIX = f"mcp__{SERVER}__"
"""What the names of those tools begin with in what the agent says of its work."""


def digest_of(results: Mapping[str, str]) -> str:
    """Give what stands for the results of calls, so that the same ones are known again."""
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()


class Waiting:
    """One turn's calls, until all their results are there."""

    def __init__(self, calls: Sequence[ClientCall]) -> None:
        self.ids = frozenset(call.id for call in calls)
        self._results: asyncio.Future[Mapping[str, str]] = asyncio.get_running_loop().create_future()
        self._bound: asyncio.Timeout | None = None
        self._held = False

    def hold(self) -> bool:
        """Let the calls wait without a bound: their results are there and are about to be given; false if too late."""
        if self._bound is not None:
            if self._bound.expired():
                return False
            self._bound.reschedule(None)
        self._held = True
        return True

    def answer(self, results: Mapping[str, str]) -> None:
        """Give the results, after `hold`; whoever waited may be gone by now."""
        if not self._results.done():
            self._results.set_result(results)

    async def results(self, seconds: float) -> Mapping[str, str]:
        """Wait for the results; raises `TimeoutError`."""
        async with asyncio.timeout(None if self._held else seconds) as self._bound:
            return await self._results


class Exchange:
    """Brings calls and their results together. At most one turn's calls of a job wait at a time.

    `seconds` is how long an agent's process waits; after that its run ends and a later result resumes its session.
    """

    def __init__(self, seconds: float = 600.0) -> None:
        self.seconds = seconds
        self._waiting: dict[str, Waiting] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def one_by_one(self, job_id: str) -> asyncio.Lock:
        """Give the lock that whoever brings results to a job holds meanwhile."""
        return self._locks.setdefault(job_id, asyncio.Lock())

    @contextmanager
    def waiting(self, job_id: str, calls: Sequence[ClientCall]) -> Iterator[Waiting]:
        """Let these calls of a job wait for the length of the block."""
        waiting = self._waiting[job_id] = Waiting(calls)
        try:
            yield waiting
        finally:
            del self._waiting[job_id]

    def of(self, job_id: str) -> Waiting | None:
        """Give the calls of a job that wait."""
        return self._waiting.get(job_id)
