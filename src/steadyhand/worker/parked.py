"""Jobs that wait for a model's rate limit: until when, and for how long at most. Lives on the event loop's thread."""

from datetime import datetime, timedelta

from steadyhand.job import Job

MAX_PARKED = timedelta(days=7)
"""How long after its first run began a job may still be parked."""


class ParkedJobs:
    """The parked jobs of this node by when they go on."""

    def __init__(self) -> None:
        self._until: dict[str, datetime] = {}

    def add(self, job: Job) -> None:
        """Take in a job that is parked."""
        until = job.parked_until
        if until is not None:
            self._until[job.id] = min(until, park_deadline(job))

    def contains(self, job_id: str) -> bool:
        """Say whether a job is parked here."""
        return job_id in self._until

    def pop_due(self, now: datetime) -> list[str]:
        """Take out the jobs that are to go on, the one that has waited longest first."""
        due = sorted((until, job_id) for job_id, until in self._until.items() if until <= now)
        for _, job_id in due:
            del self._until[job_id]
        return [job_id for _, job_id in due]


def park_deadline(job: Job) -> datetime:
    """Say until when a job may be parked at the most."""
    first = next((run.started_at for run in job.runs if run.started_at is not None), job.created_at)
    return first + MAX_PARKED
