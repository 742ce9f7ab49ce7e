"""The sandbox port: the boundary around an agent, and small commands run behind it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from steadyhand.agents import Agent
from steadyhand.ports.workspace import AgentPaths, Checkout


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """The maximum use of the machine by one run; None is no limit. Sizes are bytes."""

    memory: int | None = None
    processes: int | None = None
    open_files: int | None = None
    file_size: int | None = None


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount below the mount root, at `target`.

    A `bind` shows `source`; an `image` mounts the file system in the file `source`; an `overlay` lays `upper` (with
    `work`) over `source`, and `middle`, if set, between the two; a `joined` one shows what `holder`, a supervisor, has
    mounted at `source`. Files of the user `owner` on disk appear as files of the run's user.
    """

    kind: Literal["bind", "image", "overlay", "joined"]
    target: str
    source: Path
    writable: bool = False
    owner: int | None = None
    upper: Path | None = None
    work: Path | None = None
    middle: Path | None = None
    change_owner: bool = False
    """True if every file in an image is to be changed to the run's user."""
    holder: tuple[int, int] | None = None
    """The pid and start time of another run's supervisor."""


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """The resources that the supervisor sets up before it starts a sandboxed command; they end with the run.

    `mount_root` is a folder on which it mounts a file system that only this run's processes see, then `mounts` in
    order; None if the service is not root and the sandbox makes its own mounts. `input_data` are bytes that the command
    reads from these descriptors. With `loopback_ports` the run has a network of its own with loopback alone, where the
    service listens on these ports.
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
    """A process to start: arguments, its whole environment, its directory and its uid (None is the service's).

    A sandbox shows the socket of its slot to the model only to a command with `needs_model_socket`; for one with
    `needs_model_port` the service listens in the run's network on a port as well, which follows that of the proxy in
    `SandboxSpec.loopback_ports`. `programs` are the files that the first arguments name, if they are not the one that
    the sandbox shows: it shows each with the folder that it needs.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    uid: int | None = None
    sandbox: SandboxSpec | None = None
    needs_model_socket: bool = False
    needs_model_port: bool = False
    programs: Sequence[Path] = ()


class Sandbox(Protocol):
    """A boundary around an agent. All methods are pure."""

    @property
    def level(self) -> Literal["none", "bwrap"]:
        """Return the isolation level."""
        ...

    def agent_paths(self, checkout: Checkout) -> AgentPaths:
        """Return the paths of the agent's folders in the sandbox."""
        ...

    def host_checkout_dir(self, checkout: Checkout) -> Path:
        """Return the path of the checkout for work outside of the sandbox just before the agent starts."""
        ...

    def wrap(self, command: Command, checkout: Checkout, agent: Agent) -> Command:
        """Return the command to spawn instead of `command`, whose paths are those of `agent_paths`."""
        ...


@dataclass(frozen=True, slots=True)
class ExecResult:
    """The result of a command; `exit_code` is None if it was stopped or killed."""

    exit_code: int | None
    stdout: bytes
    stderr: bytes


class SandboxExec(Protocol):
    """Runs small commands in the agent's sandbox; none of their processes is alive afterwards."""

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
        on_stdout: Callable[[bytes], float] | None = None,
        on_stderr: Callable[[bytes], None] | None = None,
    ) -> ExecResult:
        """Run a command in the agent's directory; output above `max_output` bytes stops it. Raise `SpawnError`.

        `on_stdout` gets stdout as it comes, in place of the result, and returns seconds that are added to the time
        limit. `on_stderr` gets stderr as it comes.
        """
        ...
