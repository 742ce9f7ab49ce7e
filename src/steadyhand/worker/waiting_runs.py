"""Runs that wait for results of their clients' tools. Each gives its slot to other jobs and keeps its process.

The number of such processes is bounded. Above it the one that waits longest is ended, once the agent's session holds
its calls: its results then resume the session.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import structlog

from steadyhand.outcome import StopReason
from steadyhand.ports import Claim, IsInSession, Queue
from steadyhand.tool_calls import PendingCalls

MAX_WAITING_RUNS_PER_KEY = 16
RECHECK_SECONDS = 0.25
"""How often the sessions are read while there are too many processes."""


class WaitingRun:
    """One run that waits; a `tool_calls.RunSlot`."""

    def __init__(self, queue: Queue, claim: Claim, pending: PendingCalls, is_in_session: IsInSession) -> None:
        self.claim = claim
        self.pending = pending
        self.is_in_session = is_in_session
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

    def __init__(self, queue: Queue, max_runs: int, max_runs_per_key: int) -> None:
        self._queue = queue
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

    async def run(self) -> None:
        """End processes while there are too many, until cancelled."""
        while True:
            self._changed.clear()
            await self._end_oldest()
            with suppress(TimeoutError):
                async with asyncio.timeout(
                    RECHECK_SECONDS if any(map(self._is_surplus, self._runs)) else None
                ):
                    await self._changed.wait()

    async def _end_oldest(self) -> None:
        for run in list(self._runs):
            # Asked again after the wait: its results may have come, or another run may have gone.
            if self._is_surplus(run) and await run.is_in_session() and self._is_surplus(run):
                self._log.info("run.displaced", job=run.claim.job.id)
                run.end_process()

    def _is_surplus(self, run: WaitingRun) -> bool:
        """Return True if there are more processes than may stay, and this one can end."""
        if run not in self._runs or not run.stays or run.pending.accepted:
            return False
        staying = [each for each in self._runs if each.stays]
        of_key = [each for each in staying if each.pending.key_id == run.pending.key_id]
        return len(staying) > self._max_runs or len(of_key) > self._max_runs_per_key
