"""The ends of jobs and the changes of schedules, which wake the loop of schedules."""

import asyncio
from collections.abc import Sequence

from steadyhand.events import Event
from steadyhand.job import Job, State


class EndedJobs:
    """The jobs of schedules that have ended since the loop looked; a `JobObserver`. It belongs to one event loop."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.changed = asyncio.Event()

    def wake(self) -> None:
        """Wake the loop: a schedule was changed, or a job has ended."""
        self.changed.set()

    def events_stored(self, events: Sequence[Event]) -> None:
        """Do nothing: only the ends of jobs matter here."""

    def phase_began(self, job_id: str, phase: str) -> None:
        """Do nothing: only the ends of jobs matter here."""

    def state_changed(self, job: Job, source: str | None, target: str) -> None:
        """Remember the end of a job of a schedule, and wake the loop."""
        del source
        if job.spec.origin == "schedule" and State(target).ended:
            self.ids.add(job.id)
            self.wake()
