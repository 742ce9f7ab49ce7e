"""The Runner port: starts and drives an agent's process."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from steadyhand.agents import Agent
from steadyhand.events import EventBody, TextDelta
from steadyhand.job import Job, JobWarning
from steadyhand.outcome import RunEvidence
from steadyhand.ports.queue import StopSignal
from steadyhand.ports.store import RunOutput
from steadyhand.ports.workspace import Checkout

Emit = Callable[[EventBody | TextDelta], Awaitable[None]]
"""Receives events in order; waits while the store is behind."""

OnListening = Callable[[Sequence[int]], None]
"""Takes descriptors of sockets that listen in a sealed run's network; whoever is called closes them."""


ModelApi = Literal["anthropic", "bedrock", "vertex"]
"""The API of a model provider."""


@dataclass(frozen=True, slots=True)
class ModelAccess:
    """The access of an agent to its model. Each runner translates it into the settings of its agent's program.

    `base_url` None is the vendor's own address. The credential is `api_key`, `oauth_token` or one of `headers`, which
    are sent with every request. With `socket`, a path in the sandbox, the agent connects to that Unix socket instead of
    the host of `base_url`.
    """

    api: ModelApi = "anthropic"
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    oauth_token: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    socket: str | None = None
    region: str | None = None
    project: str | None = None


@dataclass(frozen=True, slots=True)
class ToolNames:
    """The names of tools in an agent's events, which depend on its program."""

    client_prefix: str
    """The prefix of the names of the client's tools."""
    structured_output: str
    """The tool by which an agent returns an answer with a schema."""


@dataclass(frozen=True, slots=True)
class ClientToolCall:
    """A call of one of the caller's own tools."""

    id: str
    name: str
    arguments: Mapping[str, Any]


CallClientTools = Callable[[Sequence[ClientToolCall]], Awaitable[Mapping[str, str]]]
"""Sends tool calls to the job's caller and returns the result of each, by its id; raises `TimeoutError`."""


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
    earlier_files: Sequence[Mapping[str, Any]] = ()
    """The files that came with earlier turns of its session, which its checkout has not."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """The result of a run: the evidence, its output, and the session that it left."""

    evidence: RunEvidence
    output: RunOutput
    session_id: str | None = None
    warnings: tuple[JobWarning, ...] = ()


class Runner(Protocol):
    """Drives one kind of agent process."""

    async def run(self, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        """Run an agent to its end or until a stop is requested; no process of it is alive when this returns.

        It requests a stop by itself (`Stop.IDLE`) after silence for the job's idle limit. Cancelling the call stops the
        agent as well. Raises `SpawnError` if the agent could not be started.
        """
        ...
