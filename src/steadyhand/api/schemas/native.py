"""What responses hold, for the OpenAPI document. Responses are built by `render` and not validated again."""

from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from steadyhand.api.schemas.requests import MOST_DOLLARS
from steadyhand.job import State
from steadyhand.ports import Scope

Dollars = Annotated[
    str, Field(pattern=r"^\d+\.\d{6}$", description=f"Decimal dollars, at most {MOST_DOLLARS:,}.")
]
StateName = Literal[
    "queued",
    "running",
    "parked",
    "waiting",
    "completed",
    "failed",
    "timeout",
    "cancelled",
    "interrupted",
    "error",
]
assert set(StateName.__args__) == set(State)  # type: ignore[attr-defined]  # noqa: S101


class Reply(BaseModel):
    """A response body: every key is always there."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class FieldProblem(Reply):
    """One wrong field."""

    pointer: str = Field(description="A JSON pointer into the body, or `?name` for a query parameter.")
    detail: str


class OpenaiError(Reply):
    """The same error, where OpenAI's clients look for it."""

    message: str
    type: str
    param: str | None
    code: str


class Problem(Reply):
    """The one error body of every route."""

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable; branch on this.")
    request_id: str
    errors: list[FieldProblem]
    error: OpenaiError


class Health(Reply):
    """How full the service is."""

    status: Literal["ok"]
    busy: bool = Field(description="True when a new job would not start at once.")
    active: int
    queued: int
    capacity: int


class Alive(Reply):
    """An answer to a probe."""

    status: Literal["ok"]


class Executed(Reply):
    """An accepted job of the classic route."""

    job_id: Annotated[str, Field(pattern="^[0-9a-f]{12}$")]
    status: Literal["running"]


class ClassicJob(BaseModel):
    """A job in the words of the earlier service. The last five keys are there once it has ended."""

    job_id: str
    status: Literal["running", "completed", "failed", "timeout", "error"]
    state: StateName
    prompt: str
    agent: str
    metadata: dict[str, Any] | None
    started_at: datetime
    finished_at: datetime | None = None
    exit_code: int | None = None
    output: list[str] | None = Field(
        default=None, description="Lines with their newlines; join and parse them."
    )
    stderr: str | None = None
    error: str | None = Field(default=None, description="One line, there whenever `status` is `error`.")


class Outcome(Reply):
    """What a run came to."""

    type: str
    detail: str | None


class Run(Reply):
    """One attempt at a job."""

    number: int
    state: StateName
    outcome: Outcome | None
    started_at: datetime | None
    finished_at: datetime | None
    exit_code: int | None
    node: str | None


