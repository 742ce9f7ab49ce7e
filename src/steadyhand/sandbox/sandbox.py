"""The boundary around an agent: none at all, or bwrap's namespaces with everything that belongs to them."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from steadyhand.agents import Agent
from steadyhand.errors import ConfigError, SpawnError
from steadyhand.ports import SOCKET_VARIABLE, Bind, Ceiling, Command, Mounted, Place, Seal, View
from steadyhand.sandbox import bwrap_args, seccomp

SOCKET = bwrap_args.SERVICE / "model.sock"
PROXY_PORT = 3128
"""Where the service's way to other hosts listens inside, on loopback."""
_PROXY = f"http://127.0.0.1:{PROXY_PORT}"
_DIRECT = "localhost,127.0.0.1,::1"
PROXIES = {
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), _PROXY),
    "no_proxy": _DIRECT,
    "NO_PROXY": _DIRECT,
    "NODE_USE_ENV_PROXY": "1",
}
"""By which programs find the service's way out; it is told of what it refuses."""
OPEN_FILES = 16_384
FILE_BYTES = 8 * 1024**3
"""The largest file of an agent whose disk has no limit."""
ALONE = ("host",)
"""The egress that is no list: it shares this machine's network."""

_ARGUMENTS, _FILTER = 10, 11
"""The descriptors on which bwrap reads its options and the filter."""
_STAGED_TREE, _STAGED_DISK = "tree", "disk"
_LINKED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


class NoSandbox:
    """Level `none`: the agent runs with nothing around it but its own uid; the service warns at each start."""

    level: Literal["none", "bwrap"] = "none"

    def view(self, place: Place) -> View:
        """Give the folders as they lie on this machine."""
        return place.plain_view

    def checkout(self, place: Place) -> Path:
        """Give it as it lies on this machine."""
        return place.directory

    def wrap(self, command: Command, place: Place, agent: Agent) -> Command:  # noqa: ARG002  # the port's signature
        """Give the command back as it is."""
        return command


@dataclass(frozen=True, slots=True)
class Program:
    """The agent's program: `path` is how the runner calls it, `inside` how it is called in the sandbox.

    `bind` shows it there; null when it is below `/usr`, which is seen anyway.
    """

    path: Path
    inside: Path
    bind: bwrap_args.Shown | None


@dataclass(frozen=True, slots=True)
class Most:
    """What an agent may take of the machine when its profile does not say; null is no limit."""

    memory_bytes: int | None = None
    processes: int | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Weaker:
    """What this machine does not let us have though agents are sealed off, and what that means for them."""

    missing: str
    meaning: str

    def __str__(self) -> str:
        return f"without {self.missing}: {self.meaning}"


NO_LOCK = Weaker(
    "bwrap's lock on user namespaces (--disable-userns)",
    "the filter of system calls alone keeps agents from making namespaces",
)
NO_DOORS = Weaker(
    "a network of the run's own that the service can listen in",
    "agents reach the model and nothing else; no host of an egress list can be reached",
)
NO_STAGE = Weaker(
    "mounts made for each run (the service is root and may not mount)",
    "agents see secret files only where their user can read them",
)


