"""The results of the client: frozen dataclasses with the fields of the HTTP API.

States, types and codes are plain text: a newer service may have more of them. Amounts are `Decimal` dollars, times have
a zone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Generic, Self, TypeVar

from steadyhand.client.decoding import ServiceObject
from steadyhand.errors import JobNotCompleted

ENDED_STATES = frozenset({"completed", "failed", "timeout", "cancelled", "interrupted", "error"})
"""The states of an ended job: only a request changes it again, or the start of a service that was stopped."""

OPEN_RESPONSE_STATUSES = frozenset({"queued", "in_progress"})
"""The statuses of a response that is not there yet."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(ServiceObject):
    """The outcome of a run."""

    type: str
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(ServiceObject):
    """One attempt at a job."""

    number: int
    state: str
    outcome: Outcome | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    exit_code: int | None = None
    node: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage(ServiceObject):
    """Tokens and turns of all runs of a job; the cache is apart from `input_tokens`."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    turns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost(ServiceObject):
    """The cost of a job; if `priced` is False, `usd` is no full figure."""

    usd: Decimal = Decimal(0)
    source: str = "reported"
    priced: bool = False
    reported_usd: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefChange(ServiceObject):
    """A ref that a job created, moved or deleted; or its stash, its index or a folder beside its tree."""

    kind: str
    name: str
    change: str
    before: str | None = None
    after: str | None = None
    bundle_ref: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes(ServiceObject):
    """The changes of a job in its checkout."""

    base: str
    head: str
    files: int
    insertions: int
    deletions: int
    branch: str | None = None
    published: bool = False
    refs: tuple[RefChange, ...] = ()
    refs_omitted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobWarning(ServiceObject):
    """A problem that did not end the job."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFault(ServiceObject):
    """The reason why an ended job is not `completed`; `retryable` is True if a new run may succeed."""

    code: str
    message: str
    retryable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackReceiver(ServiceObject):
    """The receiver that a job names by `callback_url`: scheme, host and port alone."""

    receiver: str = ""
    events: tuple[str, ...] = ()
    body: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueReason(ServiceObject):
    """The reason why no node can take a job that waits; it starts by itself when one can."""

    code: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobItem(ServiceObject):
    """A job as it stands in a list."""

    id: str
    state: str
    outcome: Outcome | None = None
    title: str | None = None
    prompt_start: str = ""
    agent: str = ""
    runner: str = ""
    model: str | None = None
    workspace: str | None = None
    ref: str | None = None
    commit: str | None = None
    priority: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    api_key_id: str = ""
    origin: str = ""
    session_id: str | None = None
    parent_job_id: str | None = None
    budget_usd: Decimal | None = None
    timeout_seconds: float | None = None
    idle_timeout_seconds: float | None = None
    on_interrupt: str = ""
    will_run_again: bool = False
    publish: str = ""
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    parked_until: datetime | None = None
    queue_position: int | None = None
    run: int = 0
    usage: Usage = field(default_factory=Usage)
    cost: Cost = field(default_factory=Cost)
    changes: Changes | None = None
    warnings: tuple[JobWarning, ...] = ()
    error: JobFault | None = None
    last_event: int = 0
    links: Mapping[str, Any] = field(default_factory=dict)
    callback: CallbackReceiver | None = None
    labels: tuple[str, ...] = ()
    not_on_nodes: tuple[str, ...] = ()
    queue_reason: QueueReason | None = None

    @property
    def ended(self) -> bool:
        """True if the job has ended. With `will_run_again`, the next start of the service runs it again."""
        return self.state in ENDED_STATES

    @property
    def is_final(self) -> bool:
        """True if the job has ended and the service does not run it again by itself."""
        return self.ended and not self.will_run_again

    @property
    def completed(self) -> bool:
        """True if the agent finished with an answer."""
        return self.state == "completed"

    def require_completed(self) -> Self:
        """Return the job itself. Raise `JobNotCompleted` if it has not ended, or not with an answer."""
        if self.completed:
            return self
        code = self.error.code if self.error is not None else None
        reason = f": {self.error.message}" if self.error is not None else "."
        raise JobNotCompleted(
            f"The job {self.id} is {self.state}{reason}", code=code, job_id=self.id, state=self.state
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(JobItem):
    """A job, whole."""

    prompt: str = ""
    runs: tuple[Run, ...] = ()
    answer: str | None = None
    structured_output: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall(ServiceObject):
    """A call of a client's tool, whose result the agent waits for. `arguments` are the model's: check them."""

    id: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseFault(ServiceObject):
    """The reason why a response failed."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Response(ServiceObject):
    """The answer to a request with tools of the client: it ends with text, or with calls whose results it needs."""

    id: str
    status: str
    model: str = ""
    output: tuple[Any, ...] = ()
    error: ResponseFault | None = None
    previous_response_id: str | None = None

    @property
    def job_id(self) -> str:
        """The id of the job that the response is a part of."""
        return self.id.removeprefix("resp_").partition("_")[0]

    @property
    def ended(self) -> bool:
        """True if the response has its text or its calls, or has failed."""
        return self.status not in OPEN_RESPONSE_STATUSES

    @property
    def text(self) -> str:
        """The text of the agent."""
        parts = [
            part.get("text")
            for item in self._items("message")
            for part in item.get("content") or ()
            if isinstance(part, dict) and part.get("type") == "output_text"
        ]
        return "".join(text for text in parts if isinstance(text, str))

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The calls of the client's tools that the agent waits for."""
        return tuple(
            ToolCall(
                id=str(item.get("call_id", "")),
                name=str(item.get("name", "")),
                arguments=_parse_arguments(item.get("arguments")),
                document=item,
            )
            for item in self._items("function_call")
        )

    def require_completed(self) -> Self:
        """Return the response itself. Raise `JobNotCompleted` if it has not ended, or has failed."""
        if self.status == "completed":
            return self
        code = self.error.code if self.error is not None else None
        reason = f": {self.error.message}" if self.error is not None else "."
        raise JobNotCompleted(
            f"The response {self.id} is {self.status}{reason}",
            code=code,
            job_id=self.job_id,
            state=self.status,
        )

    def _items(self, kind: str) -> list[dict[str, Any]]:
        return [item for item in self.output if isinstance(item, dict) and item.get("type") == kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(ServiceObject):
    """One thing that happened in a job. Skip types that you do not know.

    `seq` counts from 1 without gaps and is `None` for live text, which is not stored. `data` depends on the type.
    """

    type: str
    seq: int | None = None
    job_id: str = ""
    run: int = 0
    at: datetime | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The text of a message, of thinking, or of a part of either; empty for other types."""
        text = self.data.get("text")
        return text if isinstance(text, str) else ""

    @property
    def new_state(self) -> str | None:
        """The state that the job has come to, if this event is a change of its state."""
        state = self.data.get("to") if self.type == "state.changed" else None
        return state if isinstance(state, str) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Steer(ServiceObject):
    """A message that the agent of a running job has read; `id` is the `steer_id` of its events."""

    id: str
    job_id: str = ""
    run: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLimits(ServiceObject):
    """The most that a job may ask for; `None` is no limit."""

    max_budget_usd: Decimal | None = None
    max_timeout_seconds: float | None = None
    models: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent(ServiceObject):
    """An available agent, with the defaults of its jobs; `warm` counts its waiting processes."""

    name: str = ""
    description: str = ""
    runner: str = ""
    model: str | None = None
    workspace: str | None = None
    budget_usd: Decimal | None = None
    timeout_seconds: float | None = None
    idle_timeout_seconds: float | None = None
    max_turns: int | None = None
    effort: str | None = None
    tools: tuple[str, ...] | None = None
    limits: AgentLimits = field(default_factory=AgentLimits)
    warm: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace(ServiceObject):
    """A repository, a ref and a policy."""

    name: str = ""
    repository: str | None = None
    ref: str | None = None
    mode: str = ""
    trust: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits(ServiceObject):
    """The limits of a key; `None` is no limit."""

    agents: tuple[str, ...] | None = None
    workspaces: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    running_jobs: int | None = None
    queued_jobs: int | None = None
    budget_usd_per_day: Decimal | None = None
    budget_usd_per_month: Decimal | None = None
    max_budget_usd: Decimal | None = None
    max_timeout_seconds: float | None = None
    models: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Key(ServiceObject):
    """A key, without its secret."""

    id: str
    name: str = ""
    origin: str = ""
    scopes: tuple[str, ...] = ()
    limits: KeyLimits = field(default_factory=KeyLimits)
    created_at: datetime | None = None
    revoked_at: datetime | None = None
    former_secret_until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey(Key):
    """A key with its secret, which no other answer has. It is not in the key's `repr`."""

    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackDelivery(ServiceObject):
    """A message to a receiver about an event of a job. `body` is there if the delivery was asked for by its id."""

    id: str
    type: str
    job_id: str | None = None
    schedule: str | None = None
    state: str
    endpoint: str | None = None
    receiver: str | None = None
    attempts: int = 0
    status: int | None = None
    error: str | None = None
    created_at: datetime | None = None
    attempted_at: datetime | None = None
    due_at: datetime | None = None
    expires_at: datetime | None = None
    body: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackEndpoint(ServiceObject):
    """A receiver of callbacks about all jobs, or about those of some agents."""

    name: str
    receiver: str = ""
    events: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    body: str = ""
    origin: str = ""
    created_at: datetime | None = None
    secret: str | None = field(default=None, repr=False)
    """There if it is new; it is not shown again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackSecret(ServiceObject):
    """The secret that signs the callbacks of the jobs of a key. It is not in the `repr`."""

    api_key_id: str = ""
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageTokens(ServiceObject):
    """Tokens of the calls of a group."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageCost(ServiceObject):
    """The cost of the calls of a group; it may be higher if a price was not known or an answer broke off."""

    usd: Decimal = Decimal(0)
    priced: bool = False
    complete: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageGroup(ServiceObject):
    """The usage of one group of calls; a field that is not grouped by is `None`."""

    api_key_id: str | None = None
    agent: str | None = None
    model: str | None = None
    provider: str | None = None
    workspace: str | None = None
    day: date | None = None
    calls: int = 0
    usage: UsageTokens = field(default_factory=UsageTokens)
    cost: UsageCost = field(default_factory=UsageCost)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultPage(ServiceObject, Generic[T]):
    """A page of a list; send `next_cursor` as `cursor` for the next one, if `has_more`."""

    data: tuple[T, ...] = ()
    has_more: bool = False
    next_cursor: str | None = None


def _parse_arguments(text: Any) -> Mapping[str, Any]:
    """Return the arguments of a call; empty if the model made no JSON object."""
    try:
        arguments = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        arguments = None
    return arguments if isinstance(arguments, dict) else {}
