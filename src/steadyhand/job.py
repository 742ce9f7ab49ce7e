"""Jobs, their runs and their states. Pure: no clock, no input or output."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from enum import StrEnum
from operator import attrgetter
from typing import Any, Literal, get_args

from steadyhand.errors import Conflict
from steadyhand.job_warnings import WarningCode


class State(StrEnum):
    """The state of a job."""

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
        """True if the job stays in this state until a request, or the start of the service, changes it."""
        return self in ENDED


class Actor(StrEnum):
    """The party that changes the state of a job."""

    CALLER = "caller"  # by a request
    WORKER = "worker"  # by the result of a run
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
"""Every allowed change of state, and the actors that may make it."""


def transition(source: State, target: State) -> State:
    """Return `target` if the transition is allowed, else raise `Conflict` (`invalid_state`)."""
    if (source, target) not in TRANSITIONS:
        raise Conflict(f"A job that is {source} cannot become {target}.")
    return target


OnInterrupt = Literal["auto", "resume", "restart", "fail"]
StartMode = Literal["fresh", "resume"]
"""The start of a job's next run: anew, or in the session and the checkout of the run before."""
Publish = Literal["none", "branch"]
CallbackEvent = Literal["job.ended", "job.parked", "job.needs_results", "budget.near", "schedule.paused"]
"""The events that callbacks tell of: those of a job, and a schedule that has paused itself."""
CallbackBody = Literal["thin", "full", "openai"]
"""The body of a callback: the job's id and links, the whole job, or an event of OpenAI's webhooks."""
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
    UNKNOWN_COMMAND = "unknown_command"
    NOT_ASKED = "not_asked"
    HOOK = "hook"
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
    NO_SESSION = "no_session"
    EXPIRED = "expired"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run's outcome as stored: a type from `outcome.OUTCOMES` and one line of detail.

    `model_status` is the HTTP status with which the model's service refused the last call for good. `is_permanent` is
    True if the run failed before the agent by a fault that a new run meets again, such as a missing repository.
    `node_died` is True if the node of the run died.
    """

    type: OutcomeType
    detail: str | None = None
    model_status: int | None = None
    is_permanent: bool | None = None
    node_died: bool | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One earlier turn of a conversation: `content` is text or a list of content blocks."""

    role: Literal["user", "assistant"]
    content: str | tuple[Mapping[str, Any], ...]


ToolOutput = str | tuple[Mapping[str, Any], ...]
"""The result of a client's tool: text, or blocks of text and images in the form of the model's API."""


def output_text(output: ToolOutput) -> str:
    """Return a tool's result as text; each image becomes a word."""
    if isinstance(output, str):
        return output
    return "\n".join(block["text"] if block["type"] == "text" else "[image]" for block in output)


@dataclass(frozen=True, slots=True)
class ClientTool:
    """A tool of the client, with the JSON Schema of its arguments. The client executes its calls."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SlashCommand:
    """A command of the agent's program, its repository or its agent, which takes the place of a prompt."""

    name: str
    arguments: str = ""

    @property
    def prompt(self) -> str:
        """The prompt that runs it."""
        return f"/{self.name} {self.arguments}".rstrip()


UNCOMMITTED_REF = "refs/steadyhand/uncommitted/"
"""The beginning of the ref of a job on uncommitted changes; the rest is their commit."""


@dataclass(frozen=True, slots=True)
class UncommittedChanges:
    """Changes that a caller sends along: `commit` on top of `base`, which the repository has, as a pack in base64."""

    base: str
    commit: str
    pack: str

    @property
    def ref(self) -> str:
        """The ref of a job that works on them."""
        return UNCOMMITTED_REF + self.commit


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of all runs together, and model turns; cache reads and writes are apart from `input_tokens`."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    turns: int = 0

    def plus(self, other: "Usage") -> "Usage":
        """Return the sum."""
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_input_tokens + other.cache_read_input_tokens,
            self.cache_creation_input_tokens + other.cache_creation_input_tokens,
            self.turns + other.turns,
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a job in micro-dollars. `source` is `reported` if only the CLI's own figure is known."""

    micros: int = 0
    source: Literal["reported", "ledger"] = "reported"
    priced: bool = True
    reported_micros: int | None = None


RefKind = Literal["ref", "stash", "index", "forced", "worktree", "submodule"]
"""The kind of something that a job left in its repository; `forced` are ignored files that it added by force."""


@dataclass(frozen=True, slots=True)
class RefChange:
    """A ref that a job created, moved or deleted, or its stash, its index or a folder beside its tree.

    `before` and `after` are ids of objects. `bundle_ref` is its name in the bundle; `None` if it is not in there.
    """

    kind: RefKind
    name: str
    change: Literal["created", "moved", "deleted"]
    before: str | None
    after: str | None
    bundle_ref: str | None


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes of a job in its checkout: commits from `base` to `head`, the size of the diff, and refs."""

    base: str
    head: str
    files: int
    insertions: int
    deletions: int
    branch: str | None = None
    published: bool = False
    refs: tuple[RefChange, ...] = ()
    refs_omitted: int = 0
    """The number of changed refs that are not listed: there were too many."""


@dataclass(frozen=True, slots=True)
class JobWarning:
    """A problem that the caller should know of and that did not end the job."""

    code: WarningCode
    message: str


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """The reason why an ended job is not `completed`."""

    code: str
    message: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt at a job. `supervisor` is a pid, `supervisor_started` its start in clock ticks since boot."""

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
class JobCallback:
    """The receiver that a job's caller names, and the events that it is told of. The URL may hold a secret."""

    url: str = field(repr=False)
    events: tuple[CallbackEvent, ...] = ("job.ended",)
    body: CallbackBody = "thin"


