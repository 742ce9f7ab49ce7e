"""The outbox in SQL: functions of a connection inside a transaction."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, and_, bindparam, func, literal_column, select, update

from steadyhand.events import BudgetNear, Event, StateChanged, ToolCallsRequested
from steadyhand.job import Job
from steadyhand.ports import (
    AttemptResult,
    Delivery,
    DeliveryDraft,
    DeliveryFilter,
    DeliveryPage,
    PlanDeliveries,
    PlanPauseDeliveries,
    Schedule,
)
from steadyhand.store import reads
from steadyhand.store.bulk_insert import CompiledInsert
from steadyhand.store.driver import POSTGRES, execute
from steadyhand.store.lists import MAX_SEQUENCE
from steadyhand.store.mapping import from_microseconds, to_microseconds
from steadyhand.store.schema import deliveries, jobs, schedules

DELIVERY_LIFETIME = timedelta(hours=24)
"""The time after its event, or after its replay, in which attempts at a delivery begin."""

_TOLD_TYPES = frozenset({StateChanged.type, ToolCallsRequested.type, BudgetNear.type})
"""The types of events that a plan may tell of; for all others no job is read."""

_INSERT = CompiledInsert(deliveries, generated=deliveries.c.sequence)
# Bound parameters would not let SQLite use the index of the due deliveries.
_IS_PENDING = deliveries.c.state == literal_column("'pending'")
_IS_FIRST = and_(_IS_PENDING, deliveries.c.behind == literal_column("0"))
"""The pending deliveries that no earlier one of their job and receiver precedes."""
_key_of_delivery = func.coalesce(jobs.c.api_key_id, schedules.c.api_key_id)
_DELIVERIES = (
    select(
        deliveries,
        jobs.c.id.label("job_id"),
        schedules.c.name.label("schedule_name"),
        _key_of_delivery.label("api_key_id"),
    )
    .outerjoin(jobs, jobs.c.sequence == deliveries.c.job)
    .outerjoin(schedules, schedules.c.id == deliveries.c.schedule)
)
_DUE = (
    _DELIVERIES.where(
        _IS_FIRST,
        deliveries.c.circuit == bindparam("circuit"),
        deliveries.c.due_at <= bindparam("now"),
    )
    .order_by(deliveries.c.due_at, deliveries.c.sequence)
    .limit(bindparam("most"))
)
# On many nodes a delivery that another one is sending is due once its claim has ended.
_CLAIM_END = func.coalesce(deliveries.c.claimed_until, 0)
_UNCLAIMED_DUE = _DUE.where(bindparam("now") >= _CLAIM_END)
_NEXT_DUE = select(func.min(deliveries.c.due_at)).where(
    _IS_FIRST, deliveries.c.circuit == bindparam("circuit"), deliveries.c.due_at > bindparam("now")
)
_NEXT_UNCLAIMED_DUE = select(func.min(func.greatest(deliveries.c.due_at, _CLAIM_END))).where(
    _IS_FIRST,
    deliveries.c.circuit == bindparam("circuit"),
    func.greatest(deliveries.c.due_at, _CLAIM_END) > bindparam("now"),
)
_LOCK_JOB = "SELECT 1 FROM jobs WHERE id = ? FOR NO KEY UPDATE"
_WAITING = (
    select(deliveries.c.circuit, func.count().label("waiting"))
    .where(_IS_FIRST)
    .group_by(deliveries.c.circuit)
)
_PENDING_ENDPOINTS = (
    select(deliveries.c.endpoint).where(deliveries.c.job == bindparam("job"), _IS_PENDING).distinct()
)


def _delivery_row(
    sequence: int | None,
    draft: DeliveryDraft,
    now: datetime,
    *,
    is_behind: bool = False,
    schedule: str | None = None,
) -> dict[str, Any]:
    """Return the columns of a new delivery about the job with this sequence, or about a schedule."""
    due_at = draft.due_at or now
    return {
        "id": draft.id,
        "job": sequence,
        "schedule": schedule,
        "endpoint": draft.endpoint,
        "circuit": draft.circuit,
        "type": draft.type,
        "state": "pending",
        "behind": int(is_behind),
        "created_at": to_microseconds(now),
        "due_at": to_microseconds(due_at),
        "expires_at": to_microseconds(due_at + DELIVERY_LIFETIME),
        "attempts": 0,
        "attempted_at": None,
        "status": None,
        "error": None,
        "url": draft.url,
        "body": draft.body,
        "claimed_until": None,
    }


def _delivery_from_row(row: RowMapping) -> Delivery:
    """Return the delivery of a row with `job_id` and `api_key_id`."""
    return Delivery(
        sequence=row["sequence"],
        id=row["id"],
        job_id=row["job_id"],
        api_key_id=row["api_key_id"],
        endpoint=row["endpoint"],
        url=row["url"],
        circuit=row["circuit"],
        type=row["type"],
        body=row["body"],
        created_at=from_microseconds(row["created_at"]),
        due_at=from_microseconds(row["due_at"]),
        expires_at=from_microseconds(row["expires_at"]),
        state=row["state"],
        attempts=row["attempts"],
        attempted_at=None if row["attempted_at"] is None else from_microseconds(row["attempted_at"]),
        status=row["status"],
        error=row["error"],
        schedule=row["schedule_name"],
    )


class PauseHook:
    """Stores the deliveries about the schedules that one write pauses; `circuits` are those of all of them."""

    def __init__(self, plan: PlanPauseDeliveries, clock: Callable[[], datetime]) -> None:
        self._plan = plan
        self._clock = clock
        self.circuits: frozenset[str] = frozenset()

    def add(self, connection: Connection, schedule: Schedule) -> None:
        """Store the deliveries about a schedule that has paused itself."""
        drafts, now = self._plan(schedule), self._clock()
        if drafts:
            _INSERT.run(connection, [_delivery_row(None, each, now, schedule=schedule.id) for each in drafts])
        self.circuits |= {draft.circuit for draft in drafts}


class OutboxHook:
    """Stores the deliveries of one write. `circuits` are those of the run of the write that was committed."""

    def __init__(self, plan: PlanDeliveries, clock: Callable[[], datetime]) -> None:
        self._plan = plan
        self._clock = clock
        self.circuits: frozenset[str] = frozenset()

    def add(self, connection: Connection, events: Sequence[Event], get_job: Callable[[], Job | None]) -> None:
        """Store the deliveries about new events of the job that `get_job` returns."""
        self.circuits = frozenset()  # an earlier run of the write may have been rolled back
        if not any(event.type in _TOLD_TYPES for event in events):
            return
        job = get_job()
        drafts = () if job is None else self._plan(job, events)
        if job is None or not drafts:
            return
        now = self._clock()
        told = set(connection.execute(_PENDING_ENDPOINTS, {"job": job.sequence}).scalars())
        rows = []
        for draft in drafts:
            rows.append(_delivery_row(job.sequence, draft, now, is_behind=draft.endpoint in told))
            told.add(draft.endpoint)
        _INSERT.run(connection, rows)
        self.circuits = frozenset(draft.circuit for draft in drafts)


def count_waiting(connection: Connection) -> Mapping[str, int]:
    """Return the number of pending deliveries that come next, by circuit; see `Outbox.count_waiting`."""
    return {row.circuit: row.waiting for row in connection.execute(_WAITING)}


def list_due(
    connection: Connection, circuit: str, now: datetime, limit: int
) -> tuple[Sequence[Delivery], datetime | None]:
    """Return the due deliveries of a circuit and the time of the next one; see `Outbox.list_due`."""
    values = {"circuit": circuit, "now": to_microseconds(now), "most": limit}
    is_shared = connection.dialect.name == POSTGRES
    query, next_query = (_UNCLAIMED_DUE, _NEXT_UNCLAIMED_DUE) if is_shared else (_DUE, _NEXT_DUE)
    due = [_delivery_from_row(row) for row in connection.execute(query, values).mappings()]
    next_due = connection.execute(next_query, values).scalar()
    return due, None if next_due is None else from_microseconds(next_due)


def claim(connection: Connection, delivery: Delivery, now: datetime, until: datetime) -> bool:
    """Claim a delivery for a node; see `Outbox.claim`."""
    moment = to_microseconds(now)
    claimed = connection.execute(
        update(deliveries)
        .where(
            deliveries.c.sequence == delivery.sequence,
            _IS_FIRST,
            deliveries.c.attempts == delivery.attempts,
            deliveries.c.due_at <= moment,
            moment >= _CLAIM_END,
        )
        .values(claimed_until=to_microseconds(until))
    )
    return claimed.rowcount > 0


def save_attempt(connection: Connection, delivery: Delivery, result: AttemptResult) -> None:
    """Store the result of an attempt; see `Outbox.save_attempt`."""
    if result.state != "pending" and delivery.job_id is not None and connection.dialect.name == POSTGRES:
        # Another node may be adding the next one about this job, which it would leave behind this one.
        execute(connection, _LOCK_JOB, (delivery.job_id,))
    values: dict[str, Any] = {
        "state": result.state,
        "due_at": to_microseconds(result.due_at),
        "attempts": deliveries.c.attempts + 1,
        "attempted_at": to_microseconds(result.at),
        "status": result.status,
        "error": result.error,
        "claimed_until": None,
    }
    this_one = update(deliveries).where(deliveries.c.sequence == delivery.sequence)
    if result.state == "pending":
        this_one = this_one.where(_IS_PENDING)  # its endpoint may have been removed meanwhile
    connection.execute(this_one.values(values))
    if result.state != "pending":
        _bring_forward(connection, delivery)


def postpone(connection: Connection, delivery: Delivery, due_at: datetime) -> None:
    """Make a pending delivery due at another time; see `Outbox.postpone`."""
    values = {
        "due_at": to_microseconds(due_at),
        "claimed_until": None,
        "expires_at": to_microseconds(max(delivery.expires_at, due_at + DELIVERY_LIFETIME)),
    }
    connection.execute(
        update(deliveries).where(deliveries.c.sequence == delivery.sequence, _IS_PENDING).values(values)
    )


def _bring_forward(connection: Connection, delivery: Delivery) -> None:
    """Let the next delivery about the job to the receiver begin."""
    job = select(jobs.c.sequence).where(jobs.c.id == delivery.job_id).scalar_subquery()
    same_endpoint = (
        deliveries.c.endpoint.is_(None)
        if delivery.endpoint is None
        else deliveries.c.endpoint == delivery.endpoint
    )
    first = select(func.min(deliveries.c.sequence)).where(deliveries.c.job == job, _IS_PENDING, same_endpoint)
    connection.execute(
        update(deliveries).where(deliveries.c.sequence == first.scalar_subquery()).values(behind=0)
    )


def list_deliveries(
    connection: Connection, delivery_filter: DeliveryFilter, limit: int, cursor: str | None
) -> DeliveryPage:
    """Return a page of deliveries, newest first; see `Outbox.list_deliveries`."""
    before = MAX_SEQUENCE if cursor is None else reads.decode_cursor(cursor)
    query = _filtered(_DELIVERIES, delivery_filter).where(deliveries.c.sequence < before)
    rows = connection.execute(query.order_by(deliveries.c.sequence.desc()).limit(limit + 1)).mappings().all()
    page = [_delivery_from_row(row) for row in rows[:limit]]
    return DeliveryPage(page, reads.encode_cursor(page[-1].sequence) if len(rows) > limit else None)


def _filtered(query: Select[Any], which: DeliveryFilter) -> Select[Any]:
    if which.api_key_id is not None:
        query = query.where(_key_of_delivery == which.api_key_id, deliveries.c.endpoint.is_(None))
    if which.job_id is not None:
        query = query.where(jobs.c.id == which.job_id)
    if which.endpoint is not None:
        query = query.where(deliveries.c.endpoint == which.endpoint)
    if which.state is not None:
        query = query.where(deliveries.c.state == which.state)
    return query


def get_delivery(connection: Connection, delivery_id: str) -> Delivery | None:
    """Return a delivery, or `None`."""
    row = connection.execute(_DELIVERIES.where(deliveries.c.id == delivery_id)).mappings().first()
    return None if row is None else _delivery_from_row(row)


def replay(connection: Connection, delivery_id: str, now: datetime) -> Delivery | None:
    """Make a delivery due now; see `Outbox.replay`."""
    values = {
        "state": "pending",
        "behind": 0,
        "due_at": to_microseconds(now),
        "expires_at": to_microseconds(now + DELIVERY_LIFETIME),
        "attempts": 0,
        "error": None,
        "claimed_until": None,
    }
    connection.execute(update(deliveries).where(deliveries.c.id == delivery_id).values(values))
    return get_delivery(connection, delivery_id)
