"""The boundary around an agent: none at all, or bwrap's namespaces with everything that belongs to them."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from steadyhand.agents import Agent
from steadyhand.errors import ConfigError, SpawnError
from steadyhand.ports import (
    AgentPaths,
    BindMount,
    Checkout,
    Command,
    Mount,
    ResourceLimits,
    SandboxSpec,
)
from steadyhand.sandbox import bwrap_args, seccomp

SOCKET_PATH = bwrap_args.SERVICE_DIR / "model.sock"
PROXY_PORT = 3128
"""Where the service's way to other hosts listens inside, on loopback."""
MODEL_PORT = 8787
"""Where its way to the model listens inside, for agents that take no path of a socket."""
MODEL_ADDRESS = f"http://127.0.0.1:{MODEL_PORT}"
_PROXY = f"http://127.0.0.1:{PROXY_PORT}"
_NO_PROXY_HOSTS = "localhost,127.0.0.1,::1"
PROXY_ENV = {
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), _PROXY),
    "no_proxy": _NO_PROXY_HOSTS,
    "NO_PROXY": _NO_PROXY_HOSTS,
    "NODE_USE_ENV_PROXY": "1",
}
"""The variables by which programs find the egress proxy; the proxy reports the hosts that it denies."""
MAX_OPEN_FILES = 16_384
MAX_FILE_BYTES = 8 * 1024**3
"""The largest file of an agent whose disk has no limit."""
HOST_NETWORK_ONLY = ("host",)
"""The egress that is no list: it shares this machine's network."""

_NO_MODEL_PORT = (
    "This agent reaches its model by a port of the run's own network, which it has not: "
    "its egress is `host`, or this machine gives runs no network of their own."
)

_ARGS_FD, _SECCOMP_FD = 10, 11
"""The descriptors on which bwrap reads its options and the filter."""
_CHECKOUT_MOUNT, _DISK_MOUNT = "tree", "disk"
_USR_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


class NoSandbox:
    """Level `none`: the agent runs with nothing around it but its own uid; the service warns at each start."""

    level: Literal["none", "bwrap"] = "none"

    def agent_paths(self, place: Checkout) -> AgentPaths:
        """Return the directories on this machine."""
        return place.host_paths

    def host_checkout_dir(self, place: Checkout) -> Path:
        """Return the directory on this machine."""
        return place.directory

    def wrap(self, command: Command, place: Checkout, agent: Agent) -> Command:  # noqa: ARG002  # the port's signature
        """Return the command unchanged."""
        return command


@dataclass(frozen=True, slots=True)
class AgentProgram:
    """The agent's program: `path` is its path for the runner, `inside` its path in the sandbox.

    `bind` mounts it there; None if it is below `/usr`, which is visible anyway.
    """

    path: Path
    sandbox_path: Path
    bind: bwrap_args.BwrapBind | None


@dataclass(frozen=True, slots=True)
class DefaultLimits:
    """The limits of an agent whose profile sets none; None is no limit."""

    memory_bytes: int | None = None
    processes: int | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Degradation:
    """A protection that this machine lacks although agents are sandboxed, and its meaning for them."""

    missing: str
    consequence: str

    def __str__(self) -> str:
        return f"without {self.missing}: {self.consequence}"


NO_USERNS_LOCK = Degradation(
    "bwrap's lock on user namespaces (--disable-userns)",
    "the filter of system calls alone keeps agents from making namespaces",
)
NO_EGRESS_NETWORK = Degradation(
    "a network of the run's own that the service can listen in",
    "agents reach the model and nothing else; no host of an egress list can be reached",
)
NO_MOUNTS = Degradation(
    "mounts made for each run (the service is root and may not mount)",
    "agents see secret files only where their user can read them",
)


