"""Response bodies and events. mypy holds what builds one to its type, and the OpenAPI document is made from the same.

The name of a class is that of its component in the document, which clients were generated from. A name that begins with
an underscore is no component. Nothing is validated when a response is sent.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, NotRequired, TypeVar

from pydantic import Field, WithJsonSchema
from typing_extensions import TypedDict

from steadyhand.api.schemas.field_types import MAX_DOLLARS
from steadyhand.job import OnInterrupt, Origin, Publish
from steadyhand.ports import Scope

T = TypeVar("T")
Dollars = Annotated[
    str, Field(pattern=r"^\d+\.\d{6}$", description=f"Decimal dollars, at most {MAX_DOLLARS:,}.")
]
JobId = Annotated[str, Field(pattern="^[0-9a-f]{12}$")]
Timestamp = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
Date = Annotated[str, WithJsonSchema({"type": "string", "format": "date"})]
_OpenState = Literal["queued", "running", "parked", "waiting"]
_EndState = Literal["completed", "failed", "timeout", "cancelled", "interrupted", "error"]
JobState = Literal[_OpenState, _EndState]
ClassicStatus = Literal["running", "completed", "failed", "timeout", "error"]
NullIfAbsent = Annotated[T | None, Field(json_schema_extra={"default": None})]


class FieldProblem(TypedDict):
    """One wrong field."""

    pointer: Annotated[
        str, Field(description="A JSON pointer into the body, or `?name` for a query parameter.")
    ]
    detail: str


class OpenaiError(TypedDict):
    """The same error, where OpenAI's clients look for it."""

    message: str
    type: str
    param: str | None
    code: str


class Problem(TypedDict):
    """The one error body of every route."""

    type: str
    title: str
    status: int
    detail: str
    code: Annotated[str, Field(description="Stable; branch on this.")]
    request_id: str
    errors: list[FieldProblem]
    error: OpenaiError


class ClassicInputError(TypedDict):
    """One wrong field in the classic profile, as FastAPI lists it."""

    type: str
    loc: list[str | int]
    msg: str
    input: Annotated[Any, Field(description="The value; above 1 KB the beginning of its text.")]


class ClassicProblem(TypedDict):
    """The body of a 422 in the classic profile: that of all routes, with the earlier service's `detail`."""

    type: str
    title: str
    status: int
    detail: list[ClassicInputError]
    code: Annotated[str, Field(description="Stable; branch on this.")]
    request_id: str
    errors: list[FieldProblem]
    error: OpenaiError


class WarmProcesses(TypedDict):
    """The processes that wait for jobs, and what became of those before them since the service started."""

    waiting: int
    oldest_seconds: Annotated[
        float, Field(description="The age of the oldest one that waits; 0 without one.")
    ]
    hits: Annotated[int, Field(description="Jobs that had a process that waited.")]
    live_hits: Annotated[int, Field(description="Turns that went on in the process of the turn before.")]
    misses: Annotated[int, Field(description="Jobs that could have had one and started their own.")]
    refills: int
    kept: Annotated[int, Field(description="Processes that stayed after a job.")]
    failures: int
    dropped: Annotated[int, Field(description="Processes that ended without another job.")]


class Health(TypedDict):
    """The load of the service."""

    status: Literal["ok"]
    busy: Annotated[bool, Field(description="True when a new job would not start at once.")]
    active: int
    queued: int
    capacity: int
    warm: NotRequired[
        Annotated[WarmProcesses, Field(description="With an agent whose processes wait for jobs.")]
    ]


class Alive(TypedDict):
    """An answer to a probe; `code` and `detail` tell what a service that takes work lacks."""

    status: Literal["ok"]
    code: NotRequired[Literal["credential_rejected"]]
    detail: NotRequired[str]


class Executed(TypedDict):
    """An accepted job of the classic route."""

    job_id: JobId
    status: Literal["running"]


class ClassicJob(TypedDict):
    """A job in the words of the earlier service. The last five keys are there once it has ended."""

    job_id: str
    status: ClassicStatus
    state: JobState
    prompt: str
    agent: str
    metadata: Mapping[str, Any] | None
    started_at: Timestamp
    finished_at: NotRequired[NullIfAbsent[Timestamp]]
    exit_code: NotRequired[NullIfAbsent[int]]
    output: NotRequired[
        Annotated[
            NullIfAbsent[list[str]], Field(description="Lines with their newlines; join and parse them.")
        ]
    ]
    stderr: NotRequired[NullIfAbsent[str]]
    error: NotRequired[
        Annotated[NullIfAbsent[str], Field(description="One line, there whenever `status` is `error`.")]
    ]


class Outcome(TypedDict):
    """The outcome of a run."""

    type: str
    detail: str | None


class Run(TypedDict):
    """One attempt at a job."""

    number: int
    state: JobState
    outcome: Outcome | None
    started_at: Timestamp | None
    finished_at: Timestamp | None
    exit_code: int | None
    node: str | None


