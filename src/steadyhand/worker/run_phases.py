"""The phases of a run as events of its job."""

import time
from collections.abc import Callable, Collection
from datetime import datetime

from steadyhand.event_log import EventLog
from steadyhand.events import EventBody, LiveProgress, PhaseProgress, PhaseStarted, TextDelta
from steadyhand.job import Job
from steadyhand.ports import Emit, PhaseName

PROGRESS_INTERVAL_SECONDS = 1.0
"""The least time between two reports of progress."""


class RunPhases:
    """Emits the phases of one run as its events, and publishes their progress; a `ports.PhaseReporter`."""

    def __init__(
        self,
        event_log: EventLog,
        job: Job,
        clock: Callable[[], datetime],
        emit: Emit,
        stored: Collection[str] = (),
    ) -> None:
        """Create it. The phases that are `stored` already are not emitted again."""
        self._stored = stored
        self._event_log = event_log
        self._job = job
        self._clock = clock
        self._emit = emit
        self._phase: PhaseName | None = None
        self._published_at = float("-inf")

    async def report_phase(self, phase: PhaseName, detail: str | None) -> None:
        """Emit that a phase begins; its work does not wait for the store. The same phase twice in a row is one."""
        if phase != self._phase:
            self._phase = phase
            if phase not in self._stored:
                await self._emit(PhaseStarted(phase, detail))

    def report_progress(self, detail: str) -> None:
        """Publish the progress of the phase, at most once a second."""
        now = time.monotonic()
        if self._phase is None or now - self._published_at < PROGRESS_INTERVAL_SECONDS:
            return
        self._published_at = now
        body = PhaseProgress(self._phase, detail)
        self._event_log.publish_live(LiveProgress(self._job.id, self._job.run, self._clock(), body))


def with_running_phase(emit: Emit, on_running: Callable[[], None] = lambda: None) -> Emit:
    """Return a function that emits events, and before the first of them that the agent runs.

    `on_running` is called then.
    """
    is_running = False

    async def emit_event(body: EventBody | TextDelta) -> None:
        nonlocal is_running
        if not is_running:
            is_running = True
            on_running()
            await emit(PhaseStarted("running"))
        await emit(body)

    return emit_event
