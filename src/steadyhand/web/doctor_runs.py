"""Runs of the checks of `steadyhand doctor` inside the service: one at a time, with a bound, and the newest is kept."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime

from steadyhand.clock import utc_now
from steadyhand.errors import RetryLater
from steadyhand.ports import DoctorCheck

MAX_SECONDS = 60.0
"""The time of a run. A workspace that cannot be reached takes 15 s of it."""
REST_SECONDS = 300.0
"""The time without a run after one that did not end: what it waits for, such as a hung disk, may hold a thread."""

IterChecks = Callable[[], AsyncGenerator[Sequence[DoctorCheck], None]]


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """The checks of a run; `is_complete` is False if it took too long and the rest is missing."""

    at: datetime
    seconds: float
    checks: Sequence[DoctorCheck]
    is_complete: bool


class DoctorRuns:
    """Runs the checks. A request that comes during a run gets the report of that run."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.newest: DoctorReport | None = None
        self._clock = clock
        self._lock = asyncio.Lock()
        self._runs = 0
        self._rests_until = 0.0

    async def run(self, iter_checks: IterChecks, max_seconds: float = MAX_SECONDS) -> DoctorReport:
        """Return the report of a run; raise `RetryLater` soon after one that did not end."""
        seen = self._runs
        async with self._lock:
            if self._runs != seen and self.newest is not None:
                return self.newest
            wait = self._rests_until - self._clock()
            if wait > 0:
                raise RetryLater(
                    "The last run did not end in time. See the log and the state of the disk, and try again later.",
                    code="rate_limited",
                    retry_after=round(wait) + 1,
                )
            self.newest = await self._run(iter_checks, max_seconds)
            self._runs += 1
            return self.newest

    async def _run(self, iter_checks: IterChecks, max_seconds: float) -> DoctorReport:
        at, started, is_complete = utc_now(), self._clock(), True
        checks: list[DoctorCheck] = []
        try:
            async with asyncio.timeout(max_seconds), aclosing(iter_checks()) as groups:
                async for group in groups:
                    checks += group
        except TimeoutError:
            is_complete = False
            self._rests_until = self._clock() + REST_SECONDS
        return DoctorReport(at, self._clock() - started, checks, is_complete)
