"""The tokens that a job used after one of its events."""

from dataclasses import fields

from steadyhand.events import Event, UsageReported
from steadyhand.job import Job, Usage


class Spending:
    """Tells what of a job's tokens was used after one of its events, which are all taken in order."""

    def __init__(self, after: int) -> None:
        self.after = after
        self._runs: dict[int, Usage] = {}
        self._before = Usage()

    def take(self, event: Event) -> None:
        """Take an event."""
        if event.type == UsageReported.type:
            self._runs[event.run] = Usage(**{each.name: event.data[each.name] for each in fields(Usage)})
        if event.seq <= self.after:
            self._before = self._all()

    def begin(self, event: Event) -> None:
        """Tell from this event on, which was just taken, of what is used after it."""
        self.after, self._before = event.seq, self._all()

    def _all(self) -> Usage:
        total = Usage()
        for usage in self._runs.values():
            total = total.plus(usage)
        return total

    def since(self) -> Usage:
        """Give what was used after that event so far."""
        return _less(self._all(), self._before)

    def rest(self, job: Job) -> Usage:
        """Give what was used after that event, of an ended job."""
        return _less(job.usage, self._before)


def _less(usage: Usage, before: Usage) -> Usage:
    left = {
        each.name: max(0, getattr(usage, each.name) - getattr(before, each.name)) for each in fields(Usage)
    }
    return Usage(**left)