@dataclass(frozen=True, slots=True)
class BwrapSandbox:
    """Level `bwrap`. Made by `on_this_machine`; its verbs look at nothing but what is in it.

    `stage` is where a service that is root has the run's mounts made; without it bwrap binds what lies on this
    machine. `owners` says to whom secret files belong that agents' users cannot read by themselves.
    """

    bwrap: Path
    program: Program
    frame: bwrap_args.Frame
    etc: Path
    sockets: Path
    """The folder with a folder for each slot, which holds the slot's socket to the model."""
    stage: Path | None
    owners: Mapping[Path, int] = field(default_factory=dict)
    most: Most = field(default_factory=Most)
    doors: bool = True
    """Whether the supervisor gives a run a network where the service listens; else bwrap makes an empty one."""
    resolver: Path | None = None
    """This machine's own `resolv.conf`, for agents that share its network."""
    level: Literal["none", "bwrap"] = "bwrap"

    def view(self, place: Place) -> View:  # noqa: ARG002  # the port's signature
        """Give the folders as they are inside: the same for every job."""
        return View(bwrap_args.WORKSPACE, bwrap_args.HOME, bwrap_args.CONFIG)

    def checkout(self, place: Place) -> Path:
        """Give where its layers are mounted for this run, or where it lies when it has none."""
        return place.directory if place.layers is None or self.stage is None else self.stage / _STAGED_TREE

    def wrap(self, command: Command, place: Place, agent: Agent) -> Command:
        """Give bwrap's command line and its seal. Raises `SpawnError` for what cannot be an argument."""
        shares_network = agent.egress == ALONE
        binds = self._binds(command, place, agent, shares_network=shares_network)
        shown, mounts = self._shown(place, binds)
        argv = list(command.argv)
        if argv and argv[0] == str(self.program.path):
            argv[0] = str(self.program.inside)
        if any("\0" in word for word in argv):
            raise SpawnError("A value for the agent's command line holds a NUL byte.", retryable=False)
        filter_ = seccomp.program()
        empty_network = not self.doors and not shares_network
        ports = None if shares_network or empty_network else (PROXY_PORT,)
        env = command.env if ports is None else {**PROXIES, **command.env}
        words = bwrap_args.options(
            self.frame,
            shown,
            env,
            own_network=empty_network,
            filter_from=_FILTER if filter_ else None,
        )
        inputs = {_ARGUMENTS: bwrap_args.encoded(words)} | ({_FILTER: filter_} if filter_ else {})
        seal = Seal(
            stage=self.stage,
            mounts=tuple(mounts),
            inputs=inputs,
            ceiling=self.ceiling(agent),
            ports=ports,
        )
        outside = [str(self.bwrap), "--args", str(_ARGUMENTS), "--", *argv]
        return Command(outside, {}, Path("/"), command.user, seal)

    def ceiling(self, agent: Agent) -> Ceiling:
        """Give the most that a run of this agent may take."""
        disk = agent.disk_bytes or self.most.disk_bytes
        return Ceiling(
            memory=agent.memory_bytes or self.most.memory_bytes,
            processes=agent.processes or self.most.processes,
            open_files=OPEN_FILES,
            file_size=FILE_BYTES if disk is None else min(disk, FILE_BYTES),
        )

    def _shown(self, place: Place, binds: list[Bind]) -> tuple[list[bwrap_args.Shown], list[Mounted]]:
        """Give what the agent sees, and the mounts that have to be made for it first (none without a stage)."""
        if self.stage is None:
            return [bwrap_args.Shown(each.source, each.at, each.writable) for each in binds], []
        mounts, shown = [], []
        if place.layers is not None:
            mounts += _layered(place, self.stage)
            shown.append(bwrap_args.Shown(self.stage / _STAGED_TREE, bwrap_args.WORKSPACE, writable=True))
        limited = place.layers is not None and place.layers.image is not None
        for number, each in enumerate(binds):
            name = f"b{number}"
            if limited and each.at == bwrap_args.HOME:
                # What fills the home counts against the disk limit like what fills the checkout.
                disk = self.stage / _STAGED_DISK
                upper, work = disk / "home", disk / "home-work"
                mounts.append(Mounted("overlay", name, each.source, writable=True, upper=upper, work=work))
            else:
                mounts.append(Mounted("bind", name, each.source, writable=each.writable, owner=each.owner))
            shown.append(bwrap_args.Shown(self.stage / name, each.at, each.writable))
        return shown, mounts

    def _binds(self, command: Command, place: Place, agent: Agent, *, shares_network: bool) -> list[Bind]:
        # In place in the classic profile the home would be the service's own, which no sealed agent sees.
        home = place.home if place.config is not None else place.files.home
        config = place.config or place.files.config
        binds = [
            Bind(self.etc, Path("/etc")),
            Bind(home, bwrap_args.HOME, writable=True),
            Bind(config, bwrap_args.CONFIG, writable=True),
        ]
        if place.layers is None or self.stage is None:
            binds.append(Bind(place.directory, bwrap_args.WORKSPACE, writable=True))
        if SOCKET_VARIABLE in command.env:  # an errand knows nothing of the model and has no way to it
            binds.append(Bind(self.sockets / f"slot-{place.slot}", bwrap_args.SERVICE))
        if self.program.bind is not None:
            binds.append(Bind(self.program.bind.source, self.program.bind.at))
        if shares_network and self.resolver is not None:
            binds.append(Bind(self.resolver, Path("/etc/resolv.conf")))
        binds += [Bind(Path(name), Path(name), owner=self.owners.get(Path(name))) for name in agent.secrets]
        return [*binds, *place.binds]

    # --- made at the start -----------------------------------------------------------------

    @classmethod
    def on_this_machine(
        cls,
        data_dir: Path,
        cli: Path,
        *,
        etc: Path,
        secrets: Iterable[str] = (),
        most: Most | None = None,
        search: str | None = None,
    ) -> "BwrapSandbox":
        """Look at this machine once. Raises `ConfigError` when bwrap is not installed."""
        found = shutil.which("bwrap", path=search)
        if found is None:
            raise ConfigError(NO_BWRAP)
        root = os.geteuid() == 0
        return cls(
            bwrap=Path(found).absolute(),
            program=program_of(cli),
            frame=bwrap_args.Frame(root_links()),
            etc=etc,
            sockets=data_dir / "run",
            stage=data_dir / "stage" if root else None,
            owners=owners_of(secrets) if root else {},
            most=most or Most(),
            resolver=_resolver(),
        )

    def lesser(self) -> Iterator[tuple["BwrapSandbox", tuple[Weaker, ...]]]:
        """Give what can be had where this cannot, best first, and what is then missing.

        Never missing are the agent's own user (when the service is root), its namespaces, the filter of system calls,
        the read-only root and the cleared environment.
        """
        unlocked = replace(self.frame, disable_userns=False)
        yield replace(self, frame=unlocked), (NO_LOCK,)
        yield replace(self, doors=False), (NO_DOORS,)
        yield replace(self, frame=unlocked, doors=False), (NO_LOCK, NO_DOORS)
        if self.stage is not None:
            yield replace(self, stage=None, doors=False), (NO_DOORS, NO_STAGE)
            yield replace(self, frame=unlocked, stage=None, doors=False), (NO_LOCK, NO_DOORS, NO_STAGE)


