"""Calls that agents of this node wait for, made by those who asked for the runs."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from steadyhand.ports import ClientCall

_REMEMBERED = 1_000


class Waiting:
    """One turn's calls, until all their results are there."""

    def __init__(self, calls: Sequence[ClientCall]) -> None:
        self.ids = frozenset(call.id for call in calls)
        self._results: asyncio.Future[Mapping[str, str]] = asyncio.get_running_loop().create_future()

    def answer(self, results: Mapping[str, str]) -> bool:
        """Give the results; false when others were given, or it is too late."""
        if self._results.done():
            return False
        self._results.set_result(results)
        return True

    async def results(self, seconds: float) -> Mapping[str, str]:
        """Wait for the results; raises `TimeoutError`."""
        async with asyncio.timeout(seconds):
            return await self._results


class Exchange:
    """Brings calls and their results together. At most one turn's calls of a job wait at a time.

    `seconds` is how long an agent's process waits; after that its run ends and a later result resumes its session.
    """

    def __init__(self, seconds: float = 600.0) -> None:
        self.seconds = seconds
        self._waiting: dict[str, Waiting] = {}
        self._given: OrderedDict[str, tuple[Mapping[str, str], int]] = OrderedDict()

    @contextmanager
    def waiting(self, job_id: str, calls: Sequence[ClientCall]) -> Iterator[Waiting]:
        """Let these calls of a job wait for the length of the block."""
        waiting = self._waiting[job_id] = Waiting(calls)
        try:
            yield waiting
        finally:
            del self._waiting[job_id]

    def wanted(self, job_id: str) -> frozenset[str]:
        """Give the ids of the calls of a job that wait."""
        waiting = self._waiting.get(job_id)
        return frozenset() if waiting is None else waiting.ids

    def answer(self, job_id: str, results: Mapping[str, str], after: int) -> bool:
        """Give all results of the calls that wait; `after` is the job's newest event before that."""
        waiting = self._waiting.get(job_id)
        if waiting is None or not waiting.answer(results):
            return False
        self.remember(job_id, results, after)
        return True

    def remember(self, job_id: str, results: Mapping[str, str], after: int) -> None:
        """Note which results were given last, so that a repeat of them is harmless."""
        self._given.pop(job_id, None)
        self._given[job_id] = (results, after)
        while len(self._given) > _REMEMBERED:
            self._given.popitem(last=False)

    def given(self, job_id: str, results: Mapping[str, str]) -> int | None:
        """Give what `after` was when the very same results were given last; null when they were not."""
        known, after = self._given.get(job_id, ({}, 0))
        return after if known and known == results else None
