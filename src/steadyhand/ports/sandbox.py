"""The sandbox port: the boundary around an agent, and small commands run behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from steadyhand.agents import Agent
from steadyhand.ports.workspace import AgentPaths, Checkout


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """The most that one run may take of the machine; null is no limit. Sizes are bytes."""

    memory: int | None = None
    processes: int | None = None
    open_files: int | None = None
    file_size: int | None = None


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount on the stage, below it at `name`.

    A `bind` shows `source`; an `image` mounts the file system in the file `source`; an `overlay` lays `upper` (with
    `work`) over `source`. `owner`, when given, is who `source` belongs to on disk and is shown as the run's user.
    """

    kind: Literal["bind", "image", "overlay"]
    target: str
    source: Path
    writable: bool = False
    owner: int | None = None
    upper: Path | None = None
    work: Path | None = None
    change_owner: bool = False
    """Whether all in an image is to be given to the run's user, whoever's it is."""


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What the supervisor makes before it starts a sealed command; all of it is gone with the run.

    `stage` is a folder on which it mounts a file system that only this run's processes have, then `mounts` in order;
    null when the service is not root and the sandbox makes its own mounts. `inputs` are bytes that the command
    reads from these descriptors. `ports`, when not null, gives the run a network of its own with loopback alone, where
    the service listens on them.
    """

    mount_root: Path | None = None
    mounts: tuple[Mount, ...] = ()
    input_data: Mapping[int, bytes] = field(default_factory=dict)
    limits: ResourceLimits = field(default_factory=ResourceLimits)
    loopback_ports: tuple[int, ...] | None = None


DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The `PATH` of a command that gets no other: the usual directories of Debian."""


@dataclass(frozen=True, slots=True)
class Command:
    """A process to be: arguments, its whole environment, its directory and its uid (null is the service's)."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    uid: int | None = None
    sandbox: SandboxSpec | None = None


class Sandbox(Protocol):
    """A boundary around an agent. All verbs are pure."""

    @property
    def level(self) -> Literal["none", "bwrap"]:
        """Say which level of isolation this is."""
        ...

    def agent_paths(self, checkout: Checkout) -> AgentPaths:
        """Say where the agent sees its folders."""
        ...

    def host_checkout_dir(self, checkout: Checkout) -> Path:
        """Say where the checkout is for what is done outside of the boundary just before the agent starts."""
        ...

    def wrap(self, command: Command, checkout: Checkout, agent: Agent) -> Command:
        """Give the command to spawn in place of `command`, whose paths are those of the view."""
        ...


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What an errand came to; `code` is null when it was stopped or killed."""

    exit_code: int | None
    stdout: bytes
    stderr: bytes


class SandboxExec(Protocol):
    """Small commands run where the agent ran, with the same boundary; nothing of them is alive afterwards."""

    async def run(
        self,
        argv: Sequence[str],
        checkout: Checkout,
        agent: Agent,
        *,
        env: Mapping[str, str],
        stdin: bytes = b"",
        timeout_seconds: float,
        max_output: int,
    ) -> ExecResult:
        """Run a command in the view's directory. Raises `SpawnError`; what is over `max_output` bytes stops it."""
        ...