class Usage(TypedDict):
    """Tokens and turns of all runs of a job."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    turns: int


class Cost(TypedDict):
    """The cost of a job."""

    usd: Dollars
    source: Literal["reported", "ledger"]
    priced: bool
    reported_usd: Dollars | None


class RefChange(TypedDict):
    """A ref that a job created, moved or deleted; or its stash, its index or a folder beside its tree."""

    kind: Literal["ref", "stash", "index", "forced", "worktree", "submodule"]
    name: str
    change: Literal["created", "moved", "deleted"]
    before: str | None
    after: str | None
    bundle_ref: str | None


class Changes(TypedDict):
    """The changes of a job to its checkout."""

    base: str
    head: str
    files: int
    insertions: int
    deletions: int
    branch: str | None
    published: bool
    refs: list[RefChange]
    refs_omitted: int


class Warn(TypedDict):
    """A warning: it did not end the job."""

    code: str
    message: str


class JobFault(TypedDict):
    """The reason why an ended job is not `completed`."""

    code: str
    message: str
    retryable: bool


class Links(TypedDict):
    """The addresses of the rest of a job."""

    self: str
    events: str
    diff: str
    transcript: str
    bundle: str


class JobItem(TypedDict):
    """A job as it stands in a list."""

    object: Literal["job"]
    id: JobId
    state: JobState
    outcome: Outcome | None
    title: str | None
    prompt_start: Annotated[str, Field(description="The first line of the prompt, at most 80 characters.")]
    agent: str
    runner: str
    model: str | None
    workspace: str | None
    ref: str | None
    commit: str | None
    priority: int
    metadata: Mapping[str, Any]
    api_key_id: str
    origin: Origin
    session_id: str | None
    parent_job_id: str | None
    budget_usd: Dollars
    timeout_seconds: float
    idle_timeout_seconds: float
    on_interrupt: OnInterrupt
    publish: Publish
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None
    parked_until: Timestamp | None
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


LIST_OMITTED_FIELDS = tuple(name for name in Job.__annotations__ if name not in JobItem.__annotations__)
"""The fields of a job that a list of jobs leaves out, because they may be long."""


class _ListFields(TypedDict):
    """A page of a list."""

    object: Literal["list"]
    has_more: bool
    next_cursor: str | None


class Page(_ListFields, Generic[T]):
    """A page of a list of any items, as the code builds it; each list of the document has a class of its own."""

    data: list[T]


class JobList(_ListFields):
    """Jobs, newest first."""

    data: list[JobItem]


class Event(TypedDict):
    """One thing that happened in a job. Skip types that you do not know."""

    object: Literal["event"]
    seq: Annotated[int | None, Field(description="Counts from 1 without gaps; null for live text.")]
    job_id: str
    run: int
    type: str
    at: Timestamp
    data: dict[str, Any]


class EventList(_ListFields):
    """Events in order; `next_cursor` is the next `after`."""

    data: list[Event]


class AgentLimits(TypedDict):
    """The most that a job may ask for; null is no limit."""

    max_budget_usd: Dollars | None
    max_timeout_seconds: float | None
    models: list[str] | None


class Agent(TypedDict):
    """An available agent, with the defaults of its jobs."""

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


class AgentList(_ListFields):
    """Agents by name."""

    data: list[Agent]


class Workspace(TypedDict):
    """A repository, a ref and a policy."""

    object: Literal["workspace"]
    name: str
    repository: str | None
    ref: str | None
    mode: Literal["checkout", "in_place"]
    trust: Literal["none", "instructions", "full"]


class WorkspaceList(_ListFields):
    """Workspaces by name."""

    data: list[Workspace]


class KeyLimits(TypedDict):
    """The limits of a key; null is no limit."""

    agents: list[str] | None
    workspaces: list[str] | None
    requests_per_minute: int | None
    running_jobs: int | None
    queued_jobs: int | None
    budget_usd_per_day: Dollars | None
    budget_usd_per_month: Dollars | None
    max_budget_usd: Dollars | None
    max_timeout_seconds: float | None
    models: list[str] | None


class _KeyFields(TypedDict):
    """A key; one of the environment is changed there."""

    object: Literal["api_key"]
    id: str
    name: str
    origin: Literal["environment", "service"]
    scopes: list[Scope]
    limits: KeyLimits
    created_at: Timestamp
    revoked_at: Timestamp | None
    former_secret_until: Annotated[
        Timestamp | None, Field(description="Until when the secret before the newest is good.")
    ]


class Key(_KeyFields):
    """A key, without its secret."""


class NewKey(_KeyFields):
    """A key with its secret, which no other response has."""

    secret: str


class KeyList(_ListFields):
    """Every key: those of the environment, then the oldest first."""

    data: list[Key]


class SpentTokens(TypedDict):
    """Tokens of the calls of a group."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int


class SpentCost(TypedDict):
    """The cost of the calls of a group, from the ledger."""

    usd: Dollars
    priced: Annotated[
        bool, Field(description="False when a model's price was not known and the dearest one was taken.")
    ]
    complete: Annotated[
        bool, Field(description="False when an answer was cut and the figure may be too low.")
    ]


class SpentRow(TypedDict):
    """The usage of one group of calls; a field that is not grouped by is null."""

    object: Literal["usage"]
    api_key_id: str | None
    agent: str | None
    model: str | None
    provider: str | None
    day: Annotated[Date | None, Field(description="In UTC.")]
    calls: int
    usage: SpentTokens
    cost: SpentCost


class UsageList(_ListFields):
    """Groups of calls, in the order of what they are grouped by."""

    data: list[SpentRow]


class ClassicFailure(TypedDict):
    """A failure of the classic chat route."""

    error: Literal["execution failed", "streaming not supported"]
    detail: Annotated[str, Field(max_length=200)]


class ConversationalReply(TypedDict):
    """The agent's reply in a conversation."""

    session_id: str
    reply: str
