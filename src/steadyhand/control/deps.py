"""The services and ports that the parts of `Control` share."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from steadyhand.admission import Admission
from steadyhand.agents import Catalog
from steadyhand.cancellations import Cancellations
from steadyhand.event_log import EventFeed, EventLog
from steadyhand.ports import Checkouts, JobTracing, Ledger, Outbox, Queue, SavedItems, Store
from steadyhand.steering import SteerBroker
from steadyhand.tool_calls import ToolCallBroker


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
