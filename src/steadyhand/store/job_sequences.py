"""The sequences of jobs by their ids, kept in memory: a job never gets another one, and no other job gets its own.

On Postgres a query of events names the sequence of its job, so that the server plans for one partition. A join with the
job alone would have it plan for all of them, each time a follower reads.
"""

import threading

from sqlalchemy import Connection

from steadyhand.store.driver import fetch_all

MAX_KEPT = 10_000
"""The jobs whose sequences are kept; those that were asked for first are forgotten."""
_SEQUENCE = "SELECT sequence FROM jobs WHERE id = ?"


class JobSequences:
    """Finds sequences, in several threads."""

    def __init__(self) -> None:
        self._kept: dict[str, int] = {}
        self._lock = threading.Lock()

    def find(self, connection: Connection, job_id: str) -> int | None:
        """Return the sequence of a job; None if it does not exist. One that was deleted may have its sequence still."""
        with self._lock:
            kept = self._kept.get(job_id)
        if kept is not None:
            return kept
        rows = fetch_all(connection, _SEQUENCE, (job_id,))
        if not rows:
            return None
        sequence: int = rows[0][0]
        with self._lock:
            self._kept[job_id] = sequence
            while len(self._kept) > MAX_KEPT:
                del self._kept[next(iter(self._kept))]
        return sequence
