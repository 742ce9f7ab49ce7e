"""The lease of a node: when it may act, when it must stop its agents, and when it may judge others.

All times are those of the node's monotonic clock. The age of another node's lease is measured by the database alone.
"""

from dataclasses import dataclass

WRITE_SECONDS = 2.0
"""The time between two writes of the lease."""

CUT_OFF_SECONDS = 8.0
"""A node that could not write for so long stops its agents; less than `DEAD_SECONDS`, so that others act later."""

AGENT_SECONDS = 9.0
"""An agent whose service says nothing for so long is killed: the service is frozen, and cannot stop it by itself."""

DEAD_SECONDS = 12.0
"""A node is dead when its lease, or the start of the database's server if that is later, is older than this."""


@dataclass(slots=True)
class Lease:
    """The state of a node's own lease since it began at `now`."""

    now: float
    cut_off_seconds: float = CUT_OFF_SECONDS
    dead_seconds: float = DEAD_SECONDS
    proved_at: float = 0.0
    """The begin of the last write that succeeded, or of the last one that the database's host refused."""
    _judges_from: float = 0.0

    def __post_init__(self) -> None:
        self.proved_at = self.now
        self._judges_from = self.now + self.dead_seconds

    def note_written(self, began: float, ended: float) -> None:
        """Note that the database has the lease. A write that was late shows an outage or a freeze of this node."""
        if ended - self.proved_at > self.dead_seconds / 2:
            self._judges_from = ended + self.dead_seconds
        self.proved_at = began

    def note_failed(self, began: float, *, refused: bool) -> None:
        """Note that a write failed. If the host refused it, no other node can act either; else others may."""
        self._judges_from = began + self.dead_seconds
        if refused:
            self.proved_at = began

    def is_cut_off(self, now: float) -> bool:
        """Return True if others may soon take this node for dead: its agents must end now."""
        return now - self.proved_at >= self.cut_off_seconds

    def seconds_left(self, now: float) -> float:
        """Return the seconds until it is cut off, unless it is written before."""
        return max(0.0, self.proved_at + self.cut_off_seconds - now)

    def may_judge(self, now: float) -> bool:
        """Return True if this node may take others for dead."""
        return now >= self._judges_from
