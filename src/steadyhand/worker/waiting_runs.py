"""Runs that wait for results of their clients' tools. Each gives its slot to other jobs and keeps its process.

The number of such processes is bounded, and so is their memory, which they share with the processes that stay after a
job. Above it the one that waits longest is ended, once the agent's session holds its calls: its results then resume the
session.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import structlog

from steadyhand.outcome import StopReason
from steadyhand.ports import Claim, IsInSession, Queue
from steadyhand.tool_calls import PendingCalls

MAX_WAITING_RUNS_PER_KEY = 16
MEMORY_SECONDS = 0.5
"""How often the memory is looked at while a run waits."""
RECHECK_SECONDS = 0.25
"""How often the sessions are read while there are too many processes."""


class WaitingRun:
    """One run that waits; a `tool_calls.RunSlot`."""

    def __init__(self, queue: Queue, claim: Claim, pending: PendingCalls, is_in_session: IsInSession) -> None:
        self.claim = claim
        self.pending = pending
        self.is_in_session = is_in_session
        self.since = time.monotonic()
        """When it began to wait."""
        self.is_suspended = False
        """True if the run has given its slot up, or waits for it."""
        self._queue = queue

    @property
    def stays(self) -> bool:
        """True if the process is not being ended."""
        return not self.pending.closed

    def reclaim(self) -> bool:
        """Request the slot, before the queue; return True if the run has it now."""
        return not self.is_suspended or self._queue.resume(self.claim)

    def release(self) -> None:
        """Release the slot, also if it has been requested again."""
        self.is_suspended = True
        self._queue.suspend(self.claim)

    def end_process(self) -> None:
        """Request the process to stop; results that come from now on resume the session."""
        self.pending.closed = True
        self.claim.stop.request(StopReason.DISPLACED)


class WaitingRuns:
    """The waiting runs of this node, in the order in which they began to wait."""

    def __init__(
        self,
        queue: Queue,
        max_runs: int,
        max_runs_per_key: int,
        *,
        count_surplus: Callable[[], int] = lambda: 0,
    ) -> None:
        """Keep the bounds. `count_surplus` returns how many of the runs the memory has no room for."""
        self._queue = queue
        self._count_surplus = count_surplus
        self._max_runs = max_runs
        self._max_runs_per_key = max_runs_per_key
        self._runs: list[WaitingRun] = []
        self._changed = asyncio.Event()
        self._log = structlog.get_logger("steadyhand.worker")

    @contextmanager
    def entered(self, claim: Claim, pending: PendingCalls, is_in_session: IsInSession) -> Iterator[None]:
        """Let a run wait for the length of the block, without its slot if there is room for its process.

        Without room it keeps its slot until another process has ended.
        """
        run = WaitingRun(self._queue, claim, pending, is_in_session)
        pending.slot = run
        self._runs.append(run)
        self._release_slots()
        try:
            yield
        finally:
            pending.slot = None
            self._runs.remove(run)
            self._release_slots()

    def _release_slots(self) -> None:
        room = self._max_runs - sum(run.is_suspended for run in self._runs)
        for run in self._runs:
            if room > 0 and not run.is_suspended and not run.pending.accepted and run.stays:
                run.release()
                room -= 1
        self._changed.set()

    def staying(self) -> Sequence[tuple[float, str]]:
        """Return when the runs whose processes stay began to wait, and their keys."""
        return [(run.since, run.pending.key_id) for run in self._runs if run.stays]

    async def run(self) -> None:
        """End processes while there are too many, until cancelled."""
        while True:
            self._changed.clear()
            await self._end_oldest()
            pause = MEMORY_SECONDS if self._runs else None
            if any(map(self._is_surplus, self._runs)):
                pause = RECHECK_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()

    async def _end_oldest(self) -> None:
        # While one is being ended, its memory is still to come.
        beyond_memory = self._count_surplus() if all(run.stays for run in self._runs) else 0
        for run in list(self._runs):
            if beyond_memory > 0 and self._can_end(run) and await run.is_in_session() and self._can_end(run):
                self._log.info("run.displaced", job=run.claim.job.id, reason="memory")
                run.end_process()
                beyond_memory -= 1
        for run in list(self._runs):
            # Asked again after the wait: its results may have come, or another run may have gone.
            if self._is_surplus(run) and await run.is_in_session() and self._is_surplus(run):
                self._log.info("run.displaced", job=run.claim.job.id)
                run.end_process()

    def _can_end(self, run: WaitingRun) -> bool:
        return run in self._runs and run.stays and not run.pending.accepted

    def _is_surplus(self, run: WaitingRun) -> bool:
        """Return True if there are more processes than may stay, and this one can end."""
        if not self._can_end(run):
            return False
        staying = [each for each in self._runs if each.stays]
        of_key = [each for each in staying if each.pending.key_id == run.pending.key_id]
        return len(staying) > self._max_runs or len(of_key) > self._max_runs_per_key