@dataclass(frozen=True, slots=True)
class JobSpec:
    """The part of a request for work that its job holds, with the agent's values for a few that are None.

    Durations are seconds.
    """

    prompt: str
    model: str | None = None
    priority: int = 0
    metadata: Mapping[str, Any] | None = None
    title: str | None = None
    output_schema: Mapping[str, Any] | None = None
    expires_in_seconds: float | None = None
    max_turns: int | None = None
    effort: str | None = None
    append_system_prompt: str | None = None
    history: tuple[Turn, ...] = ()
    content: tuple[Mapping[str, Any], ...] = ()
    """The prompt as content blocks if it is more than text; `prompt` is then its text.

    Beside the blocks of the model's API there is `file`, with a `name` and base64 as `data`: a file for the agent.
    """
    tools: tuple[ClientTool, ...] = ()
    """The client's tools that the agent may call."""
    one_call: bool = False
    """True if calls of client tools are sent one after another, also if the agent makes several in one turn."""
    request: Mapping[str, Any] | None = None
    """The document that the OpenAI API stores about a request (`RequestDocument`); no other code reads it."""
    command: SlashCommand | None = None
    """The command that the prompt runs, if the caller asked for one."""
    uncommitted: UncommittedChanges | None = None
    """The caller's uncommitted changes, which are the job's commit."""
    session_name: str | None = None
    """The caller's name for the session, if any."""
    origin: Origin = "api"
    callback: JobCallback | None = None
    labels: tuple[str, ...] = ()
    """The labels that its node must have, beside those that the agent asks for."""
    not_on_nodes: tuple[str, ...] = ()
    """The names of the nodes that it must not run on, beside those of the agent."""

    @property
    def attachments(self) -> tuple[Mapping[str, Any], ...]:
        """The `file` blocks of its turns, those of its history first."""
        turns = (*(turn.content for turn in self.history), self.content)
        blocks = (block for content in turns if not isinstance(content, str) for block in content)
        return tuple(block for block in blocks if block.get("type") == "file")


@dataclass(frozen=True, slots=True)
class Job:
    """One unit of work, from prompt to answer. Amounts are micro-dollars, times have a zone, durations are seconds."""

    id: str
    spec: JobSpec
    agent: str
    api_key_id: str
    created_at: datetime
    budget_micros: int
    timeout_seconds: float
    idle_timeout_seconds: float
    state: State = State.QUEUED
    runner: str = "claude"
    workspace: str | None = None
    ref: str | None = None
    commit: str | None = None
    on_interrupt: OnInterrupt = "auto"
    publish: Publish = "none"
    session_id: str | None = None
    conversation: str | None = None
    """A digest of the conversation up to this job's answer, if a caller may continue it."""
    parent_job_id: str | None = None
    """The job whose session and changes this one continues."""
    queued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    parked_until: datetime | None = None
    begin: StartMode = "fresh"
    continue_prompt: str | None = None
    """The prompt of a resumed run; None is the instruction to continue."""
    undelivered_results: str | None = None
    """The results of tool calls that the agent's process has not been given yet, as the prompt of a later run."""
    traceparent: str | None = None
    """The caller's trace, as `traceparent` of W3C Trace Context in version 00 has it; checked."""
    at_start: StartMode | None = None
    """The start mode with which the next start of the service queues an interrupted job; None leaves it as it is."""
    since_run: int = 1
    """The first of the runs that share the budget with the newest run."""
    requeues: int = 0
    """The number of times that the job was queued again after it had ended."""
    used_seconds: float = 0.0
    """The seconds of earlier runs that share the deadline with the newest run."""
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
    def log_fields(self) -> Mapping[str, str]:
        """The fields of all lines of the log about the job: its id, its key and the caller's trace, if it has one."""
        fields = {"job": self.id, "key": self.api_key_id}
        return fields if self.traceparent is None else {**fields, "trace_id": self.traceparent.split("-")[1]}

    @property
    def is_on_uncommitted(self) -> bool:
        """True if the job works on uncommitted changes of its caller, or of the caller of an earlier turn."""
        return self.ref is not None and self.ref.startswith(UNCOMMITTED_REF)

    @property
    def run(self) -> int:
        """The number of the newest run; 0 before the first."""
        return self.runs[-1].number if self.runs else 0

    @property
    def as_answered(self) -> "Job":
        """The job for who waits for its answer alone: completed, once the answer and the outcome are stored."""
        if self.state is State.RUNNING and self.outcome is not None:
            return replace(self, state=State.COMPLETED)
        return self

    @property
    def will_run_again(self) -> bool:
        """True if the job has ended and the next start of the service queues it again."""
        return self.state.ended and self.at_start is not None

    @property
    def is_final(self) -> bool:
        """True if the job has ended and the next start of the service does not queue it again."""
        return self.state.ended and not self.will_run_again


_STORE_FIELDS = ("last_event", "sequence")  # the last fields of a job
_get_other_fields = attrgetter(*(each.name for each in fields(Job) if each.name not in _STORE_FIELDS))


def with_store_fields(job: Job, last_event: int, sequence: int) -> Job:
    """Return the job with the fields that the store sets, in a third of the time of `dataclasses.replace`."""
    values: tuple[Any, ...] = (*_get_other_fields(job), last_event, sequence)
    return Job(*values)
