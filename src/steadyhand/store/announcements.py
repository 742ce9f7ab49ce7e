"""Announcements of a transaction to other nodes: jobs that have new events, and tables of settings that have changed.

On Postgres each is a notification of the transaction itself, so it comes with the commit or not at all. It is a hint:
who hears it reads the tables. On SQLite one process is the only one, and nothing is announced.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from steadyhand.events import Event, StateChanged
from steadyhand.ports import JobAnnouncement
from steadyhand.store.driver import POSTGRES

JOBS_CHANNEL: Final = "steadyhand_jobs"
"""Jobs that have new events, or are new."""
KEYS_CHANNEL: Final = "steadyhand_keys"
ENDPOINTS_CHANNEL: Final = "steadyhand_endpoints"
SCHEDULES_CHANNEL: Final = "steadyhand_schedules"
SESSIONS_CHANNEL: Final = "steadyhand_sessions"
"""Sessions of browsers that have ended."""

MAX_PAYLOAD_LENGTH: Final = 7_900
MAX_PAYLOADS: Final = 16
"""The payloads about jobs of one transaction; of more jobs it announces only that there are some."""
_ANNOUNCED: Final = "steadyhand.announced"


@dataclass(slots=True)
class _Announced:
    jobs: dict[str, JobAnnouncement]
    payloads: dict[tuple[str, str], None]


def announce_events(connection: Connection, job_id: str, events: Sequence[Event]) -> None:
    """Announce new events of a job, in their order."""
    if connection.dialect.name != POSTGRES or not events:
        return
    jobs = _announced(connection).jobs
    before = jobs.get(job_id)
    first = events[0].seq if before is None else min(before.first, events[0].seq)
    has_changed = (before is not None and before.has_changed) or any(
        event.type == StateChanged.type for event in events
    )
    jobs[job_id] = JobAnnouncement(job_id, first, events[-1].seq, has_changed)


def announce(connection: Connection, channel: str, payload: str = "") -> None:
    """Announce a change on a channel; of several equal ones one."""
    if connection.dialect.name == POSTGRES:
        _announced(connection).payloads[channel, payload] = None


def _announced(connection: Connection) -> _Announced:
    found: _Announced = connection.info.setdefault(_ANNOUNCED, _Announced({}, {}))
    return found


def take_announced(connection: Connection, origin: str) -> Sequence[tuple[str, str]]:
    """Return the channels and payloads that were announced since the last transaction, and forget them.

    Those of a transaction that was rolled back may be among them: they are hints. `origin` is the name of this store.
    """
    announced: _Announced | None = connection.info.pop(_ANNOUNCED, None)
    if announced is None:
        return ()
    payloads = list(_encode_jobs(origin, list(announced.jobs.values())))
    if len(payloads) > MAX_PAYLOADS:
        payloads = [json.dumps([origin, None])]
    return [*((JOBS_CHANNEL, payload) for payload in payloads), *announced.payloads]


def _encode_jobs(origin: str, jobs: Sequence[JobAnnouncement]) -> Iterator[str]:
    room, entries = MAX_PAYLOAD_LENGTH, list[str]()
    for job in jobs:
        entry = json.dumps([job.job_id, job.first, job.last, int(job.has_changed)], separators=(",", ":"))
        if entries and len(entry) + 1 > room:
            yield _payload(origin, entries)
            room, entries = MAX_PAYLOAD_LENGTH, []
        if not entries:
            room -= len(_payload(origin, ()))
        entries.append(entry)
        room -= len(entry) + 1
    if entries:
        yield _payload(origin, entries)


def _payload(origin: str, entries: Sequence[str]) -> str:
    return f"[{json.dumps(origin)},[{','.join(entries)}]]"


def decode_jobs(payload: str, own_origin: str) -> Sequence[JobAnnouncement] | None:
    """Return the jobs of a payload, none of one's own; None if it may be any job."""
    try:
        origin, entries = json.loads(payload)
        if origin == own_origin:
            return ()
        if entries is None:
            return None
        return [
            JobAnnouncement(str(job_id), int(first), int(last), bool(has_changed))
            for job_id, first, last, has_changed in entries
        ]
    except (ValueError, TypeError):  # of another program, or of a release with another form
        return None
