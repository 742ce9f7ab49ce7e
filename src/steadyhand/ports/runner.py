"""The ports of one kind of agent: the runner starts and drives its process, `AgentFiles` knows its files."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from steadyhand.agents import Agent, AgentDefinition
from steadyhand.events import EventBody, TextDelta
from steadyhand.job import Job, JobWarning, ToolOutput
from steadyhand.outcome import RunEvidence
from steadyhand.ports.held_runs import HoldSpec, OrphanedRun
from steadyhand.ports.queue import StopSignal
from steadyhand.ports.store import RunOutput
from steadyhand.ports.workspace import Checkout, Instructions

if TYPE_CHECKING:  # the processes beside a run import the ports and no more than the standard library
    from steadyhand.redact import Redactor

Emit = Callable[[EventBody | TextDelta], Awaitable[None]]
"""Receives events in order; waits while the store is behind."""

OnListening = Callable[[Sequence[int]], None]
"""Receives descriptors of sockets that listen in a sealed run's network; whoever is called closes them."""


ModelApi = Literal["anthropic", "bedrock", "vertex", "openai", "gemini"]
"""The API of a model provider. `openai` is Responses and Chat Completions, of OpenAI or of another service."""


@dataclass(frozen=True, slots=True)
class ModelAccess:
    """The access of an agent to its model. Each runner translates it into the settings of its agent's program.

    `base_url` None is the vendor's own address. The credential is `api_key`, `oauth_token` or one of `headers`, which
    are sent with every request. With `socket`, a path in the sandbox, the agent connects to that Unix socket instead of
    the host of `base_url`; `port_url` is for agents that take no path of a socket, where the run has a network of its
    own (`Command.needs_model_port`).
    """

    api: ModelApi = "anthropic"
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    oauth_token: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    socket: str | None = None
    port_url: str | None = None
    region: str | None = None
    project: str | None = None


@dataclass(frozen=True, slots=True)
class ToolNames:
    """The names of tools in an agent's events, which depend on its program."""

    client_prefix: str
    """The prefix of the names of the client's tools."""
    structured_output: str
    """The tool by which an agent returns an answer with a schema."""
    todo_list: str = ""
    """The tool that writes a whole todo list (`todos`, each with `content` and `status`)."""
    create_todo: str = ""
    """The tool that adds an entry to the todo list (`subject`); its output has the number of the entry after a `#`."""
    update_todo: str = ""
    """The tool that changes an entry (`taskId`, and those of `subject` and `status` that change)."""


@dataclass(frozen=True, slots=True)
class ClientToolCall:
    """A call of one of the caller's own tools."""

    id: str
    name: str
    arguments: Mapping[str, Any]


IsInSession = Callable[[], Awaitable[bool]]
"""Returns True once the agent's session on disk holds the calls that it waits for: it can then be resumed with them."""


async def is_never_in_session() -> bool:
    """Return False: the session of an agent that keeps none never holds its calls."""
    return False


class CallClientTools(Protocol):
    """Sends tool calls to the job's caller."""

    async def __call__(
        self, calls: Sequence[ClientToolCall], is_in_session: IsInSession = is_never_in_session
    ) -> Mapping[str, ToolOutput]:
        """Return the result of each call, by its id; raise `TimeoutError`."""
        ...


@dataclass(frozen=True, slots=True)
class SteerMessage:
    """A message to a running turn."""

    id: str
    text: str


DeliverSteer = Callable[[SteerMessage], Awaitable[bool]]
"""Passes a message to the agent. Returns False if the turn has ended, or the agent does not take it in time."""


class SteerInbox(Protocol):
    """The messages to one run. A runner opens it, refuses all, or leaves it: then no message comes."""

    def open(self, deliver: DeliverSteer) -> AbstractContextManager[None]:
        """Accept messages for the length of the block."""
        ...

    def refuse(self) -> None:
        """Refuse all messages: this kind of agent takes none."""
        ...


