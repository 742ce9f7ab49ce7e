"""The nodes port: the services that work on one database, and which of them take new runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, Protocol

from steadyhand.placement import Placement

NodeRole = Literal["serve", "worker"]
"""`serve` also answers HTTP for callers; `worker` only runs jobs."""

SILENT_SECONDS: Final = 12.0
"""A node whose heartbeat is older than this is silent: others take it for dead. It is that of the queue's lease."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """The part of a node's state that stays while it runs."""

    name: str
    role: NodeRole = "serve"
    version: str = ""
    schema: str = ""
    """The newest revision of the database's schema that its version knows."""
    labels: tuple[str, ...] = ()
    slots: int = 0
    """The jobs that it runs at once."""
    host: str = ""
    """The name of its machine, for people."""


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """The part of a node's state that each heartbeat carries."""

    running: int = 0
    waiting: int = 0
    """Runs whose processes wait for their clients' tools."""
    load: float = 0.0
    """The machine's load of the last minute, divided by its cores."""
    warm: int = 0
    """The processes that wait for jobs or for a next turn."""


@dataclass(frozen=True, slots=True)
class Drained:
    """The state of a node that takes no new runs."""

    since: datetime
    until_restart: bool = False
    """True if the next start of the node ends it, as before a stop that is planned."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node as others see it."""

    info: NodeInfo
    figures: NodeFigures
    drained: Drained | None
    heartbeat_seconds: float | None
    """The age of its heartbeat by the clock of the database; None for one that is drained and not there."""
    started_at: datetime | None = None

    @property
    def is_alive(self) -> bool:
        """True if its heartbeat is young enough to count on it."""
        return self.heartbeat_seconds is not None and self.heartbeat_seconds <= SILENT_SECONDS

    @property
    def takes_runs(self) -> bool:
        """True if it is alive, has slots and is not drained."""
        return self.is_alive and self.drained is None and self.info.slots > 0


class DrainedNodes(Protocol):
    """The stored part of `Nodes` for one node. Methods raise `StoreError`."""

    async def begin(self, name: str) -> Drained | None:
        """Return the state of a node that starts; one that holds until its restart ends here."""
        ...

    async def write_drained(self, name: str, drained: Drained | None, by: str) -> Drained | None:
        """Store the state of a node and return the stored one; `by` is the id of the key that asked.

        One that is drained already keeps its time.
        """
        ...


@dataclass(frozen=True, slots=True)
class NodeCounts:
    """The number of nodes by their state, as the last heartbeat found them; one that is drained is in no other."""

    alive: int = 1
    silent: int = 0
    drained: int = 0
    is_drained: bool = False
    """True if this node is drained."""


class Nodes(Protocol):
    """The nodes of one database."""

    def counts(self) -> NodeCounts:
        """Return how many nodes there are, from memory."""
        ...

    async def load(self) -> None:
        """Go on as the last process of this node: one that was drained is drained. Call it before jobs start."""
        ...

    async def list_nodes(self) -> Sequence[NodeState]:
        """Return the nodes by name: those that are alive, those that went silent within a day, and drained ones."""
        ...

    async def drain(self, name: str, *, until_restart: bool, by: str) -> NodeState:
        """Let a node take no new runs, and return it. Its runs go on. A repeat keeps the time.

        The state outlives a restart of the node unless it is `until_restart`. `by` is the id of the key that asks.
        Raise `NotFound` (`node_not_found`) for a name that no listed node has.
        """
        ...

    async def undrain(self, name: str) -> NodeState:
        """Let a node take new runs again, and return it.

        Raise `NotFound` (`node_not_found`) for a name that no listed node has.
        """
        ...


@dataclass(frozen=True, slots=True)
class Obstacle:
    """The reason why no node can take a job; it goes when a node comes that can, or is undrained."""

    code: Literal["no_node", "drained"]
    detail: str


def describe_obstacle(placement: Placement, nodes: Sequence[NodeState]) -> Obstacle | None:
    """Return the reason why none of these nodes can take a job with these demands, or None if one can."""
    fitting = [
        node
        for node in nodes
        if node.is_alive and node.info.slots > 0 and placement.fits(node.info.name, node.info.labels)
    ]
    if not fitting:
        return Obstacle("no_node", f"It needs {placement.describe()}, and no living node is one.")
    if all(node.drained is not None for node in fitting):
        names = ", ".join(sorted(node.info.name for node in fitting))
        return Obstacle("drained", f"Each node that could take it is drained: {names}.")
    return None
