"""The phases of a run, reported by the part that does the work to the run that it works for.

The reporter is a context variable: a fetch or a checkout that no run waits for reports to nobody.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, Protocol

PhaseName = Literal["fetching", "checking_out", "setup", "starting", "running", "harvesting"]


class PhaseReporter(Protocol):
    """Receives the phases of one run."""

    async def report_phase(self, phase: PhaseName, detail: str | None) -> None:
        """Store that a phase begins; `detail` is the command of a setup, for example."""
        ...

    def report_progress(self, detail: str) -> None:
        """Publish the progress within the phase to the followers of the job; it is not stored."""
        ...


_reporter: ContextVar[PhaseReporter | None] = ContextVar("phase_reporter", default=None)


@contextmanager
def phases_reported_to(reporter: PhaseReporter) -> Iterator[None]:
    """Send the phases of the work within the block to `reporter`."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


async def report_phase(phase: PhaseName, detail: str | None = None) -> None:
    """Report that a phase of the run begins."""
    reporter = _reporter.get()
    if reporter is not None:
        await reporter.report_phase(phase, detail)


def report_progress(detail: str) -> None:
    """Report the progress within the current phase."""
    reporter = _reporter.get()
    if reporter is not None:
        reporter.report_progress(detail)


class ProgressRelay:
    """Passes the progress of work that several runs wait for on to all of them."""

    def __init__(self) -> None:
        self._waiting: list[PhaseReporter] = []

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Let the current run wait within the block: it gets the progress of the run that does the work."""
        reporter = _reporter.get()
        if reporter is None:
            yield
            return
        self._waiting.append(reporter)
        try:
            yield
        finally:
            self._waiting.remove(reporter)

    def report(self, detail: str) -> None:
        """Report progress of the current run's work, also to those who wait for it."""
        report_progress(detail)
        for reporter in self._waiting:
            reporter.report_progress(detail)


def is_reported() -> bool:
    """Return True if the current work belongs to a run, whose followers can see its progress."""
    return _reporter.get() is not None
