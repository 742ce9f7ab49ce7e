"""Jobs, their runs and their states. Pure: no clock, no input or output."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from operator import attrgetter
from typing import Any, Literal, get_args

from steadyhand.errors import Conflict
from steadyhand.job_warnings import WarningCode


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    PARKED = "parked"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    ERROR = "error"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens unless somebody asks for it."""
        return self in ENDED


class Actor(StrEnum):
    """Who moves a job along an edge."""

    CALLER = "caller"  # by a request
    WORKER = "worker"  # by what a run came to
    NODE = "node"  # by its start, its stop or its clock


ENDED = frozenset(
    {State.COMPLETED, State.FAILED, State.TIMEOUT, State.CANCELLED, State.INTERRUPTED, State.ERROR}
)

_S, _A = State, Actor

TRANSITIONS: Mapping[tuple[State, State], frozenset[Actor]] = {
    (_S.QUEUED, _S.RUNNING): frozenset({_A.WORKER}),
    (_S.QUEUED, _S.CANCELLED): frozenset({_A.CALLER}),
    (_S.QUEUED, _S.ERROR): frozenset({_A.NODE, _A.WORKER}),
    (_S.RUNNING, _S.COMPLETED): frozenset({_A.WORKER}),
    (_S.RUNNING, _S.FAILED): frozenset({_A.WORKER}),
    (_S.RUNNING, _S.TIMEOUT): frozenset({_A.WORKER}),
    (_S.RUNNING, _S.CANCELLED): frozenset({_A.WORKER}),
    (_S.RUNNING, _S.INTERRUPTED): frozenset({_A.WORKER, _A.NODE}),
    (_S.RUNNING, _S.ERROR): frozenset({_A.WORKER}),
    (_S.RUNNING, _S.PARKED): frozenset({_A.WORKER}),
    (_S.RUNNING, _S.WAITING): frozenset({_A.WORKER}),
    (_S.PARKED, _S.QUEUED): frozenset({_A.NODE}),
    (_S.WAITING, _S.QUEUED): frozenset({_A.CALLER}),
    (_S.PARKED, _S.CANCELLED): frozenset({_A.CALLER}),
    (_S.WAITING, _S.CANCELLED): frozenset({_A.CALLER}),
    (_S.PARKED, _S.TIMEOUT): frozenset({_A.NODE}),
    (_S.WAITING, _S.TIMEOUT): frozenset({_A.NODE}),
    (_S.PARKED, _S.ERROR): frozenset({_A.NODE}),
    (_S.WAITING, _S.ERROR): frozenset({_A.NODE}),
    (_S.COMPLETED, _S.QUEUED): frozenset({_A.CALLER}),
    (_S.INTERRUPTED, _S.QUEUED): frozenset({_A.CALLER, _A.NODE}),
    (_S.FAILED, _S.QUEUED): frozenset({_A.CALLER}),
    (_S.TIMEOUT, _S.QUEUED): frozenset({_A.CALLER}),
    (_S.CANCELLED, _S.QUEUED): frozenset({_A.CALLER}),
    (_S.ERROR, _S.QUEUED): frozenset({_A.CALLER}),
}
"""Every edge there is, and who may take it. What is not here cannot happen."""


def transition(source: State, target: State) -> State:
    """Give `target` when the edge exists, else raise `Conflict` (`invalid_state`)."""
    if (source, target) not in TRANSITIONS:
        raise Conflict(f"A job that is {source} cannot become {target}.")
    return target


OnInterrupt = Literal["auto", "resume", "restart", "fail"]
StartMode = Literal["fresh", "resume"]
"""How the next run of a job begins: anew, or in the session and the checkout of the run before."""
Publish = Literal["none", "branch"]
Origin = Literal["api", "classic", "openai", "schedule"]
Effort = Literal["low", "medium", "high", "xhigh", "max"]
EFFORTS: tuple[str, ...] = get_args(Effort)


