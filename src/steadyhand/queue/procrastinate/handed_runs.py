"""The runs that the engine has handed to a node, and what their queue asks of a transaction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import sqlalchemy

from steadyhand.job import Job
from steadyhand.ports import Claim
from steadyhand.queue.new_jobs import NewJobStore
from steadyhand.queue.procrastinate.place import Place
from steadyhand.queue.procrastinate.places import PlacesTransaction


async def ignore_lost(_job_id: str, _job_run: int) -> None:
    """Do nothing for a job whose node died."""


class PlacesStore(NewJobStore, Protocol):
    """A store in the same database, which inserts places in the transactions of their jobs; see `ports.Store`."""

    def store_with_jobs(self, insert: Callable[[sqlalchemy.Connection, Sequence[Job]], None]) -> None:
        """Call this function with new jobs in the transaction that stores them."""
        ...

    def check_changes(self, check: Callable[[bool, sqlalchemy.Connection, Job, Job], None]) -> None:
        """Call this function with a job before and after each change, in its transaction; its error refuses it.

        Its first argument is True if the job counts as a new one.
        """
        ...

    async def get(self, job_id: str) -> Job | None:
        """Return a job or None."""
        ...


@dataclass(slots=True, eq=False)
class HandedRun:
    """A run that the engine has handed to this node."""

    job: Job
    run: int
    claim: Claim | None = None
    running_since: float = 0.0
    seconds_before: float = 0.0
    suspended: bool = False
    ending: bool = False

    def run_seconds(self, now: float) -> float:
        """Return the seconds that it has run so far, without those in which it was suspended."""
        return self.seconds_before + (0.0 if self.suspended else now - self.running_since)


async def change_nothing(_: PlacesTransaction) -> None:
    """Change nothing, in a transaction."""


async def announce(job_id: str, turn: PlacesTransaction) -> None:
    """Announce to other nodes a place that was stored with its job."""
    turn.touched.add(job_id)


async def give_back(job_id: str, run: int, turn: PlacesTransaction) -> None:
    """Let a run wait again that was handed over and that nobody claimed."""
    await turn.give_back(job_id, run)


async def start_run(job_id: str, run: int, node: str, turn: PlacesTransaction) -> bool:
    """Begin a run on this node; False if it is no longer to begin here."""
    return await turn.start(job_id, run, node)


async def end_run(job_id: str, run: int, turn: PlacesTransaction) -> None:
    """End the claim of a run."""
    await turn.end(job_id, run)


async def suspend(handed: HandedRun, turn: PlacesTransaction) -> None:
    """Let a run wait for its client."""
    await turn.suspend(handed.job.id, handed.run)


async def resume(handed: HandedRun, turn: PlacesTransaction) -> None:
    """Let a run go on for which this node has room, and whose key has no limit."""
    await turn.resume(handed.job.id, handed.run, has_room=True, limit=None)


async def adopt(handed: HandedRun, place: Place, turn: PlacesTransaction) -> None:
    """Store the place of a job that runs already; only now its run has a number."""
    handed.run = await turn.adopt(place)