NO_BWRAP = (
    "service.isolation is 'bwrap', but there is no bwrap on this machine. "
    'Install it (Debian, Ubuntu: apt-get install bubblewrap), or choose isolation = "none" '
    "(STEADYHAND_ISOLATION=none) if this machine or container is itself the sandbox."
)


def _layered(place: Place, stage: Path) -> list[Mounted]:
    layers = place.layers
    if layers is None:
        return []
    disk: list[Mounted] = []
    upper, work = layers.upper, layers.work
    if layers.image is not None:
        disk = [Mounted("image", _STAGED_DISK, layers.image, writable=True, hand_over=layers.hand_over)]
        upper, work = stage / _STAGED_DISK / upper, stage / _STAGED_DISK / work
    owner = None if layers.owner == place.user else layers.owner
    tree = Mounted("overlay", _STAGED_TREE, layers.lower, writable=True, owner=owner, upper=upper, work=work)
    return [*disk, tree]


def program_of(cli: Path) -> Program:
    """Say how the agent's program is shown inside: by itself, or with its folder when it is a script."""
    real = cli.resolve()
    if real.is_relative_to("/usr"):
        return Program(cli, real, None)
    with real.open("rb") as file:
        is_script = file.read(2) == b"#!"
    if is_script:
        return Program(
            cli, bwrap_args.PROGRAMS / real.name, bwrap_args.Shown(real.parent, bwrap_args.PROGRAMS)
        )
    inside = bwrap_args.PROGRAMS / "claude"
    return Program(cli, inside, bwrap_args.Shown(real, inside))


def root_links() -> tuple[tuple[str, str | None], ...]:
    """Give the likes of `/bin` as this machine has them: links into `/usr`, or folders."""
    links: list[tuple[str, str | None]] = []
    for name in _LINKED:
        path = Path("/") / name
        if path.is_symlink():
            links.append((str(path), str(path.readlink())))
        elif path.is_dir():
            links.append((str(path), None))
    return tuple(links)


def owners_of(secrets: Iterable[str]) -> dict[Path, int]:
    """Give who owns each of these files that not every user may read; one that is not there is left out."""
    owners = {}
    for name in secrets:
        try:
            about = Path(name).stat()
        except OSError:
            continue
        if not about.st_mode & 0o004:
            owners[Path(name)] = about.st_uid
    return owners


def _resolver() -> Path | None:
    try:
        return Path("/etc/resolv.conf").resolve(strict=True)
    except OSError:
        return None


def filters() -> bool:
    """Say whether system calls are filtered on this kind of machine."""
    return bool(seccomp.program())
