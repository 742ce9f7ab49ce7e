"""What one of each thing takes, as it was measured: the numbers that the simulation stands on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Costs:
    """Times in seconds; those of a processor are its own time, so that other work beside it changes them little."""

    accept_serve: float
    """Processor of the node that serves, for a job that it accepts."""
    run_worker: float
    """Processor of the worker's own process, for a run."""
    run_agent: float
    """Processor of the agent's processes, for a run."""
    run_postgres: float
    """Processor of Postgres, for a job from its acceptance to its end."""
    turn: float
    """How long a transaction over the places holds their lock, without its commit."""
    commit: float
    """How long a commit that notifies holds the lock of notifications."""
    event_worker: float
    """Processor of the worker, for an event."""
    event_postgres: float
    """Processor of Postgres, for an event."""
    event_follower: float
    """Processor of the node that serves, for an event that one follower receives."""
    node_postgres: float
    """Processor of Postgres in a second, for a node that has nothing to do."""
    commits: float
    """The commits of a run beside those over the places."""

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """Read what `as_json` wrote."""
        return cls(**document)

    def as_json(self) -> dict[str, float]:
        """Give it for `results.json`."""
        return asdict(self)