class OutcomeType(StrEnum):
    """The type of an outcome; `outcome.OUTCOMES` has the state and the meaning of each."""

    SUCCESS = "success"
    AGENT_ERROR = "agent_error"
    REFUSED = "refused"
    EMPTY = "empty"
    NO_RESULT = "no_result"
    BUDGET = "budget"
    MAX_TURNS = "max_turns"
    INVALID_OUTPUT = "invalid_output"
    RATE_LIMITED = "rate_limited"
    UNAUTHORIZED = "unauthorized"
    MODEL_ERROR = "model_error"
    UNKNOWN_AGENT = "unknown_agent"
    MEMORY = "memory"
    DISK = "disk"
    KILLED = "killed"
    TIMEOUT = "timeout"
    STALLED = "stalled"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    UNANSWERED = "unanswered"
    NOT_STARTED = "not_started"
    WORKSPACE = "workspace"
    EXPIRED = "expired"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run's outcome as stored: a type from `outcome.OUTCOMES` and one line of detail."""

    type: OutcomeType
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One earlier turn of a conversation: `content` is text or a list of content blocks."""

    role: Literal["user", "assistant"]
    content: str | tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class ClientTool:
    """A tool that the caller has, with the JSON Schema of its arguments: calls of it are handed out to the caller."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of all runs together, and model turns; cache reads and writes are apart from `input_tokens`."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    turns: int = 0

    def plus(self, other: "Usage") -> "Usage":
        """Give the sum."""
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_input_tokens + other.cache_read_input_tokens,
            self.cache_creation_input_tokens + other.cache_creation_input_tokens,
            self.turns + other.turns,
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """What a job cost, in micro-dollars. `source` is `reported` while only the CLI's own figure is known."""

    micros: int = 0
    source: Literal["reported", "ledger"] = "reported"
    priced: bool = True
    reported_micros: int | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What a job did to its checkout: commits from `base` to `head`, and the size of the diff."""

    base: str
    head: str
    files: int
    insertions: int
    deletions: int
    branch: str | None = None
    published: bool = False


@dataclass(frozen=True, slots=True)
class JobWarning:
    """Something the caller should know, though it did not end the job."""

    code: WarningCode
    message: str


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """Why an ended job is not `completed`."""

    code: str
    message: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt at a job. `supervisor` and `supervisor_started` (clock ticks since boot) know its process."""

    number: int
    state: State
    outcome: Outcome | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    exit_code: int | None = None
    node: str | None = None
    supervisor: int | None = None
    supervisor_started: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One request for work. Amounts are micro-dollars, times carry a zone, durations are seconds."""

    id: str
    prompt: str
    agent: str
    api_key_id: str
    created_at: datetime
    budget_micros: int
    timeout_seconds: float
    idle_timeout_seconds: float
    state: State = State.QUEUED
    runner: str = "claude"
    origin: Origin = "api"
    model: str | None = None
    workspace: str | None = None
    ref: str | None = None
    commit: str | None = None
    priority: int = 0
    metadata: Mapping[str, Any] | None = None
    title: str | None = None
    output_schema: Mapping[str, Any] | None = None
    on_interrupt: OnInterrupt = "auto"
    publish: Publish = "none"
    expires_in_seconds: float | None = None
    max_turns: int | None = None
    effort: str | None = None
    append_system_prompt: str | None = None
    history: tuple[Turn, ...] = ()
    content: tuple[Mapping[str, Any], ...] = ()
    """What is asked, as content blocks, when it is more than text; `prompt` is then the text in it.

    Beside those of the model's API there is `file`: a `name`, and base64 as `data`, for a file beside the agent's work.
    """
    tools: tuple[ClientTool, ...] = ()
    """The caller's own tools that the agent may call."""
    one_call: bool = False
    """Whether calls of those are handed out one after another, also when the agent makes several in one turn."""
    request: Mapping[str, Any] | None = None
    """What the door that it came through needs to answer for it later: JSON that means nothing elsewhere."""
    session_id: str | None = None
    session_name: str | None = None
    """What the caller calls its conversation, if anything."""
    conversation: str | None = None
    """A digest of all that was said in the conversation up to this job's answer, if a caller may come back with it."""
    parent_job_id: str | None = None
    """The job whose session and work this one goes on with."""
    queued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    parked_until: datetime | None = None
    begin: StartMode = "fresh"
    continue_prompt: str | None = None
    """What a resumed run is told in place of going on where it stopped."""
    at_start: StartMode | None = None
    """How the next start of the service is to take up an interrupted job; null leaves it as it is."""
    since_run: int = 1
    """The run from which this one goes on, through all between: they share its budget."""
    used_seconds: float = 0.0
    """How long earlier runs took that this one goes on from: they share its deadline."""
    outcome: Outcome | None = None
    runs: tuple[Run, ...] = ()
    answer: str | None = None
    structured_output: Any = None
    usage: Usage = field(default_factory=Usage)
    cost: Cost = field(default_factory=Cost)
    changes: Changes | None = None
    warnings: tuple[JobWarning, ...] = ()
    error: ErrorInfo | None = None
    last_event: int = 0
    sequence: int = 0
    """The store's order of acceptance; 0 until stored."""

    @property
    def run(self) -> int:
        """The number of the newest run, 0 before the first."""
        return self.runs[-1].number if self.runs else 0

    @property
    def is_final(self) -> bool:
        """True if the job has ended and the next start of the service does not resume it."""
        return self.state.ended and self.at_start is None

    @property
    def attachments(self) -> tuple[Mapping[str, Any], ...]:
        """The blocks of its turns, those of its history first, that are files."""
        turns = (*(turn.content for turn in self.history), self.content)
        blocks = (block for content in turns if not isinstance(content, str) for block in content)
        return tuple(block for block in blocks if block.get("type") == "file")


_STORE_FIELDS = ("last_event", "sequence")  # the last fields of a job
_get_other_fields = attrgetter(*(each.name for each in fields(Job) if each.name not in _STORE_FIELDS))


def with_store_fields(job: Job, last_event: int, sequence: int) -> Job:
    """Give the job with what the store made for it; `dataclasses.replace` does the same in three times the time."""
    values: tuple[Any, ...] = (*_get_other_fields(job), last_event, sequence)
    return Job(*values)
