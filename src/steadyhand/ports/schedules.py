"""The ports of schedules: those that are stored, and all of them for the API and the page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from steadyhand.job import Job, JobSpec, OnInterrupt, OutcomeType, Publish

ScheduleOrigin = Literal["config", "api"]
"""A schedule of the configuration file is changed there."""
OverlapPolicy = Literal["skip", "queue", "cancel_running"]
"""The fate of a tick while the job of an earlier one goes on."""
MissedPolicy = Literal["once", "all", "none"]
"""Which ticks fire late, if the service was stopped at their time."""
TickKind = Literal["cron", "missed", "manual"]
"""A tick at its time, one that the service missed, and a run that somebody asked for."""
TickResult = Literal["fired", "waiting", "skipped"]
PauseReason = Literal[
    "request", "max_usd", "max_runs", "max_failures", "key_revoked", "not_configured", "internal"
]
"""Why a schedule is paused; only `request` is the doing of a person."""

MISSED_LIMIT = 10
"""The most missed ticks that fire with the policy `all`."""
WAITING_LIMIT = 10
"""The most ticks of a schedule that wait for the end of its job with the policy `queue`."""


@dataclass(frozen=True, slots=True)
class JobTemplate:
    """The request for work of each tick. Prompt and title may have fields such as `{{ tick.date }}`.

    None stands for the agent's value, then the service's.
    """

    spec: JobSpec
    agent: str | None = None
    workspace: str | None = None
    ref: str | None = None
    budget_micros: int | None = None
    timeout_seconds: float | None = None
    idle_timeout_seconds: float | None = None
    on_interrupt: OnInterrupt | None = None
    publish: Publish | None = None


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """The part of a schedule that its owner sets. The caps hold over its whole life; None is no cap."""

    cron: str
    job: JobTemplate
    timezone: str = "UTC"
    overlap: OverlapPolicy = "skip"
    missed: MissedPolicy = "once"
    max_micros: int | None = None
    max_runs: int | None = None
    max_failures: int | None = None
    """The failures in a row after which the schedule pauses itself."""


@dataclass(frozen=True, slots=True)
class SchedulePause:
    """The pause of a schedule: since when, why, and one sentence of detail."""

    at: datetime
    reason: PauseReason
    detail: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule with its state. `next_at` is the next tick to handle; None while it is paused.

    `id` is its own for life; a name may be used again after a deletion. `revision` grows with each change, so that a
    tick of an earlier revision does not fire. `runs` and `spent_micros` are sums over its life; `failures` are those
    in a row now.
    """

    id: str
    name: str
    api_key_id: str
    origin: ScheduleOrigin
    spec: ScheduleSpec
    created_at: datetime
    next_at: datetime | None
    revision: int = 1
    paused: SchedulePause | None = None
    runs: int = 0
    spent_micros: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class TickDraft:
    """A tick before it is stored: the outcome of one point in time of a schedule.

    `count` is the number of ticks that a skip stands for; `scheduled_at` is then the last of them. A tick that could
    not fire for an error `failed`.
    """

    scheduled_at: datetime
    at: datetime
    kind: TickKind
    result: TickResult
    reason: str | None = None
    detail: str | None = None
    count: int = 1
    failed: bool = False


@dataclass(frozen=True, slots=True)
class ScheduleTick:
    """One line of the history of a schedule.

    `outcome` and `micros` are those of its job, once that has ended; `settled` is then True.
    """

    sequence: int
    schedule_id: str
    scheduled_at: datetime
    at: datetime
    kind: TickKind
    result: TickResult
    reason: str | None = None
    detail: str | None = None
    count: int = 1
    job_id: str | None = None
    budget_micros: int = 0
    outcome: OutcomeType | None = None
    micros: int = 0
    settled: bool = False


@dataclass(frozen=True, slots=True)
class TickPage:
    """A page of a history, newest first; `next_cursor` is None on the last page."""

    ticks: Sequence[ScheduleTick]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class TickClaim:
    """The claim of one tick, which is stored in the transaction that adds its job.

    It fails with `Conflict` (`tick_taken`) if the tick is stored already, if the schedule has changed since `revision`,
    or, unless it is a manual run, if it is paused. With `waiting` the stored tick waits, and becomes fired.
    """

    schedule_id: str
    revision: int
    tick: TickDraft
    next_at: datetime | None
    waiting: int | None = None
    """The sequence of the waiting tick that fires."""


@dataclass(frozen=True, slots=True)
class JobEnd:
    """The end of a job of a schedule, without an outcome if the job is deleted.

    One that was cancelled is neither a failure nor a success: `failed` is None.
    """

    job_id: str
    outcome: OutcomeType | None
    failed: bool | None
    micros: int | None
    """The cost of the job; None if it is not known any more."""


CheckCaps = Callable[[Schedule], SchedulePause | None]
"""Returns the pause of a schedule that has reached a cap. Pure: it runs inside a transaction."""


