"""Cancels of jobs that do not run, from the request until they are stored. Used on the event loop's thread only."""

from collections.abc import Sequence


class Cancellations:
    """The ids of jobs whose cancel is being stored, or could not be stored yet; the worker tries those again.

    A job of these is not queued again by a recovery.
    """

    def __init__(self) -> None:
        self._open: dict[str, bool] = {}

    def begin(self, job_id: str) -> None:
        """Add a cancel that is about to be stored."""
        self._open[job_id] = False

    def postpone(self, job_id: str) -> None:
        """Leave a cancel to the worker: the store did not take it, or the caller is gone."""
        self._open[job_id] = True

    def end(self, job_id: str) -> None:
        """Remove a cancel that is stored, or that no longer matters."""
        self._open.pop(job_id, None)

    def contains(self, job_id: str) -> bool:
        """Return True if the cancel of a job is not stored yet."""
        return job_id in self._open

    def postponed(self) -> Sequence[str]:
        """Return the ids of the jobs whose cancel the worker has to store, the oldest first."""
        return [job_id for job_id, postponed in self._open.items() if postponed]
