"""Jobs that wait for a model's rate limit, and the end of their wait. Used on the event loop's thread only."""

from datetime import datetime, timedelta

from steadyhand.job import Job

MAX_PARKED = timedelta(days=7)
"""The maximum time between the start of a job's first run and the end of its wait."""


class ParkedJobs:
    """The parked jobs of this node by the end of their wait."""

    def __init__(self) -> None:
        self._until: dict[str, datetime] = {}

    def add(self, job: Job) -> None:
        """Add a parked job."""
        until = job.parked_until
        if until is not None:
            self._until[job.id] = min(until, park_deadline(job))

    def contains(self, job_id: str) -> bool:
        """Return True if a job is parked here."""
        return job_id in self._until

    def pop_due(self, now: datetime) -> list[str]:
        """Remove and return the ids of the jobs whose wait is over, the earliest end first."""
        due = sorted((until, job_id) for job_id, until in self._until.items() if until <= now)
        for _, job_id in due:
            del self._until[job_id]
        return [job_id for _, job_id in due]


def park_deadline(job: Job) -> datetime:
    """Return the latest time until which a job may be parked."""
    first = next((run.started_at for run in job.runs if run.started_at is not None), job.created_at)
    return first + MAX_PARKED