@dataclass(frozen=True, slots=True)
class BwrapSandbox:
    """The level `bwrap`. `detect` makes it; its methods read nothing else of the machine.

    A service that is root has the mounts of a run made at `staging_dir`; without it bwrap binds files of this machine.
    `secret_owners` has the owners of secret files that agents' users cannot read by themselves.
    """

    bwrap: Path
    program: AgentProgram
    config_dir: Path
    """The config directory of the agent's program in the sandbox."""
    layout: bwrap_args.RootLayout
    etc_dir: Path
    sockets_dir: Path
    """The folder with a folder for each slot, which holds the slot's socket to the model."""
    staging_dir: Path | None
    secret_owners: Mapping[Path, int] = field(default_factory=dict)
    default_limits: DefaultLimits = field(default_factory=DefaultLimits)
    egress_network: bool = True
    """True if the supervisor makes a network in which the service listens; else bwrap makes an empty one."""
    resolv_conf: Path | None = None
    """This machine's own `resolv.conf`, for agents that share its network."""
    level: Literal["none", "bwrap"] = "bwrap"

    def agent_paths(self, place: Checkout) -> AgentPaths:  # noqa: ARG002  # the port's signature
        """Return the directories inside, which are the same for every job."""
        return AgentPaths(bwrap_args.WORKSPACE_DIR, bwrap_args.HOME_DIR, self.config_dir)

    def host_checkout_dir(self, place: Checkout) -> Path:
        """Return the mount point of its layers for this run, or its directory if it has none."""
        return (
            place.directory
            if place.layers is None or self.staging_dir is None
            else self.staging_dir / _CHECKOUT_MOUNT
        )

    def wrap(self, command: Command, place: Checkout, agent: Agent) -> Command:
        """Return bwrap's command line and its `SandboxSpec`. Raises `SpawnError` for an invalid argument."""
        shares_network = agent.egress == HOST_NETWORK_ONLY
        binds = self._plan_binds(command, place, agent, shares_network=shares_network)
        bwrap_binds, mounts = self._plan_mounts(place, binds)
        argv = list(command.argv)
        shown = {str(program.path): str(program.sandbox_path) for program in self._programs(command)}
        # A command that names its programs has no words of a caller.
        words = len(argv) if command.programs else 1
        argv[:words] = [shown.get(word, word) for word in argv[:words]]
        if any("\0" in word for word in argv):
            raise SpawnError("A value for the agent's command line holds a NUL byte.", retryable=False)
        seccomp_filter = seccomp.build_filter()
        unshares_network = not self.egress_network and not shares_network
        ports = None if shares_network or unshares_network else _loopback_ports(command)
        if command.needs_model_port and ports is None:
            raise SpawnError(_NO_MODEL_PORT, retryable=False)
        env = command.env if ports is None else {**PROXY_ENV, **command.env}
        options = bwrap_args.bwrap_options(
            self.layout,
            bwrap_binds,
            env,
            unshare_network=unshares_network,
            seccomp_fd=_SECCOMP_FD if seccomp_filter else None,
        )
        inputs = {_ARGS_FD: bwrap_args.encode_args(options)} | (
            {_SECCOMP_FD: seccomp_filter} if seccomp_filter else {}
        )
        spec = SandboxSpec(
            mount_root=self.staging_dir,
            mounts=tuple(mounts),
            input_data=inputs,
            limits=self.resource_limits(agent),
            loopback_ports=ports,
        )
        bwrap_argv = [str(self.bwrap), "--args", str(_ARGS_FD), "--", *argv]
        return Command(bwrap_argv, {}, Path("/"), command.uid, spec)

    def resource_limits(self, agent: Agent) -> ResourceLimits:
        """Return the limits of a run of this agent."""
        disk = agent.disk_bytes or self.default_limits.disk_bytes
        return ResourceLimits(
            memory=agent.memory_bytes or self.default_limits.memory_bytes,
            processes=agent.processes or self.default_limits.processes,
            open_files=MAX_OPEN_FILES,
            file_size=MAX_FILE_BYTES if disk is None else min(disk, MAX_FILE_BYTES),
        )

    def _programs(self, command: Command) -> list[AgentProgram]:
        """Return the programs of a command, which is the sandbox's own if it names none."""
        if not command.programs:
            return [self.program]
        return [_beside_others(path, str(number)) for number, path in enumerate(command.programs)]

    def _plan_mounts(
        self, checkout: Checkout, binds: list[BindMount]
    ) -> tuple[list[bwrap_args.BwrapBind], list[Mount]]:
        """Return the binds of the agent, and the mounts that must be made first (none without a staging directory)."""
        if self.staging_dir is None:
            return [bwrap_args.BwrapBind(each.source, each.target, each.writable) for each in binds], []
        mounts, bwrap_binds = [], []
        if checkout.layers is not None:
            if checkout.holder is None:
                mounts += _overlay_mounts(checkout, self.staging_dir)
            else:
                mounts.append(_joined_mount(checkout, self.staging_dir, _CHECKOUT_MOUNT))
            bwrap_binds.append(
                bwrap_args.BwrapBind(
                    self.staging_dir / _CHECKOUT_MOUNT, bwrap_args.WORKSPACE_DIR, writable=True
                )
            )
        has_disk_limit = checkout.layers is not None and checkout.layers.image is not None
        for number, each in enumerate(binds):
            name = f"b{number}"
            if has_disk_limit and each.target == bwrap_args.HOME_DIR and checkout.holder is not None:
                mounts.append(_joined_mount(checkout, self.staging_dir, name))  # it has the same number there
            elif has_disk_limit and each.target == bwrap_args.HOME_DIR:
                # What fills the home counts against the disk limit like what fills the checkout.
                disk = self.staging_dir / _DISK_MOUNT
                upper, work = disk / "home", disk / "home-work"
                mounts.append(Mount("overlay", name, each.source, writable=True, upper=upper, work=work))
            else:
                mounts.append(Mount("bind", name, each.source, writable=each.writable, owner=each.owner))
            bwrap_binds.append(bwrap_args.BwrapBind(self.staging_dir / name, each.target, each.writable))
        return bwrap_binds, mounts

    def _plan_binds(
        self, command: Command, checkout: Checkout, agent: Agent, *, shares_network: bool
    ) -> list[BindMount]:
        # In place in the classic profile the home would be the service's own, which no sealed agent sees.
        home = checkout.home if checkout.config_dir is not None else checkout.paths.home
        config = checkout.config_dir or checkout.paths.config_dir
        binds = [
            BindMount(self.etc_dir, Path("/etc")),
            BindMount(home, bwrap_args.HOME_DIR, writable=True),
            BindMount(config, self.config_dir, writable=True),
        ]
        if checkout.layers is None or self.staging_dir is None:
            binds.append(BindMount(checkout.directory, bwrap_args.WORKSPACE_DIR, writable=True))
        if command.needs_model_socket:
            binds.append(BindMount(self.sockets_dir / f"slot-{checkout.slot}", bwrap_args.SERVICE_DIR))
        binds += [
            BindMount(each.bind.source, each.bind.at)
            for each in self._programs(command)
            if each.bind is not None
        ]
        if shares_network and self.resolv_conf is not None:
            binds.append(BindMount(self.resolv_conf, Path("/etc/resolv.conf")))
        binds += [
            BindMount(Path(name), Path(name), owner=self.secret_owners.get(Path(name)))
            for name in agent.secrets
        ]
        return [*binds, *checkout.binds]

    # --- made at the start -----------------------------------------------------------------

    @classmethod
    def detect(
        cls,
        data_dir: Path,
        cli: Path,
        *,
        program_name: str,
        config_dir_name: str,
        etc_dir: Path,
        secrets: Iterable[str] = (),
        default_limits: DefaultLimits | None = None,
        search_path: str | None = None,
    ) -> "BwrapSandbox":
        """Return the sandbox of this machine for the agent's program `cli`. Raise `ConfigError` if bwrap is missing.

        In the sandbox the program has the name `program_name`, and the home has its config directory `config_dir_name`.
        """
        bwrap_path = shutil.which("bwrap", path=search_path)
        if bwrap_path is None:
            raise ConfigError(BWRAP_MISSING)
        root = os.geteuid() == 0
        return cls(
            bwrap=Path(bwrap_path).absolute(),
            program=locate_program(cli, program_name),
            config_dir=bwrap_args.HOME_DIR / config_dir_name,
            layout=bwrap_args.RootLayout(root_links()),
            etc_dir=etc_dir,
            sockets_dir=data_dir / "run",
            staging_dir=data_dir / "stage" if root else None,
            secret_owners=find_secret_owners(secrets) if root else {},
            default_limits=default_limits or DefaultLimits(),
            resolv_conf=_find_resolv_conf(),
        )

    def fallbacks(self) -> Iterator[tuple["BwrapSandbox", tuple[Degradation, ...]]]:
        """Yield the weaker forms of this sandbox, best first, each with its missing protections.

        No form lacks the agent's own user (when the service is root), its namespaces, the filter of system calls, the
        read-only root and the cleared environment.
        """
        layout = replace(self.layout, disable_userns=False)
        yield replace(self, layout=layout), (NO_USERNS_LOCK,)
        yield replace(self, egress_network=False), (NO_EGRESS_NETWORK,)
        yield replace(self, layout=layout, egress_network=False), (NO_USERNS_LOCK, NO_EGRESS_NETWORK)
        if self.staging_dir is not None:
            yield replace(self, staging_dir=None, egress_network=False), (NO_EGRESS_NETWORK, NO_MOUNTS)
            yield (
                replace(self, layout=layout, staging_dir=None, egress_network=False),
                (NO_USERNS_LOCK, NO_EGRESS_NETWORK, NO_MOUNTS),
            )


