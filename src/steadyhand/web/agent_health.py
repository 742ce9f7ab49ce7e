"""The health of agents and workspaces: how their newest jobs ended, of those that a key sees."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlencode

from steadyhand.job import Job, State

RECENT = timedelta(days=7)
MAX_JOBS = 200
"""The most jobs that are looked at, the newest ones."""
FAILED_STATES = (State.FAILED, State.TIMEOUT, State.INTERRUPTED, State.ERROR)


@dataclass(slots=True)
class RecentJobs:
    """The newest jobs of an agent or in a workspace."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    newest_failed: int = 0
    """The failed ones since the newest that completed."""
    last_at: datetime | None = None

    def add(self, job: Job) -> None:
        """Count a job; jobs come newest first."""
        self.total += 1
        self.last_at = self.last_at or job.created_at
        if job.state is State.COMPLETED:
            self.completed += 1
        elif job.state in FAILED_STATES:
            self.failed += 1
            self.newest_failed += self.completed == 0


def recent_by_name(jobs: Iterable[Job], name_of: Callable[[Job], str | None]) -> Mapping[str, RecentJobs]:
    """Return the counts of jobs, which come newest first, by a name that they have."""
    found: defaultdict[str, RecentJobs] = defaultdict(RecentJobs)
    for job in jobs:
        name = name_of(job)
        if name is not None:
            found[name].add(job)
    return found


def failed_query(kind: str, name: str, since: datetime) -> str:
    """Return the query of the list of the failed jobs of an agent or in a workspace."""
    states = [("state", state.value) for state in FAILED_STATES]
    return urlencode([*states, (kind, name), ("since", since.date().isoformat())])