@dataclass(frozen=True, slots=True)
class RunSpec:
    """The input of a runner for one run.

    `environment` is the environment that the service grants the agent. The runner adds the settings of `model_access`,
    then `agent.env`.
    """

    job: Job
    number: int
    agent: Agent
    checkout: Checkout
    environment: Mapping[str, str]
    on_spawned: Callable[[int, int], None]
    """Called with the supervisor's pid and start time (clock ticks since boot) once it is there."""
    model_access: ModelAccess | None = None
    """The gateway's access to the model; None without a gateway."""
    on_listening: OnListening | None = None
    """The callback for the listening sockets in a sandboxed run's network."""
    call_client_tools: CallClientTools | None = None
    """Makes the calls of a job with tools of its caller."""
    steers: SteerInbox | None = None
    """The messages to the running turn."""
    earlier_files: Sequence[Mapping[str, Any]] = ()
    """The files that came with earlier turns of its session, which its checkout has not."""
    on_answer: Callable[[RunEvidence], None] | None = None
    """Called once the agent has given its result and nothing of it goes on, before the agent has ended."""
    until_calls_fail: Callable[[], Awaitable[None]] | None = None
    """Waits until the calls of the model keep failing: some agents repeat them for as long as they are let."""
    keep_process: bool = False
    """True if a process that waited for this job may wait for another one after it; see `RunReport.process_kept`."""
    background_seconds: float = 600
    """How long the run waits, after a result, for work that the agent has in the background."""
    hold: HoldSpec | None = None
    """The order to hold the run, so that it may outlive the service; None ends it with the service."""
    on_kept: Callable[[Callable[[], bool]], None] = lambda _leave: None
    """Called once the run is held, with a function that leaves it: the run then goes on when its call is cancelled.

    The function returns False if that is not possible any more.
    """
    orphan: OrphanedRun | None = None
    """The run itself, if an earlier service has left it: the runner takes it up and reads its output from the start."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """The result of a run: the evidence, its output, and the session that it left."""

    evidence: RunEvidence
    output: RunOutput
    session_id: str | None = None
    warnings: tuple[JobWarning, ...] = ()
    process_kept: bool = False
    """True if the agent has ended its work well and its process waits for more; its session is on disk."""


class Runner(Protocol):
    """Drives one kind of agent process."""

    async def run(self, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        """Run an agent to its end or until a stop is requested; no process of it is alive when this returns.

        It requests a stop by itself (`Stop.IDLE`) after silence for the job's idle limit. Cancelling the call stops the
        agent as well. Raises `SpawnError` if the agent could not be started.
        """
        ...


class WarmKey(NamedTuple):
    """The properties of a job that a waiting process must have been started and initialised with."""

    process: str
    """A digest of those that are fixed when the process starts."""
    details: str
    """A digest of those that are fixed when it is initialised: system prompt, output schema and the client's tools."""


