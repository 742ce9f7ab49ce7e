"""The port of who counts what happens to jobs."""

from collections.abc import Sequence
from typing import Protocol

from steadyhand.events import Event
from steadyhand.job import Job


class JobObserver(Protocol):
    """Counts what happens to jobs. Its methods are called on the event loop's thread, are short and do not raise."""

    def events_stored(self, events: Sequence[Event]) -> None:
        """Count events of one job that were stored."""
        ...

    def phase_began(self, job_id: str, phase: str) -> None:
        """Count a phase of a run, when it begins."""
        ...

    def state_changed(self, job: Job, source: str | None, target: str) -> None:
        """Count a stored change of state; `job` is the job after it."""
        ...


class _NoObserver:
    """Counts nothing."""

    def events_stored(self, events: Sequence[Event]) -> None:
        pass

    def phase_began(self, job_id: str, phase: str) -> None:
        pass

    def state_changed(self, job: Job, source: str | None, target: str) -> None:
        pass


NO_OBSERVER: JobObserver = _NoObserver()


class JobObservers:
    """Several observers as one."""

    def __init__(self, *observers: JobObserver) -> None:
        self._observers = observers

    def events_stored(self, events: Sequence[Event]) -> None:
        """Pass events on."""
        for observer in self._observers:
            observer.events_stored(events)

    def phase_began(self, job_id: str, phase: str) -> None:
        """Pass the begin of a phase on."""
        for observer in self._observers:
            observer.phase_began(job_id, phase)

    def state_changed(self, job: Job, source: str | None, target: str) -> None:
        """Pass a change of state on."""
        for observer in self._observers:
            observer.state_changed(job, source, target)
