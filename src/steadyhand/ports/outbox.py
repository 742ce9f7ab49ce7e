"""The outbox port: the deliveries of callbacks, stored in the transaction of what they tell."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from steadyhand.events import Event
from steadyhand.job import CallbackEvent, Job
from steadyhand.ports.schedules import Schedule

DeliveryState = Literal["pending", "delivered", "failed", "cancelled"]
"""`failed` was tried until its end; `cancelled` is not tried, because its endpoint was removed."""

NOTIFICATION_CIRCUIT = "notify "
"""Begins the circuits of notifications, which have a deliverer of their own."""


@dataclass(frozen=True, slots=True)
class DeliveryDraft:
    """A delivery before it is stored. `id` is the id of the message, which the receiver may know already.

    `endpoint` is the name of a configured endpoint; without it `url` is the address that the job names. Deliveries
    with the same `circuit` wait together while their receiver fails. `body` is the text that is signed and sent.
    """

    id: str
    endpoint: str | None
    url: str | None
    circuit: str
    type: CallbackEvent
    body: str
    due_at: datetime | None = None
    """The time of the first attempt; without it, at once."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message to one receiver about one event of a job or a schedule, and what became of it."""

    sequence: int
    id: str
    job_id: str | None
    """None for one about a schedule."""
    api_key_id: str
    endpoint: str | None
    url: str | None
    circuit: str
    type: CallbackEvent
    body: str
    created_at: datetime
    due_at: datetime
    """The time of the next attempt while it is pending."""
    expires_at: datetime
    """No attempt begins later, except for the first."""
    state: DeliveryState = "pending"
    attempts: int = 0
    """The attempts since it was stored, or since it was last replayed."""
    attempted_at: datetime | None = None
    status: int | None = None
    """The HTTP status of the last attempt."""
    error: str | None = None
    schedule: str | None = None
    """The name of the schedule that it is about."""


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """The result of an attempt, and the state and the due time that follow from it."""

    at: datetime
    state: DeliveryState
    due_at: datetime
    status: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """The filter of a list of deliveries; None matches any. Deliveries to endpoints belong to no key."""

    api_key_id: str | None = None
    job_id: str | None = None
    endpoint: str | None = None
    state: DeliveryState | None = None


@dataclass(frozen=True, slots=True)
class DeliveryPage:
    """A page of deliveries, newest first; `next_cursor` is None on the last page."""

    deliveries: Sequence[Delivery]
    next_cursor: str | None


PlanDeliveries = Callable[[Job, Sequence[Event]], Sequence[DeliveryDraft]]
"""Returns the deliveries about new events of a job, which is as they leave it. Pure: it may run again."""

PlanPauseDeliveries = Callable[[Schedule], Sequence[DeliveryDraft]]
"""Returns the deliveries about a schedule that has paused itself. Pure: it may run again."""


class Outbox(Protocol):
    """The stored deliveries. Each is stored in the transaction of its event, and deleted with its job."""

    def use_plan(self, plan: PlanDeliveries, on_added: Callable[[frozenset[str]], None]) -> None:
        """Store the deliveries of `plan` from now on; `on_added` is called with their circuits once they are stored."""
        ...

    def use_pause_plan(self, plan: PlanPauseDeliveries) -> None:
        """Store the deliveries of `plan` with each schedule that pauses itself, from now on."""
        ...

    async def count_waiting(self) -> Mapping[str, int]:
        """Return the number of pending deliveries of each circuit that has any.

        Of those about one job to one receiver the first counts alone.
        """
        ...

    async def list_due(
        self, circuit: str, now: datetime, limit: int
    ) -> tuple[Sequence[Delivery], datetime | None]:
        """Return the due deliveries of a circuit, and the time at which the next of the others is due.

        A delivery is due only once no earlier one about the same job to the same receiver is pending.
        """
        ...

    async def claim(self, delivery: Delivery, now: datetime, until: datetime) -> bool:
        """Let no other node send a delivery before `until`; return False if it is not due as it was read any more."""
        ...

    async def save_attempt(self, delivery: Delivery, result: AttemptResult) -> None:
        """Store the result of an attempt, after an outage if need be."""
        ...

    async def postpone(self, delivery: Delivery, due_at: datetime) -> None:
        """Make a pending delivery due at another time, without an attempt."""
        ...

    async def list_deliveries(
        self, delivery_filter: DeliveryFilter, limit: int, cursor: str | None = None
    ) -> DeliveryPage:
        """List deliveries, newest first. Raise `InvalidRequest` (`bad_cursor`)."""
        ...

    async def get_delivery(self, delivery_id: str) -> Delivery | None:
        """Return a delivery, or None."""
        ...

    async def replay(self, delivery_id: str, now: datetime) -> Delivery | None:
        """Make a delivery due now, with all its attempts before it, and return it; None if it does not exist."""
        ...
