"""The results of the client about schedules; see `result_types`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from steadyhand.client.decoding import ServiceObject
from steadyhand.client.result_types import CallbackReceiver


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledJob(ServiceObject):
    """The request for work of each tick; a field that is `None` has the agent's value, else the service's."""

    prompt: str = ""
    title: str | None = None
    agent: str | None = None
    workspace: str | None = None
    ref: str | None = None
    model: str | None = None
    budget_usd: Decimal | None = None
    timeout_seconds: float | None = None
    idle_timeout_seconds: float | None = None
    expires_in_seconds: float | None = None
    priority: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    output_schema: Mapping[str, Any] | None = None
    max_turns: int | None = None
    effort: str | None = None
    append_system_prompt: str | None = None
    labels: tuple[str, ...] = ()
    not_on_nodes: tuple[str, ...] = ()
    publish: str | None = None
    on_interrupt: str | None = None
    callback: CallbackReceiver | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulePause(ServiceObject):
    """The pause of a schedule; the reason is `request` if somebody paused it."""

    since: datetime | None = None
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleTick(ServiceObject):
    """One line of a schedule's history: a tick that fired, waits or was skipped."""

    scheduled_at: datetime | None = None
    at: datetime | None = None
    kind: str = ""
    result: str = ""
    reason: str | None = None
    detail: str | None = None
    count: int = 1
    job_id: str | None = None
    outcome: str | None = None
    cost_usd: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule(ServiceObject):
    """A schedule: a cron expression, and the job that each of its ticks submits."""

    name: str
    api_key_id: str = ""
    origin: str = ""
    cron: str = ""
    timezone: str = "UTC"
    overlap: str = ""
    missed: str = ""
    max_usd: Decimal | None = None
    max_runs: int | None = None
    max_failures: int | None = None
    job: ScheduledJob = field(default_factory=ScheduledJob)
    paused: SchedulePause | None = None
    next_at: datetime | None = None
    runs: int = 0
    spent_usd: Decimal = Decimal(0)
    failures: int = 0
    last: ScheduleTick | None = None
    created_at: datetime | None = None
