"""Jobs in brief, for lists: their rows are read by one statement if they may have changed, and compared.

A list is asked for again and again, mostly for the same jobs, and a job's object costs more than its row.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from steadyhand.job import Job
from steadyhand.store.changed_jobs import ChangedJobs
from steadyhand.store.driver import POSTGRES, fetch_all
from steadyhand.store.mapping import BRIEF_PROMPT_LENGTH, job_from_row, run_from_row
from steadyhand.store.schema import jobs, runs

MAX_KEPT = 1_000
"""The jobs that are kept; those that were not read for the longest time are forgotten."""
_CHUNK_SIZE = 500
_LARGE_COLUMNS = frozenset({"prompt", "answer", "structured_output", "history"})
_SMALL_COLUMNS = tuple(column.name for column in jobs.c if column.name not in _LARGE_COLUMNS)
_NAMES = (*_SMALL_COLUMNS, "prompt", "last_event")
_COLUMNS = (
    *_SMALL_COLUMNS,
    f"substr(prompt, 1, {BRIEF_PROMPT_LENGTH})",
    "(SELECT coalesce(max(seq), 0) FROM events WHERE job = jobs.sequence{bounds})",
)
_BOUNDS = " AND job BETWEEN ? AND ?"
"""The first and the last of the jobs: Postgres then plans for the partitions of events that have them."""
_RUN_NAMES = tuple(column.name for column in runs.c)

Row = Sequence[Any]


@dataclass(slots=True)
class _Kept:
    """A job with the rows that it is made of, and the last snapshot in which it was found so; None if not known."""

    row: Row
    run_rows: Sequence[Row]
    job: Job
    snapshot: int | None


class BriefJobs:
    """Reads jobs in brief, in several threads. It keeps those that were read last, each with the rows it is made of.

    With `changes` it reads no rows of a job that no transaction has changed since. Without, it compares the rows.
    """

    def __init__(self, changes: ChangedJobs | None = None) -> None:
        self._changes = changes
        self._kept: dict[int, _Kept] = {}
        self._lock = threading.Lock()

    def read(self, connection: Connection, sequences: Sequence[int]) -> list[Job]:
        """Return the jobs with these sequences, which exist, in this order."""
        if not sequences:
            return []
        snapshot = None if self._changes is None else self._changes.snapshot(connection)
        found = self._unchanged(sequences, snapshot)
        rows, runs_by_job = _read_rows(connection, [each for each in sequences if each not in found])
        for sequence, row in rows.items():
            found[sequence] = self._job(row, runs_by_job.get(sequence, ()), snapshot)
        return [found[sequence] for sequence in sequences]

    def _unchanged(self, sequences: Sequence[int], snapshot: int | None) -> dict[int, Job]:
        """Return the kept jobs that are the same in a snapshot."""
        changes, found = self._changes, dict[int, Job]()
        if changes is None or snapshot is None:
            return found
        with self._lock:
            for sequence in sequences:
                kept = self._kept.get(sequence)
                if kept is None or kept.snapshot is None:
                    continue
                if changes.is_unchanged(sequence, kept.snapshot, snapshot):
                    kept.snapshot = max(kept.snapshot, snapshot)
                    self._kept[sequence] = self._kept.pop(sequence)  # as the newest
                    found[sequence] = kept.job
        return found

    def _job(self, row: Row, run_rows: Sequence[Row], snapshot: int | None) -> Job:
        sequence = row[0]
        with self._lock:
            kept = self._kept.pop(sequence, None)
        if kept is not None and kept.row == row and kept.run_rows == run_rows:
            kept = _Kept(row, run_rows, kept.job, snapshot)
        else:
            kept = _Kept(row, run_rows, _create_job(row, run_rows), snapshot)
        with self._lock:
            self._kept[sequence] = kept
            while len(self._kept) > MAX_KEPT:
                del self._kept[next(iter(self._kept))]
        return kept.job


def read_brief_jobs(connection: Connection, sequences: Sequence[int]) -> list[Job]:
    """Return the jobs with these sequences, which exist, in this order."""
    jobs_in_order: list[Job] = []
    for at in range(0, len(sequences), _CHUNK_SIZE):
        chunk = sequences[at : at + _CHUNK_SIZE]
        rows, runs_by_job = _read_rows(connection, chunk)
        jobs_in_order += [_create_job(rows[sequence], runs_by_job.get(sequence, ())) for sequence in chunk]
    return jobs_in_order


def _read_rows(
    connection: Connection, sequences: Sequence[int]
) -> tuple[dict[int, Row], dict[int, list[Row]]]:
    """Return the row of each job, and the rows of its runs in their order."""
    if not sequences:
        return {}, {}
    places = ", ".join("?" * len(sequences))
    is_postgres = connection.dialect.name == POSTGRES
    columns = ", ".join(_COLUMNS).format(bounds=_BOUNDS if is_postgres else "")
    bounds = (min(sequences), max(sequences)) if is_postgres else ()
    # Without other indexes: the sequences are the primary key.
    text = f"SELECT {columns} FROM jobs NOT INDEXED WHERE sequence IN ({places})"  # noqa: S608  # our own words
    rows: dict[int, Row] = {row[0]: row for row in fetch_all(connection, text, (*bounds, *sequences))}
    text = f"SELECT {', '.join(_RUN_NAMES)} FROM runs WHERE job IN ({places}) ORDER BY job, number"  # noqa: S608
    runs_by_job: dict[int, list[Row]] = {}
    for row in fetch_all(connection, text, sequences):
        runs_by_job.setdefault(row[0], []).append(row)
    return rows, runs_by_job


def _create_job(row: Row, run_rows: Sequence[Row]) -> Job:
    runs_in_order = [run_from_row(dict(zip(_RUN_NAMES, each, strict=True))) for each in run_rows]
    return job_from_row(dict(zip(_NAMES, row, strict=True)), runs_in_order)