class Usage(Reply):
    """Tokens and turns of all runs of a job."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    turns: int


class Cost(Reply):
    """What a job cost."""

    usd: Dollars
    source: Literal["reported", "ledger"]
    priced: bool
    reported_usd: Dollars | None


class Changes(Reply):
    """What a job did to its checkout."""

    base: str
    head: str
    files: int
    insertions: int
    deletions: int
    branch: str | None
    published: bool


class Warn(Reply):
    """Something the caller should know, though it did not end the job."""

    code: str
    message: str


class JobFault(Reply):
    """Why an ended job is not `completed`."""

    code: str
    message: str
    retryable: bool


class Links(Reply):
    """Where the rest of a job is."""

    self: str
    events: str
    diff: str
    transcript: str
    bundle: str


class JobItem(Reply):
    """A job as it stands in a list."""

    object: Literal["job"]
    id: Annotated[str, Field(pattern="^[0-9a-f]{12}$")]
    state: StateName
    outcome: Outcome | None
    title: str | None
    agent: str
    runner: str
    model: str | None
    workspace: str | None
    ref: str | None
    commit: str | None
    priority: int
    metadata: dict[str, Any]
    api_key_id: str
    origin: Literal["api", "classic", "openai", "schedule"]
    session_id: str | None
    parent_job_id: str | None
    budget_usd: Dollars
    timeout_seconds: float
    idle_timeout_seconds: float
    on_interrupt: Literal["auto", "resume", "restart", "fail"]
    publish: Literal["none", "branch"]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    parked_until: datetime | None
    queue_position: int | None
    run: int
    usage: Usage
    cost: Cost
    changes: Changes | None
    warnings: list[Warn]
    error: JobFault | None
    last_event: int
    links: Links


class Job(JobItem):
    """A job, whole."""

    prompt: str
    runs: list[Run]
    answer: str | None
    structured_output: Any


class List(Reply):
    """A stretch of a list."""

    object: Literal["list"]
    has_more: bool
    next_cursor: str | None


class JobList(List):
    """Jobs, newest first."""

    data: list[JobItem]


class Event(Reply):
    """One thing that happened in a job. Skip types that you do not know."""

    object: Literal["event"]
    seq: int | None = Field(description="Counts from 1 without gaps; null for live text.")
    job_id: str
    run: int
    type: str
    at: datetime
    data: dict[str, Any]


class EventList(List):
    """Events in order; `next_cursor` is the next `after`."""

    data: list[Event]


class AgentLimits(Reply):
    """The most that a job may ask for; null is no limit."""

    max_budget_usd: Dollars | None
    max_timeout_seconds: float | None


class Agent(Reply):
    """An agent that can be asked for, with what a job of it gets that does not say."""

    object: Literal["agent"]
    name: str
    description: str
    runner: str
    model: str | None
    workspace: str | None
    budget_usd: Dollars
    timeout_seconds: float
    idle_timeout_seconds: float
    max_turns: int | None
    effort: str | None
    tools: list[str] | None
    limits: AgentLimits


class AgentList(List):
    """Agents by name."""

    data: list[Agent]


class Workspace(Reply):
    """A repository, a ref and a policy."""

    object: Literal["workspace"]
    name: str
    repository: str | None
    ref: str | None
    mode: Literal["checkout", "in_place"]
    trust: Literal["none", "instructions", "full"]


class WorkspaceList(List):
    """Workspaces by name."""

    data: list[Workspace]


class KeyLimits(Reply):
    """What a key may ask for; null is no limit."""

    agents: list[str] | None
    workspaces: list[str] | None
    requests_per_minute: int | None
    running_jobs: int | None
    queued_jobs: int | None
    budget_usd_per_day: Dollars | None
    budget_usd_per_month: Dollars | None


class KeyItem(Reply):
    """A key; one of the environment is changed there."""

    object: Literal["api_key"]
    id: str
    name: str
    origin: Literal["environment", "service"]
    scopes: list[Scope]
    limits: KeyLimits
    created_at: datetime
    revoked_at: datetime | None
    former_secret_until: datetime | None = Field(
        description="Until when the secret before the newest is good."
    )


class Key(KeyItem):
    """A key, without its secret."""


class NewKey(KeyItem):
    """A key with its secret, which is told this once."""

    secret: str


class KeyList(List):
    """Every key: those of the environment, then the oldest first."""

    data: list[Key]


class SpentTokens(Reply):
    """Tokens of the calls of a group."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int


class SpentCost(Reply):
    """What the calls of a group cost, by the ledger."""

    usd: Dollars
    priced: bool = Field(
        description="False when a model's price was not known and the dearest one was taken."
    )
    complete: bool = Field(description="False when an answer was cut and the figure may be too low.")


class SpentRow(Reply):
    """What one group of calls came to; what it is not grouped by is null."""

    object: Literal["usage"]
    api_key_id: str | None
    agent: str | None
    model: str | None
    provider: str | None
    day: date | None = Field(description="In UTC.")
    calls: int
    usage: SpentTokens
    cost: SpentCost


class UsageList(List):
    """Groups of calls, in the order of what they are grouped by."""

    data: list[SpentRow]


class ClassicFailure(Reply):
    """A failure of the classic chat route."""

    error: Literal["execution failed", "streaming not supported"]
    detail: Annotated[str, Field(max_length=200)]
