"""The activity of a job that has not ended: its phase, its last event and how long ago, its limits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from steadyhand.cli.sanitize import as_mapping, format_age, format_duration, one_line, parse_time
from steadyhand.client import ENDED_STATES, Client
from steadyhand.errors import NotFound, ServiceUnreachable

_RECENT_EVENTS = 200
_CALLS_WAITING = "calls.waiting"
_CALL_EVENTS = (_CALLS_WAITING, "calls.answered")
_PHASE_NAMES = {"checking_out": "checking out"}


@dataclass(frozen=True, slots=True)
class Activity:
    """Lines for people: each a name and a text."""

    rows: Sequence[tuple[str, str]]

    def sentence(self) -> str:
        """Return all of it on one line."""
        return " · ".join(f"{name}: {text}" for name, text in self.rows)


def phase_text(data: Mapping[str, Any]) -> str:
    """Return a phase for people, such as `setup: npm ci`."""
    phase = one_line(data.get("phase", "?"), 40)
    detail = data.get("detail")
    name = _PHASE_NAMES.get(phase, phase)
    return f"{name}: {one_line(detail, 120)}" if detail else name


def load_activity(client: Client, job: Mapping[str, Any], now: datetime) -> Activity | None:
    """Return the activity of a job; `None` if it has ended. It reads the newest events only."""
    if job.get("state") in ENDED_STATES:
        return None
    newest = job.get("last_event")
    newest = newest if isinstance(newest, int) else 0
    after = max(0, newest - _RECENT_EVENTS)
    try:
        events = [event.document for event in client.events(str(job.get("id")), after=after)]
    except (NotFound, ServiceUnreachable):
        events = []  # it was deleted meanwhile; what is known of it is shown all the same
    return describe_activity(job, events, now)


def describe_activity(job: Mapping[str, Any], events: Sequence[Mapping[str, Any]], now: datetime) -> Activity:
    """Return the activity of a job that has not ended, from its newest events."""
    rows: list[tuple[str, str]] = []
    phases = [
        event for event in events if event.get("type") == "phase" and event.get("run") == job.get("run")
    ]
    is_running = job.get("state") == "running"
    if is_running and phases:
        rows.append(("phase", f"{phase_text(as_mapping(phases[-1].get('data')))}{_ago(phases[-1], now)}"))
    if events:
        rows.append(("last event", f"{one_line(events[-1].get('type', '?'), 40)}{_ago(events[-1], now)}"))
    if is_running:
        idle, limit = job.get("idle_timeout_seconds"), job.get("timeout_seconds")
        if isinstance(idle, int | float):
            rows.append(("idle limit", format_duration(float(idle))))
        started = parse_time(job.get("started_at"))
        calls = [
            event
            for event in events
            if event.get("type") in _CALL_EVENTS and event.get("run") == job.get("run")
        ]
        if calls and calls[-1].get("type") == _CALLS_WAITING:
            rows.append(("deadline", "stands still, waits for results of the client's tools"))
        elif isinstance(limit, int | float) and started is not None:
            deadline = _deadline(job, started, float(limit)) + _waited(calls)
            left = (deadline - now).total_seconds()
            rows.append(("deadline", f"in {format_duration(left)}" if left > 0 else "now"))
    return Activity(rows)


def _waited(calls: Sequence[Mapping[str, Any]]) -> timedelta:
    """Return the time in which the run waited for its client, as far as its newest events tell."""
    total, since = timedelta(), None
    for event in calls:
        at = parse_time(event.get("at"))
        if event.get("type") == _CALLS_WAITING:
            since = at
        elif at is not None and since is not None:
            total += at - since
            since = None
    return total


def _deadline(job: Mapping[str, Any], started: datetime, limit: float) -> datetime:
    """Return the deadline of the newest run; the runs before it that were parked share it."""
    used = 0.0
    for run in reversed(list(job.get("runs") or ())[:-1]):
        start, end = (
            parse_time(as_mapping(run).get("started_at")),
            parse_time(as_mapping(run).get("finished_at")),
        )
        if as_mapping(run).get("state") != "parked" or start is None or end is None:
            break
        used += (end - start).total_seconds()
    return started + timedelta(seconds=limit - used)


def _ago(event: Mapping[str, Any], now: datetime) -> str:
    at = parse_time(event.get("at"))
    return "" if at is None else f" ({format_age((now - at).total_seconds())})"
