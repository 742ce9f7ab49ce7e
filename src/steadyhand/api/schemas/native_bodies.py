"""Response bodies and events. mypy holds what builds one to its type, and the OpenAPI document is made from the same.

The name of a class is that of its component in the document, which clients were generated from. A name that begins with
an underscore is no component. Nothing is validated when a response is sent.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, NotRequired, TypeVar

from pydantic import Field, WithJsonSchema
from typing_extensions import TypedDict

from steadyhand.api.schemas.field_types import MAX_DOLLARS, Timestamp
from steadyhand.api.schemas.warm_bodies import AgentWarmProcesses, WarmProcesses
from steadyhand.job import CallbackBody, CallbackEvent, OnInterrupt, Origin, Publish
from steadyhand.ports import DeliveryState, EndpointOrigin, Scope

T = TypeVar("T")
Dollars = Annotated[
    str, Field(pattern=r"^\d+\.\d{6}$", description=f"Decimal dollars, at most {MAX_DOLLARS:,}.")
]
JobId = Annotated[str, Field(pattern="^[0-9a-f]{12}$")]
Date = Annotated[str, WithJsonSchema({"type": "string", "format": "date"})]
_OpenState = Literal["queued", "running", "parked", "waiting"]
_EndState = Literal["completed", "failed", "timeout", "cancelled", "interrupted", "error"]
JobState = Literal[_OpenState, _EndState]
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


class CallbackReceiver(TypedDict):
    """The receiver that a job names."""

    receiver: Annotated[str, Field(description="Scheme, host and port of its URL; the rest may be a secret.")]
    events: list[CallbackEvent]
    body: Literal["thin", "full", "openai"]


class QueueReason(TypedDict):
    """The reason why no node can take a job that waits; it starts by itself when one can."""

    code: Literal["no_node", "drained"]
    detail: str


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
    will_run_again: Annotated[
        bool, Field(description="True if it is interrupted and the next start of the service runs it again.")
    ]
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
    callback: NotRequired[
        Annotated[CallbackReceiver, Field(description="The receiver of its events, if it names one.")]
    ]
    labels: NotRequired[
        Annotated[list[str], Field(description="The labels that its node must have, if it asks for any.")]
    ]
    not_on_nodes: NotRequired[
        Annotated[list[str], Field(description="The nodes that it must not run on, if it names any.")]
    ]
    queue_reason: NotRequired[
        Annotated[
            QueueReason,
            Field(
                description="The reason why no node can take it now; only in `GET` of the job and in lists."
            ),
        ]
    ]


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


class Steer(TypedDict):
    """A message that the agent of a running job has read. Its events tell when the agent goes on with it."""

    object: Literal["steer"]
    id: Annotated[str, Field(description="The `steer_id` of its events.")]
    job_id: str
    run: int


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
    warm: NotRequired[
        Annotated[AgentWarmProcesses, Field(description="With an agent whose processes wait for jobs.")]
    ]


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


class CallbackDelivery(TypedDict):
    """A message to a receiver about an event of a job, and what became of it."""

    object: Literal["callback_delivery"]
    id: Annotated[str, Field(description="Also the `webhook-id` of each attempt.")]
    type: CallbackEvent
    job_id: JobId | None
    schedule: Annotated[str | None, Field(description="The schedule, if it is about none of a job.")]
    endpoint: Annotated[
        str | None, Field(description="The configured receiver; null for the job's `callback_url`.")
    ]
    receiver: Annotated[
        str | None,
        Field(description="Scheme, host and port of the `callback_url`; the rest may be a secret."),
    ]
    state: DeliveryState
    attempts: int
    status: Annotated[int | None, Field(description="The HTTP status of the last attempt.")]
    error: str | None
    created_at: Timestamp
    attempted_at: Timestamp | None
    due_at: Annotated[Timestamp | None, Field(description="The next attempt, while it is pending.")]
    expires_at: Timestamp


class CallbackDeliveryWithBody(CallbackDelivery):
    """A message to a receiver, with the text that is signed and sent."""

    body: str


class CallbackDeliveryList(_ListFields):
    """Deliveries, newest first."""

    data: list[CallbackDelivery]


class CallbackEndpoint(TypedDict):
    """A receiver of callbacks about all jobs, or about those of some agents."""

    object: Literal["callback_endpoint"]
    name: str
    receiver: Annotated[
        str, Field(description="Scheme, host and port of its address; the rest may be a secret.")
    ]
    events: list[CallbackEvent]
    agents: Annotated[list[str], Field(description="The agents of whose jobs it is told; empty for all.")]
    body: CallbackBody
    origin: Annotated[
        EndpointOrigin, Field(description="`config` is set in the configuration and cannot be changed here.")
    ]
    created_at: Timestamp | None


class NewCallbackEndpoint(CallbackEndpoint):
    """An endpoint with its secret, which is not shown again."""

    secret: str


class CallbackEndpointList(_ListFields):
    """Every endpoint: those of the configuration, then the oldest first."""

    data: list[CallbackEndpoint]


class CallbackSecret(TypedDict):
    """The secret that signs the callbacks of the jobs of one key."""

    object: Literal["callback_secret"]
    api_key_id: str
    secret: Annotated[str, Field(description="`whsec_` and base64, as Standard Webhooks has it.")]


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
    workspace: Annotated[
        str | None, Field(description="Empty for jobs in none, and for calls before this was stored.")
    ]
    day: Annotated[Date | None, Field(description="In UTC.")]
    calls: int
    usage: SpentTokens
    cost: SpentCost


class UsageList(_ListFields):
    """Groups of calls, in the order of what they are grouped by."""

    data: list[SpentRow]
