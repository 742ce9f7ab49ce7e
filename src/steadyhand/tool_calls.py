"""Calls that agents of this node wait for, made by those who asked for the runs."""

import asyncio
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from weakref import WeakValueDictionary

from steadyhand.ports import ClientToolCall

MCP_SERVER_NAME = "client"
"""What an agent knows its caller's tools by: the server that has them."""
MCP_TOOL_PREFIX = f"mcp__{MCP_SERVER_NAME}__"
"""What the names of those tools begin with in what the agent says of its work."""


def results_digest(results: Mapping[str, str]) -> str:
    """Give what stands for the results of calls, so that the same ones are known again."""
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()


class PendingCalls:
    """One turn's calls, until all their results are there."""

    def __init__(self, calls: Sequence[ClientToolCall]) -> None:
        self.ids = frozenset(call.id for call in calls)
        self._results: asyncio.Future[Mapping[str, str]] = asyncio.get_running_loop().create_future()
        self._timeout: asyncio.Timeout | None = None
        self._timeout_disabled = False

    def disable_timeout(self) -> bool:
        """Let the calls wait without a bound: their results are there and are about to be given; false if too late."""
        if self._timeout is not None:
            if self._timeout.expired():
                return False
            self._timeout.reschedule(None)
        self._timeout_disabled = True
        return True

    def set_results(self, results: Mapping[str, str]) -> None:
        """Give the results, after `hold`; whoever waited may be gone by now."""
        if not self._results.done():
            self._results.set_result(results)

    async def wait_for_results(self, timeout_seconds: float) -> Mapping[str, str]:
        """Wait for the results; raises `TimeoutError`."""
        async with asyncio.timeout(None if self._timeout_disabled else timeout_seconds) as self._timeout:
            return await self._results


class ToolCallBroker:
    """Brings calls and their results together. At most one turn's calls of a job wait at a time.

    `seconds` is how long an agent's process waits; after that its run ends and a later result resumes its session.
    """

    def __init__(self, timeout_seconds: float = 600.0) -> None:
        self.timeout_seconds = timeout_seconds
        self._pending: dict[str, PendingCalls] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock_for(self, job_id: str) -> asyncio.Lock:
        """Give the lock that whoever brings results to a job holds meanwhile."""
        return self._locks.setdefault(job_id, asyncio.Lock())

    @contextmanager
    def pending(self, job_id: str, calls: Sequence[ClientToolCall]) -> Iterator[PendingCalls]:
        """Let these calls of a job wait for the length of the block."""
        pending = self._pending[job_id] = PendingCalls(calls)
        try:
            yield pending
        finally:
            del self._pending[job_id]

    def get(self, job_id: str) -> PendingCalls | None:
        """Give the calls of a job that wait."""
        return self._pending.get(job_id)