class ScheduleStore(Protocol):
    """The stored schedules and their histories, durable once a method returns. Methods raise `StoreError`."""

    async def list_schedules(self, api_key_id: str | None = None) -> Sequence[Schedule]:
        """Return the schedules, or those of a key, in the order of their names."""
        ...

    async def get_schedule(self, name: str) -> Schedule | None:
        """Return a schedule, or None."""
        ...

    async def list_due_schedules(self, now: datetime) -> Sequence[Schedule]:
        """Return the schedules whose next tick is due, the earliest first."""
        ...

    async def next_tick_at(self) -> datetime | None:
        """Return the time of the next tick of all schedules."""
        ...

    async def add_schedule(self, schedule: Schedule, most: int) -> bool:
        """Store a new schedule; return False if its key has `most` already. Raise `Conflict` for a taken name."""
        ...

    async def save_schedule(self, schedule: Schedule, revision: int, *, reset_failures: bool = False) -> bool:
        """Replace what its owner sets, the pause and the next tick of a schedule, if it has this revision still.

        Its own revision is stored. With `reset_failures` the failures in a row are counted from zero.
        """
        ...

    async def delete_schedule(self, schedule_id: str) -> bool:
        """Delete a schedule with its history; return False if there is none. Its jobs stay."""
        ...

    async def pause_schedule(self, schedule_id: str, pause: SchedulePause) -> Schedule | None:
        """Pause a schedule that is not paused and return it; else return None."""
        ...

    async def skip_ticks(
        self, schedule: Schedule, ticks: Sequence[TickDraft], next_at: datetime | None, check: CheckCaps
    ) -> Schedule | None:
        """Store ticks that do not fire, or that wait, and the next tick; return the schedule if `check` paused it.

        Raise `Conflict` (`tick_taken`) as a `TickClaim` does.
        """
        ...

    async def drop_waiting(self, sequence: int, draft: TickDraft, check: CheckCaps) -> Schedule | None:
        """Make a waiting tick a skipped one, as `draft` is; return the schedule if `check` then paused it."""
        ...

    async def list_open_ticks(self, schedule_id: str | None = None) -> Sequence[ScheduleTick]:
        """Return the ticks that wait, and the fired ones whose job is not settled, oldest first."""
        ...

    async def settle_ticks(self, ends: Sequence[JobEnd], check: CheckCaps) -> Sequence[Schedule]:
        """Store the ends of jobs with their ticks, and the sums; return the schedules that `check` then paused.

        A job that has ended before, such as one that was retried, is settled again with its new cost.
        """
        ...

    async def list_ticks(self, schedule_id: str, limit: int, cursor: str | None = None) -> TickPage:
        """Return a page of a history, newest first. Raise `InvalidRequest` (`bad_cursor`)."""
        ...

    async def newest_fired(self, schedule_ids: Sequence[str]) -> Sequence[ScheduleTick]:
        """Return the newest fired tick of each of these schedules that has one."""
        ...


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """A schedule as it is shown: with the newest tick that fired."""

    schedule: Schedule
    last: ScheduleTick | None = None


@dataclass(frozen=True, slots=True)
class ScheduleChange:
    """The new values of a schedule by the names of `ScheduleSpec`; what is not there stays as it is."""

    values: dict[str, object] = field(default_factory=dict)


class Schedules(Protocol):
    """The operations on schedules. `owner` limits them to the schedules of one key; None is all of them.

    Methods on one schedule raise `NotFound` if it does not exist or is another key's.
    """

    async def list_schedules(self, owner: str | None) -> Sequence[ScheduleInfo]:
        """Return the schedules in the order of their names."""
        ...

    async def get(self, name: str, owner: str | None) -> ScheduleInfo:
        """Return a schedule."""
        ...

    async def create(
        self, name: str, api_key_id: str, spec: ScheduleSpec, *, paused: bool = False
    ) -> ScheduleInfo:
        """Create a schedule of a key.

        Raise `Conflict` if the name is taken, `InvalidRequest` or `Forbidden` if it could not fire.
        """
        ...

    async def change(self, name: str, owner: str | None, change: ScheduleChange) -> ScheduleInfo:
        """Change a schedule. Raise as `create` does, and `Conflict` for one of the configuration."""
        ...

    async def remove(self, name: str, owner: str | None) -> None:
        """Remove a schedule and its history. Raise `Conflict` for one of the configuration."""
        ...

    async def pause(self, name: str, owner: str | None) -> ScheduleInfo:
        """Pause a schedule: its ticks neither fire nor are missed until it is resumed."""
        ...

    async def resume(self, name: str, owner: str | None) -> ScheduleInfo:
        """Resume a schedule from now on. Raise `Conflict` while a cap is reached or its key is not valid."""
        ...

    async def run_now(self, name: str, owner: str | None) -> Job:
        """Submit the job of a schedule now, whatever its policy; return the job. Raise as `Control.submit` does."""
        ...

    async def history(self, name: str, owner: str | None, limit: int, cursor: str | None = None) -> TickPage:
        """Return a page of a schedule's history, newest first."""
        ...