BWRAP_MISSING = (
    "service.isolation is 'bwrap', but there is no bwrap on this machine. "
    'Install it (Debian, Ubuntu: apt-get install bubblewrap), or choose isolation = "none" '
    "(STEADYHAND_ISOLATION=none) if this machine or container is itself the sandbox."
)


def _loopback_ports(command: Command) -> tuple[int, ...]:
    return (PROXY_PORT, MODEL_PORT) if command.needs_model_port else (PROXY_PORT,)


def _overlay_mounts(checkout: Checkout, staging_dir: Path) -> list[Mount]:
    layers = checkout.layers
    if layers is None:
        return []
    disk: list[Mount] = []
    upper, work = layers.upper, layers.work
    if layers.image is not None:
        disk = [Mount("image", _DISK_MOUNT, layers.image, writable=True, change_owner=layers.change_owner)]
        upper, work = staging_dir / _DISK_MOUNT / upper, staging_dir / _DISK_MOUNT / work
    owner = None if layers.owner == checkout.uid else layers.owner
    tree = Mount(
        "overlay", _CHECKOUT_MOUNT, layers.lower,
        writable=True, owner=owner, upper=upper, work=work, middle=layers.refs,
    )  # fmt: skip
    return [*disk, tree]


def _joined_mount(checkout: Checkout, staging_dir: Path, name: str) -> Mount:
    """Return the mount that shows what the supervisor of another run has mounted by this name."""
    return Mount("joined", name, staging_dir / name, writable=True, holder=checkout.holder)


