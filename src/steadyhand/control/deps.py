"""The services and ports that the parts of `Control` share."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from steadyhand.admission import Admission
from steadyhand.agents import Catalog
from steadyhand.cancellations import Cancellations
from steadyhand.event_log import EventFeed, EventLog
from steadyhand.job import Job
from steadyhand.ports import Checkouts, JobTracing, Ledger, NodeCalls, Outbox, Queue, SavedItems, Store
from steadyhand.steering import SteerBroker
from steadyhand.tool_calls import ToolCallBroker


class JobUpdate(Protocol):
    """A change of a job that may be made on another node. It is pure."""

    def __call__(self, job: Job, /) -> Job:
        """Return the changed job."""
        ...

    def to_json(self) -> Mapping[str, Any]:
        """Return the change as JSON, from which `ControlDeps.read_update` makes it again."""
        ...


@dataclass(frozen=True, slots=True)
class ControlDeps:
    """The dependencies of `Control`. `clock` returns the time with its zone, `new_id` the id of a new job."""

    store: Store
    queue: Queue
    checkouts: Checkouts
    feed: EventFeed
    ledger: Ledger
    event_log: EventLog
    catalog: Catalog
    admission: Admission
    tool_calls: ToolCallBroker
    steers: SteerBroker
    cancellations: Cancellations
    outbox: Outbox | None
    saved_items: SavedItems | None
    check_callback: Callable[[str], Awaitable[None]]
    """Raises `CallbackRefused` for a URL that the service does not call back."""
    clock: Callable[[], datetime]
    new_id: Callable[[], str]
    tracing: JobTracing
    node_calls: NodeCalls
    read_update: Callable[[Mapping[str, Any]], JobUpdate]
