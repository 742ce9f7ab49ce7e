"""Bodies of the routes for schedules: those of requests, and those of responses."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from steadyhand.api.schemas.field_types import (
    AgentName,
    Dollars,
    EndpointNameText,
    GitRef,
    Prompt,
    Timestamp,
    WorkspaceName,
)
from steadyhand.api.schemas.native_bodies import CallbackReceiver, JobId
from steadyhand.api.schemas.native_bodies import Dollars as DollarsText
from steadyhand.api.schemas.requests import WorkRequest
from steadyhand.job import OnInterrupt, Publish
from steadyhand.ports import (
    MissedPolicy,
    OverlapPolicy,
    PauseReason,
    ScheduleOrigin,
    TickKind,
    TickResult,
)

# A service without schedules need not build their validators at its start.
_BUILT_AT_FIRST_USE = ConfigDict(extra="forbid", defer_build=True)

_CRON = "Five fields, or six with seconds first; also `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`."
_ZONE = "The time zone of the expression, such as `Europe/Berlin`."
_OVERLAP = (
    "What becomes of a tick while an earlier job goes on: it is skipped, waits, or the job is cancelled."
)
_MISSED = "Which ticks fire late after a stop: the last one, the last 10, or none."
_MAX_USD = "The dollars that all its jobs may cost; then it pauses itself."
_MAX_RUNS = "The number of jobs after which it pauses itself."
_MAX_FAILURES = "The failures in a row after which it pauses itself."

CronText = Annotated[str, Field(min_length=1, max_length=256)]
ZoneText = Annotated[str, Field(min_length=1, max_length=64)]
Runs = Annotated[int, Field(ge=1, le=1_000_000_000)]
Failures = Annotated[int, Field(ge=1, le=1_000)]


class ScheduledJobRequest(WorkRequest):
    """The job of each tick, as `POST /v1/jobs` takes it. Prompt and title may have fields such as `{{ tick.date }}`."""

    model_config = _BUILT_AT_FIRST_USE

    agent: AgentName | None = None
    workspace: WorkspaceName | None = Field(
        default=None, description="A name; with the scope `workspace:any` also a path or a URL."
    )
    ref: GitRef | None = None
    append_system_prompt: Prompt | None = None


class ScheduleRequest(BaseModel):
    """A request for a new schedule."""

    model_config = _BUILT_AT_FIRST_USE

    name: EndpointNameText
    cron: CronText = Field(description=_CRON)
    timezone: ZoneText = Field(default="UTC", description=_ZONE)
    job: ScheduledJobRequest
    overlap: OverlapPolicy = Field(default="skip", description=_OVERLAP)
    missed: MissedPolicy = Field(default="once", description=_MISSED)
    max_usd: Dollars | None = Field(default=None, description=_MAX_USD)
    max_runs: Runs | None = Field(default=None, description=_MAX_RUNS)
    max_failures: Failures | None = Field(default=None, description=_MAX_FAILURES)
    paused: bool = Field(default=False, description="Make it, and do not start it yet.")


class ScheduleChangeRequest(BaseModel):
    """A request to change a schedule. A field that is not there stays as it is; a cap that is null is no cap."""

    model_config = _BUILT_AT_FIRST_USE

    cron: CronText = Field(default="* * * * *", description=_CRON)
    timezone: ZoneText = Field(default="UTC", description=_ZONE)
    job: ScheduledJobRequest | None = Field(default=None, description="Replaces the whole request for work.")
    overlap: OverlapPolicy = Field(default="skip", description=_OVERLAP)
    missed: MissedPolicy = Field(default="once", description=_MISSED)
    max_usd: Dollars | None = Field(default=None, description=_MAX_USD)
    max_runs: Runs | None = Field(default=None, description=_MAX_RUNS)
    max_failures: Failures | None = Field(default=None, description=_MAX_FAILURES)


class ScheduleActionRequest(BaseModel):
    """A request to pause, to resume or to run a schedule; it has no fields."""

    model_config = _BUILT_AT_FIRST_USE


class _Page(TypedDict):
    object: Literal["list"]
    has_more: bool
    next_cursor: str | None


class ScheduledJob(TypedDict):
    """The job of each tick; a field that is null has the agent's value, else the service's."""

    prompt: str
    title: str | None
    agent: str | None
    workspace: str | None
    ref: str | None
    model: str | None
    budget_usd: DollarsText | None
    timeout_seconds: float | None
    idle_timeout_seconds: float | None
    expires_in_seconds: float | None
    priority: int
    metadata: dict[str, Any]
    output_schema: dict[str, Any] | None
    max_turns: int | None
    effort: str | None
    append_system_prompt: str | None
    labels: NotRequired[list[str]]
    not_on_nodes: NotRequired[list[str]]
    publish: Publish | None
    on_interrupt: OnInterrupt | None
    callback: CallbackReceiver | None


class SchedulePause(TypedDict):
    """The pause of a schedule."""

    since: Timestamp
    reason: Annotated[
        PauseReason, Field(description="`request` if somebody paused it; else it paused itself.")
    ]
    detail: str


class ScheduleTick(TypedDict):
    """One line of a schedule's history."""

    object: Literal["schedule_tick"]
    scheduled_at: Timestamp
    at: Annotated[Timestamp, Field(description="The time at which it was handled.")]
    kind: Annotated[
        TickKind, Field(description="At its time, after it was missed, or because somebody asked for it.")
    ]
    result: TickResult
    reason: Annotated[
        str | None,
        Field(
            description="Why it was skipped: `overlap`, `missed`, `replaced`, `paused`, or the code of an error."
        ),
    ]
    detail: str | None
    count: Annotated[
        int, Field(description="The ticks that the line stands for; `scheduled_at` is the last of them.")
    ]
    job_id: JobId | None
    outcome: Annotated[str | None, Field(description="The outcome of the job, once it has ended.")]
    cost_usd: DollarsText


class Schedule(TypedDict):
    """A schedule: a cron expression, and the job that each of its ticks submits."""

    object: Literal["schedule"]
    name: str
    api_key_id: Annotated[str, Field(description="The key that its jobs belong to.")]
    origin: Annotated[
        ScheduleOrigin, Field(description="`config` is set in the configuration and cannot be changed here.")
    ]
    cron: str
    timezone: str
    overlap: OverlapPolicy
    missed: MissedPolicy
    max_usd: DollarsText | None
    max_runs: int | None
    max_failures: int | None
    job: ScheduledJob
    paused: SchedulePause | None
    next_at: Annotated[Timestamp | None, Field(description="The next tick; null while it is paused.")]
    runs: Annotated[int, Field(description="The jobs over its life.")]
    spent_usd: Annotated[DollarsText, Field(description="The cost of the jobs that have ended.")]
    failures: Annotated[int, Field(description="The failures in a row.")]
    last: Annotated[ScheduleTick | None, Field(description="The newest tick that fired.")]
    created_at: Timestamp


class ScheduleList(_Page):
    """The schedules by name."""

    data: list[Schedule]


class ScheduleTickList(_Page):
    """The ticks of a schedule, newest first."""

    data: list[ScheduleTick]
