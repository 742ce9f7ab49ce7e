"""The results of the client about nodes; see `result_types`."""

from dataclasses import dataclass
from datetime import datetime

from steadyhand.client.decoding import ServiceObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Node(ServiceObject):
    """A process that runs jobs of the service. `state` is `alive`, `silent`, or `away` if it is drained and not there.

    A drained node takes no new runs. `load` is that of the machine in the last minute, divided by its cores.
    """

    name: str
    role: str = ""
    state: str = ""
    version: str = ""
    schema: str = ""
    host: str = ""
    labels: tuple[str, ...] = ()
    slots: int = 0
    running: int = 0
    waiting: int = 0
    load: float = 0.0
    warm: int = 0
    drained: bool = False
    drained_at: datetime | None = None
    until_restart: bool = False
    heartbeat_seconds: float | None = None
    started_at: datetime | None = None
    here: bool = False
    """True if it is the node that answered."""

    @property
    def idle(self) -> bool:
        """True if it runs no job, and no process of it waits for a client's tool."""
        return self.running == 0 and self.waiting == 0
