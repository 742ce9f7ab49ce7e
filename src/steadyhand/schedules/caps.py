"""The caps over the life of a schedule. Pure."""

from datetime import datetime

from steadyhand.money import format_dollars
from steadyhand.ports import Schedule, SchedulePause


def find_reached_cap(schedule: Schedule, now: datetime) -> SchedulePause | None:
    """Return the pause of a schedule that has reached one of its caps, or None."""
    spec = schedule.spec
    if spec.max_micros is not None and schedule.spent_micros >= spec.max_micros:
        spent, cap = (format_dollars(each, min_places=2) for each in (schedule.spent_micros, spec.max_micros))
        return SchedulePause(now, "max_usd", f"Its jobs have cost {spent} of {cap} USD.")
    if spec.max_runs is not None and schedule.runs >= spec.max_runs:
        return SchedulePause(now, "max_runs", f"It has fired {schedule.runs} of {spec.max_runs} times.")
    if spec.max_failures is not None and schedule.failures >= spec.max_failures:
        return SchedulePause(now, "max_failures", f"It has failed {schedule.failures} times in a row.")
    return None
