"""Agents and workspaces, which a caller names in a request. Pure.

An `Agent` is a named set of settings for a run. Its `definition` is a Markdown file with frontmatter, as the
CLI reads it; an agent without one is the CLI's default agent with the profile's model, tools and limits.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from steadyhand.errors import InvalidRequest
from steadyhand.job import Job, OnInterrupt, Publish
from steadyhand.money import MICROS_PER_DOLLAR
from steadyhand.placement import Placement, combine

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
NAME_RULE = "a letter or digit, then at most 63 letters, digits, dots, dashes or underscores"

TrustLevel = Literal["none", "instructions", "full"]
WorkspaceMode = Literal["checkout", "in_place"]

DEFAULT_RUNNER = "claude"
"""The runner of the CLI that comes along."""
DEFAULT_PROVIDER = "default"
"""The provider of an agent that names none."""
CLASSIC_DEFAULT_AGENT = "recruiter-triage"
"""The agent that the chat route of the classic profile runs by default."""


def parse_agent_name(raw: str) -> str:
    """Return the agent's name in `raw`: of a path to a definition the last part, without `.md`.

    Raise `InvalidRequest` at `/agent` if that is not a name.
    """
    name = raw.rsplit("/", 1)[-1]
    name = name.removesuffix(".md")
    if NAME_PATTERN.fullmatch(name) is None:
        raise InvalidRequest.at("/agent", f"is not an agent's name: {NAME_RULE}")
    return name


@dataclass(frozen=True, slots=True)
class AgentDefinition:
    """One agent definition: `text` is the whole file as the CLI receives it."""

    name: str
    description: str
    text: str
    origin: Literal["workspace", "data_dir"]


@dataclass(frozen=True, slots=True)
class Agent:
    """Named settings for a run. None stands for the default of the service; for `tools` it is all tools of the CLI."""

    name: str
    description: str = ""
    runner: str = DEFAULT_RUNNER
    provider: str = DEFAULT_PROVIDER
    """The name of the provider of its model: an address and a credential."""
    day_micros: int | None = None
    """The budget of all its jobs together for a day in UTC; None is no limit."""
    max_budget_micros: int | None = None
    """The highest budget that a job may ask for; `budget_micros` is that of a job which asks for none."""
    max_timeout_seconds: float | None = None
    models: tuple[str, ...] | None = None
    """The models that a job may name; None is any."""
    definition: str | None = None
    """The definition that the CLI receives as `--agent`; None runs the CLI's default agent."""
    workspace: str | None = None
    """A workspace's name; None is the default workspace; `scratch` is an empty checkout."""
    model: str | None = None
    budget_micros: int | None = None
    timeout_seconds: float | None = None
    idle_timeout_seconds: float | None = None
    background_seconds: float | None = None
    """How long a run waits, after a result, for work in the background."""
    tools: tuple[str, ...] | None = None
    max_turns: int | None = None
    effort: str | None = None
    append_system_prompt: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    """Files of this machine that the agent may read, at the same paths in the sandbox."""
    egress: tuple[str, ...] = ()
    """Host names that it may reach; `*.` before a name allows its subdomains; `host` alone is the host's network."""
    memory_bytes: int | None = None
    processes: int | None = None
    disk_bytes: int | None = None
    lean: bool = False
    """Leave out of its context what a turn does not need: the CLI's memory and the state of the machine.

    If it has no tools either, a short text stands for the CLI's own system prompt: 2 KB instead of 50 KB.
    """
    warm: int | Literal["auto"] = 0
    """How many processes wait for jobs of the agent; `auto` is by the jobs of the last hours."""
    live_seconds: float = 0
    """How long a process stays after a job for the next turn of its conversation."""
    labels: tuple[str, ...] = ()
    """The labels that a node must have to run its jobs."""
    not_on_nodes: tuple[str, ...] = ()
    """The names of the nodes that do not run its jobs."""


SCRATCH_WORKSPACE = "scratch"
"""The name of the workspace that is an empty directory."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """A repository, a ref and a policy. With `repository` None it is an empty scratch checkout."""

    name: str
    repository: str | None = None
    ref: str | None = None
    mode: WorkspaceMode = "checkout"
    trust: TrustLevel = "instructions"
    setup: tuple[str, ...] = ()
    """Shell commands run once for each warm checkout, in the sandbox."""
    setup_secrets: tuple[str, ...] = ()
    setup_egress: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()
    """Package managers (`pip npm cargo go`) whose caches the workspace's jobs share, read and write."""
    publish: Publish | None = None
    """How a job's commits are published if the job sets nothing; None stands for the default."""
    trusted_refs: tuple[str, ...] = ()
    """The refs on which `full` trust holds; on others it is `instructions`."""
    submodules: bool = False
    """Fetch the submodules of the commit, at the pinned commits."""
    lfs: bool = False
    """Fetch the files of Git LFS."""
    fetch_hosts: tuple[str, ...] = ()
    """Hosts, beside the repository's own, for submodules and Git LFS, each with or without a port."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """The values of a job and an agent that set none. Seconds and micro-dollars."""

    agent: str = "claude"
    workspace: str | None = None
    budget_micros: int = 5 * MICROS_PER_DOLLAR
    timeout_seconds: float = 2700
    idle_timeout_seconds: float = 600
    background_seconds: float = 600
    publish: Publish = "none"
    on_interrupt: OnInterrupt = "auto"


@dataclass(frozen=True, slots=True)
class Limits:
    """The maximum values that a job may request. Seconds and micro-dollars; None is no limit."""

    max_budget_micros: int | None = None
    max_timeout_seconds: float | None = None


CHAT_AGENT = "chat"
"""The built-in agent without tools."""
BUILT_IN_AGENTS: Mapping[str, Agent] = {
    "claude": Agent("claude", "Claude with all its tools, in the default workspace."),
    CHAT_AGENT: Agent(
        CHAT_AGENT,
        "Claude without tools, lean and cheap, for plain conversation.",
        workspace=SCRATCH_WORKSPACE,
        tools=(),
        budget_micros=MICROS_PER_DOLLAR // 4,
        timeout_seconds=120,
        lean=True,
    ),
}
"""The agents that exist without any configuration."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """The agents (configured ones replace built-in ones) and workspaces that a job may name."""

    agents: Mapping[str, Agent] = field(default_factory=lambda: dict(BUILT_IN_AGENTS))
    workspaces: Mapping[str, Workspace] = field(default_factory=dict)
    defaults: Defaults = field(default_factory=Defaults)
    limits: Limits = field(default_factory=Limits)

    def agent(self, name: str) -> Agent:
        """Return the agent of this name; one that is not configured needs a definition of that name."""
        return self.agents.get(name) or Agent(name, definition=name)

    def placement_of(self, job: Job) -> Placement:
        """Return the demands of a job and its agent on a node."""
        agent, spec = self.agents.get(job.agent), job.spec
        if agent is None:
            return combine((spec.labels, spec.not_on_nodes))
        return combine((agent.labels, agent.not_on_nodes), (spec.labels, spec.not_on_nodes))

    def workspace(self, name: str | None) -> Workspace:
        """Return a configured workspace, the scratch one for None, or one for a path or a URL."""
        if name is None or name == SCRATCH_WORKSPACE:
            return Workspace(SCRATCH_WORKSPACE)
        return self.workspaces.get(name) or Workspace(name, repository=name)

    def default_workspace_name(self, agent: Agent) -> str | None:
        """Return the workspace of an agent if the job names none; None is the scratch checkout."""
        name = agent.workspace if agent.workspace is not None else self.defaults.workspace
        return None if name == SCRATCH_WORKSPACE else name
