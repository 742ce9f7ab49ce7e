"""Events whose job is gone, on Postgres: nothing reads them, as each reader finds the job first.

Retention deletes jobs and leaves their events, which go with their partition. A trigger notes each job that is deleted,
whoever deletes it, so that none is forgotten: also a node of the version before deletes jobs alone.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection

from steadyhand.store.driver import execute, fetch_all

LONGEST_TIME: Final = timedelta(days=2)
"""How long events may be left after their job. A partition has about a day of a busy service, so it is dropped about a
day after the first of its jobs: before its events would be deleted one by one."""
EVENTS_AT_ONCE: Final = 2000
JOBS_AT_ONCE: Final = 50
_MICROSECOND: Final = timedelta(microseconds=1)
_DUE: Final = (
    "(SELECT job FROM leftover_events WHERE job >= ? "
    "AND NOT EXISTS (SELECT 1 FROM jobs WHERE sequence = job) ORDER BY job LIMIT ?) UNION "
    "(SELECT job FROM leftover_events "
    "WHERE removed_at <= (extract(epoch FROM clock_timestamp()) * 1000000)::bigint - ? "
    "AND NOT EXISTS (SELECT 1 FROM jobs WHERE sequence = job) ORDER BY removed_at LIMIT ?) ORDER BY job"
)
# The numbers of a job's events have no gaps.
_DELETE_SOME: Final = (
    "WITH deleted AS (DELETE FROM events WHERE job = ? "
    "AND seq < (SELECT min(seq) FROM events WHERE job = ?) + ? RETURNING 1) SELECT count(*) FROM deleted"
)
_FORGET: Final = "DELETE FROM leftover_events WHERE job = ?"
_FORGET_RANGE: Final = "DELETE FROM leftover_events WHERE job >= ? AND job < ?"


def delete(connection: Connection, sequences: Sequence[int]) -> None:
    """Delete all events of jobs that this transaction has deleted."""
    if sequences:
        places = ", ".join("?" * len(sequences))
        execute(connection, f"DELETE FROM events WHERE job IN ({places})", sequences)  # noqa: S608  # only places
        execute(connection, f"DELETE FROM leftover_events WHERE job IN ({places})", sequences)  # noqa: S608


def delete_some(connection: Connection, first: int) -> bool:
    """Delete at most 2,000 events whose time is over; return True if there may be more.

    It is over for the jobs from `first` on at once, as their partition will not be dropped soon, and for others after
    `LONGEST_TIME`.
    """
    age = LONGEST_TIME // _MICROSECOND
    due = fetch_all(connection, _DUE, (first, JOBS_AT_ONCE, age, JOBS_AT_ONCE))
    left = EVENTS_AT_ONCE
    for (job,) in due:
        ((count,),) = fetch_all(connection, _DELETE_SOME, (job, job, left))
        if count == left:
            return True
        left -= count
        execute(connection, _FORGET, (job,))
    return len(due) >= JOBS_AT_ONCE


def forget(connection: Connection, first: int, end: int) -> None:
    """Forget the jobs of a range whose partition is dropped."""
    execute(connection, _FORGET_RANGE, (first, end))
