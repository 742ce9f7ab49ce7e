"""A job's place in the queue of all nodes: one row for each job that is queued or has a claim."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

SortKey = tuple[int, int, int, str]
"""The order of jobs: those that go on, then the higher priority, then the earlier acceptance; the id is unique."""


class PlaceState(StrEnum):
    """The state of a place."""

    WAITING = "waiting"
    READY = "ready"
    """Chosen for a node and in the engine."""
    RUNNING = "running"
    SUSPENDED = "suspended"
    """Its run waits for its client, and counts neither for its node nor for its key."""
    LOST = "lost"
    """Its node died. The node that noticed ends its run, and has its place until then."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place as it is stored."""

    job_id: str
    key_id: str
    goes_on: bool
    priority: int
    sequence: int
    directory: str | None
    parent_id: str | None
    """The job that must have ended before this one starts."""
    queued_at: datetime
    expires_in_seconds: float | None
    state: PlaceState = PlaceState.WAITING
    again: bool = False
    """It is queued again while its last run is not released yet."""
    resuming: bool = False
    """It is suspended and is to run again before all that wait."""
    run: int = 0
    """The number of its run: each choice takes the next one of all places."""
    node: str | None = None
    engine_job: int | None = None
    stop_reason: str | None = None
    labels: tuple[str, ...] = ()
    """The labels that its node must have."""
    not_on_nodes: tuple[str, ...] = ()
    """The names of the nodes that it must not run on."""

    @property
    def sort_key(self) -> SortKey:
        """The order among those that wait."""
        return 0 if self.goes_on else 1, -self.priority, self.sequence, self.job_id

    @property
    def waits(self) -> bool:
        """True if its job is queued: it has no claim, or is to run again after its claim."""
        return self.again or self.state in {PlaceState.WAITING, PlaceState.READY}

    @property
    def has_claim(self) -> bool:
        """True if a node holds a claim of it."""
        return self.state in {PlaceState.RUNNING, PlaceState.SUSPENDED, PlaceState.LOST}

    def is_expired(self, now: datetime) -> bool:
        """Return True if it has waited longer than its job allows."""
        if self.expires_in_seconds is None:
            return False
        return (now - self.queued_at).total_seconds() > self.expires_in_seconds


class LostRun(NamedTuple):
    """A claim that was taken from a dead node, to end its run."""

    job_id: str
    node: str | None
    run: int
    """The number of its place; see `Place.run`."""
    job_run: int
    """The number of the job's newest run when the claim was taken: later ones are of others. 0 is none."""