def _beside_others(program: Path, name: str) -> AgentProgram:
    """Return how a program is shown with its folder, or with the packages that it is one of."""
    path = program.resolve()
    if path.is_relative_to("/usr"):
        return AgentProgram(program, path, None)
    packages = [folder for folder in path.parents if folder.name == "node_modules"]
    folder = packages[-1] if packages else path.parent  # modules are looked for in each `node_modules` above
    shown = bwrap_args.PROGRAMS_DIR / name / folder.name
    return AgentProgram(program, shown / path.relative_to(folder), bwrap_args.BwrapBind(folder, shown))


def locate_program(cli: Path, name: str) -> AgentProgram:
    """Return how the agent's program is shown inside: alone by this name, or with its directory if it is a script."""
    resolved = cli.resolve()
    if resolved.is_relative_to("/usr"):
        return AgentProgram(cli, resolved, None)
    with resolved.open("rb") as file:
        is_script = file.read(2) == b"#!"
    if is_script:
        return AgentProgram(
            cli,
            bwrap_args.PROGRAMS_DIR / resolved.name,
            bwrap_args.BwrapBind(resolved.parent, bwrap_args.PROGRAMS_DIR),
        )
    sandbox_path = bwrap_args.PROGRAMS_DIR / name
    return AgentProgram(cli, sandbox_path, bwrap_args.BwrapBind(resolved, sandbox_path))


def root_links() -> tuple[tuple[str, str | None], ...]:
    """Return the entries like `/bin` of this machine: links into `/usr`, or directories."""
    links: list[tuple[str, str | None]] = []
    for name in _USR_LINKS:
        path = Path("/") / name
        if path.is_symlink():
            links.append((str(path), str(path.readlink())))
        elif path.is_dir():
            links.append((str(path), None))
    return tuple(links)


def find_secret_owners(secrets: Iterable[str]) -> dict[Path, int]:
    """Return the owner of each of these files that not every user may read; a missing file is left out."""
    found = {}
    for name in secrets:
        try:
            info = Path(name).stat()
        except OSError:
            continue
        if not info.st_mode & 0o004:
            found[Path(name)] = info.st_uid
    return found


def _find_resolv_conf() -> Path | None:
    try:
        return Path("/etc/resolv.conf").resolve(strict=True)
    except OSError:
        return None


def has_seccomp_filter() -> bool:
    """Return True if system calls can be filtered on this kind of machine."""
    return bool(seccomp.build_filter())
