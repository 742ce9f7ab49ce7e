"""The tokens that a job used after one of its events."""

from dataclasses import fields

from steadyhand.events import Event, UsageReported
from steadyhand.job import Job, Usage


class UsageSince:
    """Counts the tokens that a job used after one of its events. Feed all events in order."""

    def __init__(self, after: int) -> None:
        self.after = after
        self._usage_by_run: dict[int, Usage] = {}
        self._usage_before = Usage()

    def feed(self, event: Event) -> None:
        """Add an event."""
        if event.type == UsageReported.type:
            self._usage_by_run[event.run] = Usage(
                **{each.name: event.data[each.name] for each in fields(Usage)}
            )
        if event.seq <= self.after:
            self._usage_before = self._total()

    def restart_at(self, event: Event) -> None:
        """Count from this event on, which must be the last one fed."""
        self.after, self._usage_before = event.seq, self._total()

    def _total(self) -> Usage:
        total = Usage()
        for usage in self._usage_by_run.values():
            total = total.plus(usage)
        return total

    def so_far(self) -> Usage:
        """Return the usage after that event so far."""
        return _subtract(self._total(), self._usage_before)

    def final(self, job: Job) -> Usage:
        """Return the usage after that event, of an ended job."""
        return _subtract(job.usage, self._usage_before)


def _subtract(usage: Usage, before: Usage) -> Usage:
    difference = {
        field_.name: max(0, getattr(usage, field_.name) - getattr(before, field_.name))
        for field_ in fields(Usage)
    }
    return Usage(**difference)