class WarmAgent(Protocol):
    """A process that waits for a job. It belongs to the block of `WarmRunner.prepare`, also while a job runs in it."""

    @property
    def session_id(self) -> str:
        """Return the id of the session that its next run has."""
        ...

    @property
    def is_initialised(self) -> bool:
        """Return True if the details of its jobs are fixed."""
        ...

    @property
    def supervisor(self) -> tuple[int, int]:
        """Return the supervisor's pid and start time."""
        ...

    @property
    def root(self) -> Path | None:
        """Return the path by which the service sees the files of the process as it does; None if there is none."""
        ...

    def pause(self) -> None:
        """Stop the processes until `wake`: an idle one would take a share of a core."""
        ...

    async def wake(self) -> bool:
        """Let the processes go on; return True if the agent answers within a short time."""
        ...

    async def exited(self) -> None:
        """Wait for the end of the agent. The caller bounds the wait."""
        ...

    async def run(self, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        """Run a job in the process, as `Runner.run` does. No process of it is alive then unless the report says so."""
        ...

    def end_hold(self) -> None:
        """Let the process end with the service again, once its run's end is stored and the process waits for more."""
        ...

    async def reset(self, checkout: Checkout) -> bool:
        """Make a kept process as it was before its first job, with a new session; return False if that failed."""
        ...


class WarmRunner(Protocol):
    """A runner that can start a process before its job is there."""

    @property
    def is_sandboxed(self) -> bool:
        """Return True if processes see their files at the same paths whatever folder they are in."""
        ...

    def warm_key(self, job: Job, agent: Agent) -> WarmKey | None:
        """Return the key of the processes that the first run of a job can have; None if it needs one of its own."""
        ...

    def turn_key(self, job: Job, agent: Agent) -> WarmKey | None:
        """Return the same for a job that continues the conversation of another one."""
        ...

    def may_initialise(self, agent: Agent, checkout: Checkout) -> bool:
        """Return True if nothing of the agent or of its repository could run before a job is there."""
        ...

    def set_background(self, supervisor: int, *, is_background: bool) -> None:
        """Let the processes of a supervisor have the processor only while nothing else wants it, or as usual again."""
        ...

    def prepare(
        self,
        spec: RunSpec,
        rehearsing: Callable[[], AbstractContextManager[None]] | None,
        *,
        initialise: bool,
    ) -> AbstractAsyncContextManager[WarmAgent]:
        """Start a process for jobs like that of `spec`, whose prompt is not used; it ends with the block.

        With `rehearsing`, a first turn is played and forgotten inside that block. Raises `SpawnError`.
        """
        ...

    def start(self, spec: RunSpec, stop: StopSignal) -> AbstractAsyncContextManager[WarmAgent]:
        """Start a process for a job that it runs at once and after which it may stay; it ends with the block.

        The first run of the process has to be `spec`. It cannot be reset. Raises `SpawnError`.
        """
        ...


class AgentFiles(Protocol):
    """Knows the files of one kind of agent: the instructions in a repository, and the config directory."""

    @property
    def instruction_files(self) -> Sequence[str]:
        """The main files of instructions in a repository, the most important one first."""
        ...

    @property
    def instruction_dirs(self) -> Sequence[str]:
        """The folders with more instructions in a repository."""
        ...

    def read_instructions(self, files: Sequence[tuple[str, str]], *, full_trust: bool) -> Instructions:
        """Return the instructions in files of a repository, which are pairs of path and text.

        Below full trust, nothing returned can start a command. Of two definitions with one name the first counts.
        """
        ...

    def parse_own_definition(self, stem: str, text: str) -> AgentDefinition | None:
        """Parse an agent definition of the operator, with all its keys; return None if the text is not one.

        `stem` is the file's name without its ending.
        """
        ...

    def write_config(
        self,
        config_dir: Path,
        texts: Mapping[str, str],
        definitions: Mapping[str, AgentDefinition],
        *,
        sandboxed: bool,
    ) -> None:
        """Write instructions and definitions to a config directory that only the service can access so far."""
        ...

    def move_session(self, config_dir: Path, old_directory: Path, new_directory: Path) -> None:
        """Move the sessions of a working directory in `config_dir` to those of another one."""
        ...

    def redirect_sessions(
        self, config_dir: Path, old_directory: Path, new_directory: Path, owner: int | None
    ) -> None:
        """Let a process that was started in `old_directory` write its sessions where those of `new_directory` are.

        The new folder belongs to `owner`. Call it before anything but the service has told the process what to do.
        """
        ...

    def restore_sessions(self, config_dir: Path, old_directory: Path, new_directory: Path) -> None:
        """Undo `redirect_sessions`."""
        ...

    def copy_transcript(
        self,
        config_dir: Path,
        target: Path,
        *,
        owner: int | None,
        redactor: "Redactor",
        since: float = 0.0,
        directory: Path | None = None,
    ) -> JobWarning | None:
        """Copy the newest transcript in `config_dir` to `target` without live secrets, if there is one.

        Only regular files of `owner` (None is any owner) that changed after `since` (seconds since the epoch) count.
        With `directory`, only sessions of that working directory count.
        """
        ...

    def default_config_dir(self, home: Path) -> Path:
        """Return the config directory that the agent uses in a home if it gets no other."""
        ...


AgentFilesOf = Callable[[str], AgentFiles]
"""Returns the files of the agents of a runner, by its name."""
