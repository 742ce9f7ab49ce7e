"""Jobs that wait for a model's rate limit or for a good credential. Used on the event loop's thread only."""

from collections.abc import Callable
from datetime import datetime, timedelta

from steadyhand.job import Job, OutcomeType

MAX_PARKED = timedelta(days=7)
"""The maximum time between the start of a job's first run and the end of its wait."""


class ParkedJobs:
    """The parked jobs of this node by the end of their wait."""

    def __init__(self) -> None:
        self._until: dict[str, datetime] = {}
        self._agents: dict[str, str] = {}
        """The agents of the jobs that wait for a credential."""

    def add(self, job: Job) -> None:
        """Add a parked job."""
        until = job.parked_until
        if until is not None:
            self._until[job.id] = min(until, park_deadline(job))
            if waits_for_credential(job):
                self._agents[job.id] = job.agent

    def contains(self, job_id: str) -> bool:
        """Return True if a job is parked here."""
        return job_id in self._until

    def release(self, has_credential: Callable[[str], bool], now: datetime) -> None:
        """End the wait of the jobs that wait for a credential, if their agent has a good one."""
        for job_id, agent in self._agents.items():
            if self._until[job_id] > now and has_credential(agent):
                self._until[job_id] = now

    def pop_due(self, now: datetime) -> list[str]:
        """Remove and return the ids of the jobs whose wait is over, the earliest end first."""
        due = sorted((until, job_id) for job_id, until in self._until.items() if until <= now)
        for _, job_id in due:
            del self._until[job_id]
            self._agents.pop(job_id, None)
        return [job_id for _, job_id in due]


def waits_for_credential(job: Job) -> bool:
    """Return True if a parked job waits for a good credential, not for a rate limit."""
    outcome = job.runs[-1].outcome if job.runs else None
    return outcome is not None and outcome.type == OutcomeType.UNAUTHORIZED


def park_deadline(job: Job) -> datetime:
    """Return the latest time until which a job may be parked."""
    first = next((run.started_at for run in job.runs if run.started_at is not None), job.created_at)
    return first + MAX_PARKED
