"""Jobs that wait for a model's rate limit: until when, and for how long at most. Lives on the event loop's thread."""

from datetime import datetime, timedelta

from steadyhand.job import Job

MOST_PARKED = timedelta(days=7)
"""How long after its first run began a job may still be parked."""


class Parking:
    """The parked jobs of this node by when they go on."""

    def __init__(self) -> None:
        self._until: dict[str, datetime] = {}

    def put(self, job: Job) -> None:
        """Take in a job that is parked."""
        until = job.parked_until
        if until is not None:
            self._until[job.id] = min(until, last_moment(job))

    def has(self, job_id: str) -> bool:
        """Say whether a job is parked here."""
        return job_id in self._until

    def due(self, now: datetime) -> list[str]:
        """Take out the jobs that are to go on, the one that has waited longest first."""
        found = sorted((until, job_id) for job_id, until in self._until.items() if until <= now)
        for _, job_id in found:
            del self._until[job_id]
        return [job_id for _, job_id in found]


def last_moment(job: Job) -> datetime:
    """Say until when a job may be parked at the most."""
    first = next((run.started_at for run in job.runs if run.started_at is not None), job.created_at)
    return first + MOST_PARKED
