"""The level of isolation, chosen once at the start: tried on this machine, refused when it is not to be had."""

import asyncio
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from steadyhand.agents import Agent, Catalogue, Workspace
from steadyhand.config.settings import LOOPBACK, Settings
from steadyhand.errors import ConfigError
from steadyhand.gateway import Rules
from steadyhand.ports import Check, Command, JobFiles, Layers, Place, Sandbox
from steadyhand.runner.process.cgroups import groups
from steadyhand.runner.process.trial_run import try_command
from steadyhand.sandbox.etc_dir import make_etc
from steadyhand.sandbox.sandbox import ALONE, BwrapSandbox, Most, NoSandbox, Weaker, filters
from steadyhand.workspace.disk_images import DiskImages
from steadyhand.workspace.doctor import closed_ancestor
from steadyhand.workspace.filesystem import PRIVATE, TRAVERSABLE, make_folder

CHOICE = (
    'Or choose isolation = "none" (STEADYHAND_ISOLATION=none) if this machine or container is itself the sandbox: '
    "agents can then read and change whatever their user can."
)
_NAMESPACES = ("ipc", "mnt", "net", "pid", "user", "uts")
_MARK = "made-inside"
_ESSENTIAL = f"""
fail() {{ echo "$1" >&2; exit 1; }}
while read -r name value; do
    case $name in Seccomp:) filter=$value ;; NoNewPrivs:) stays=$value ;; CapEff:) may=$value ;; esac
done < /proc/self/status
[ "$filter" = 2 ] || fail "system calls are not filtered inside"
[ "$stays$may" = 10000000000000000 ] || fail "it has rights of its own inside, or may gain some"
for name in {" ".join(_NAMESPACES)}; do
    [ "$(readlink "/proc/self/ns/$name")" != "$1" ] || fail "it has no $name namespace of its own"
    shift
done
while read -r _ at _ options _; do
    case "$at $options" in "/ rw"* | "/usr rw"* | "/etc rw"*) fail "it can write to $at" ;; esac
done < /proc/self/mounts
: > {_MARK}
"""
"""What has to hold whatever else is missing, looked at from inside; the words are the service's own namespaces."""
_LAYERED = ["/bin/sh", "-c", "cat folder/below && echo x > folder/below && mv folder moved"]


@dataclass(frozen=True, slots=True)
class Level:
    """What keeps agents apart here. `overlay` says whether checkouts can be laid over warm ones."""

    sandbox: Sandbox
    overlay: bool = False
    weaker: tuple[Weaker, ...] = ()
    """What this machine does not let us have, though agents are sealed."""
    no_overlay: str | None = None
    """Why checkouts are not laid over warm ones."""
    shares: bool = False
    """Whether agents can be shown the objects of a mirror, read-only: then a checkout without overlay is a clone."""

    @property
    def sealed(self) -> bool:
        """Whether there is a boundary at all."""
        return self.sandbox.level != "none"


UNSEALED = Level(NoSandbox())


async def level_of(settings: Settings, cli: Path, *, etc_in: Path | None = None) -> Level:
    """Give the level that was asked for. Raises `ConfigError` with a remedy when it is not to be had.

    `etc_in` is where the sandbox's `/etc` is made, the data directory unless told otherwise.
    """
    if settings.tables.service.isolation == "none":
        return UNSEALED
    for agent in settings.catalogue().agents.values():
        Rules.of(agent.egress)
    for workspace in settings.catalogue().workspaces.values():
        Rules.of(workspace.setup_egress)
    if not filters():
        raise ConfigError(no_filter(platform.machine()))
    user = settings.tables.service.agent_uid_base if os.geteuid() == 0 else None
    closed = await asyncio.to_thread(closed_ancestor, settings.data_dir, user)
    if closed is not None:
        raise ConfigError(closed_off(closed, user))
    secrets = secrets_of(settings.catalogue())
    try:
        etc = await asyncio.to_thread(
            make_etc, etc_in or settings.data_dir, stand_ins=[Path(name) for name in secrets]
        )
        make_folder(settings.data_dir / "stage", TRAVERSABLE)
    except OSError as error:
        raise ConfigError(f"The sandbox's own /etc cannot be made: {error.strerror}.") from error
    defaults = settings.tables.defaults
    best = BwrapSandbox.on_this_machine(
        settings.data_dir,
        cli,
        etc=etc,
        secrets=secrets,
        most=Most(defaults.memory, defaults.processes, defaults.disk),
        search=settings.path,
    )
    with _trial(settings) as place:
        sandbox, weaker = await _first_that_works(best, place)
        no_overlay = await _why_no_overlay(sandbox, place, settings)
    weaker += tuple(_weaker_here(disks=no_overlay is None and DiskImages.can_be_had()))
    # Not root, the agents' user is the service's; root without mounts cannot show them what is its own.
    shares = os.geteuid() != 0 or sandbox.stage is not None
    return Level(sandbox, no_overlay is None, weaker, no_overlay, shares)


async def _first_that_works(best: BwrapSandbox, place: Place) -> tuple[BwrapSandbox, tuple[Weaker, ...]]:
    reason = await _why_not(best, place)
    if reason is None:
        return best, ()
    for lesser, weaker in best.lesser():
        if await _why_not(lesser, place) is None:
            first = Weaker(f"{weaker[0].missing} ({reason.strip().removesuffix('.')})", weaker[0].meaning)
            return lesser, (first, *weaker[1:])
    raise ConfigError(refusal(reason, facts()))


async def _why_not(sandbox: BwrapSandbox, place: Place) -> str | None:
    """Say why agents cannot be sealed off like this; null when they can, and what is essential was seen to hold."""
    reason = await try_command(_command(sandbox, place, _probe(place)))
    if reason is None and not _made_by_agent(place):
        return "its user is not the agents' own outside of the sandbox"
    return reason


def _probe(place: Place) -> Sequence[str]:
    (place.directory / _MARK).unlink(missing_ok=True)
    ours = [str(Path("/proc/self/ns", name).readlink()) for name in _NAMESPACES]
    return ["/bin/sh", "-c", _ESSENTIAL, "sh", *ours]


def _made_by_agent(place: Place) -> bool:
    return place.user is None or (place.directory / _MARK).stat().st_uid == place.user


def _weaker_here(*, disks: bool) -> Iterator[Weaker]:
    """Say what is missing beside the sandbox itself."""
    if os.geteuid() != 0:
        yield Weaker(
            "root",
            "to this machine all agents are the service's own user, and what keeps them apart is the sandbox alone",
        )
    held = groups()
    if held.memory is None or held.processes is None:
        yield Weaker(
            "control groups for memory and processes",
            "memory is summed up twice a second and may pass its limit for a moment; processes are counted by user",
        )
    if not disks:
        yield Weaker(
            "disks of a fixed size (root, overlays, loop devices and mkfs.ext4)",
            "a disk limit holds for each file of an agent and not for all of them together",
        )


async def _why_no_overlay(sandbox: BwrapSandbox, place: Place, settings: Settings) -> str | None:
    if place.user is None:
        return "the service is not root"
    if sandbox.stage is None:
        return "the service may not mount"
    root = place.files.root
    owner = settings.tables.service.agent_uid_base - 1
    lower, upper, work = (root / name for name in ("lower", "upper", "work"))
    for folder, user in ((lower, owner), (lower / "folder", owner), (upper, place.user), (work, place.user)):
        make_folder(folder, PRIVATE, user)
    (lower / "folder" / "below").write_text("below", "ascii")
    os.chown(lower / "folder" / "below", owner, owner)
    layered = Place(
        place.workspace, place.files, place.directory, place.home, place.config, place.user, None,
        layers=Layers(lower, upper, work, owner),
    )  # fmt: skip
    return await try_command(_command(sandbox, layered, _LAYERED))


def _command(sandbox: BwrapSandbox, place: Place, argv: Sequence[str]) -> Command:
    inner = Command(argv, {"PATH": "/usr/bin:/bin"}, sandbox.view(place).directory, place.user)
    return sandbox.wrap(inner, place, Agent("probe"))


@contextmanager
def _trial(settings: Settings) -> Iterator[Place]:
    """Make a place to try the sandbox in, and remove it."""
    user = settings.tables.service.agent_uid_base if os.geteuid() == 0 else None
    files = JobFiles(settings.data_dir / f"probe-{os.getpid()}")
    try:
        make_folder(files.root, TRAVERSABLE)
        for folder in (files.checkout, files.home, files.config):
            make_folder(folder, PRIVATE, user)
        yield Place(Workspace("probe"), files, files.checkout, files.home, files.config, user, None)
    finally:
        shutil.rmtree(files.root, ignore_errors=True)


def secrets_of(catalogue: Catalogue) -> list[str]:
    """Give every secret file that an agent or a setup is granted."""
    found = [name for agent in catalogue.agents.values() for name in agent.secrets]
    found += [name for workspace in catalogue.workspaces.values() for name in workspace.setup_secrets]
    return sorted(set(found))


# --- what to say -------------------------------------------------------------------------------


def facts() -> Mapping[str, str]:
    """Read what decides on this machine whether users may make namespaces; what is not there is left out."""
    found = {}
    for name in (
        "kernel/unprivileged_userns_clone",
        "kernel/apparmor_restrict_unprivileged_userns",
        "user/max_user_namespaces",
    ):
        try:
            found[name] = Path("/proc/sys", name).read_text("ascii").strip()
        except OSError:
            continue
    marks = [Path("/.dockerenv"), Path("/run/.containerenv"), Path("/var/run/secrets/kubernetes.io")]
    if any(mark.exists() for mark in marks):
        found["container"] = "yes"
    return found


def refusal(reason: str, found: Mapping[str, str]) -> str:
    """Say that the sandbox is not to be had, why, and what to do about it."""
    remedies = []
    if found.get("kernel/unprivileged_userns_clone") == "0":
        remedies.append("sysctl -w kernel.unprivileged_userns_clone=1")
    if found.get("user/max_user_namespaces") in {"0", "1"}:
        remedies.append("sysctl -w user.max_user_namespaces=10000")
    if found.get("kernel/apparmor_restrict_unprivileged_userns") == "1":
        remedies.append(
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (or an AppArmor profile for bwrap with `userns,`)"
        )
    if "container" in found or "mount proc" in reason:
        remedies.append(
            "in a container: --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
            "--security-opt systempaths=unconfined (compose.yaml has them); as root also --cap-add SYS_ADMIN"
        )
    if not remedies:
        remedies.append(
            "let this user make user namespaces: bwrap --unshare-user --ro-bind / / true must work"
        )
    what = "".join(f"\n  - {remedy}" for remedy in remedies)
    return (
        f"Agents cannot be sealed off here (isolation 'bwrap'): {reason.strip().removesuffix('.')}.\n"
        f"What may help:{what}\n{CHOICE}"
    )


def no_filter(machine: str) -> str:
    """Say that no sandbox is to be had on this kind of machine, and what to do about it."""
    return (
        f"Agents cannot be sealed off here (isolation 'bwrap'): no filter of system calls is known for {machine}.\n"
        f"What may help:\n  - a machine of x86_64 or aarch64\n{CHOICE}"
    )


def closed_off(folder: Path, user: int | None) -> str:
    """Say that agents cannot come to what is theirs in the data directory, and what to do about it."""
    return (
        f"Agents cannot be sealed off here (isolation 'bwrap'): their user ({user}) may not pass through {folder} "
        f"to the data directory.\nWhat may help:\n  - chmod o+x {folder}\n"
        f"  - a data directory elsewhere (--data-dir, STEADYHAND_DATA_DIR)\n{CHOICE}"
    )


def announce(settings: Settings, level: Level) -> None:
    """Say in the log how agents are kept apart, and loudly where they are not."""
    log = structlog.get_logger("steadyhand")
    if not level.sealed:
        log.warning(
            "isolation.none",
            meaning="agents can read and change whatever their user can; run only what you trust",
        )
        if settings.tables.server.host not in LOOPBACK:
            log.warning(
                "isolation.none.exposed",
                host=settings.tables.server.host,
                meaning="whoever reaches this address and holds a key that may submit can do the same",
            )
        return
    log.info("isolation.bwrap", limits=groups().detail, checkouts=how_checkouts_are_made(level))
    for each in level.weaker:
        log.warning("isolation.partly", missing=each.missing, meaning=each.meaning)
    for who in sharing_network(settings.catalogue()):
        log.warning(
            "egress.host", who=who, meaning="shares the network of this machine, its loopback included"
        )


def how_checkouts_are_made(level: Level) -> str:
    """Say which way was chosen, and why not a better one."""
    if level.overlay:
        return "laid over a warm checkout of their commit (overlay)"
    how = "clones that share the mirror's objects" if level.shares else "clones with a copy of all objects"
    return f"{how}, as there is no overlay: {level.no_overlay}"


def sharing_network(catalogue: Catalogue) -> list[str]:
    """Give the agents, and the workspaces' setups, whose egress is this machine's network."""
    found = [f"agent {name}" for name, agent in catalogue.agents.items() if agent.egress == ALONE]
    found += [f"setup of {name}" for name, each in catalogue.workspaces.items() if each.setup_egress == ALONE]
    return sorted(found)


# --- doctor ------------------------------------------------------------------------------------


async def checks(settings: Settings, cli: Path) -> list[Check]:
    """Try the level that is asked for, and say what agents are granted beside their checkout."""
    granted = list(_granted(settings.catalogue()))
    if settings.tables.service.isolation == "none":
        detail = "none: an agent can do what its uid can do on this machine, its network included"
        return [Check("isolation", ok=True, detail=detail), *granted]
    trial = settings.data_dir / f"doctor-{os.getpid()}"
    try:
        make_folder(trial, TRAVERSABLE)
        level = await level_of(settings, cli, etc_in=trial)
    except ConfigError as error:
        first, _, rest = error.detail.partition("\n")
        return [Check("isolation", ok=False, detail=first, remedy=rest or CHOICE), *granted]
    except OSError as error:
        return [Check("isolation", ok=False, detail=f"{error.strerror}: {trial}", remedy=CHOICE), *granted]
    finally:
        await asyncio.to_thread(shutil.rmtree, trial, ignore_errors=True)
    detail = "bwrap: tried, an agent is sealed off; system calls filtered"
    found = [Check("isolation", ok=True, detail=detail)]
    found += [Check("isolation, in part", ok=True, detail=str(each)) for each in level.weaker]
    found.append(Check("limits", ok=True, detail=groups().detail))
    found.append(Check("checkouts", ok=True, detail=how_checkouts_are_made(level)))
    return [*found, *granted]


def _granted(catalogue: Catalogue) -> Iterator[Check]:
    for name, agent in sorted(catalogue.agents.items()):
        parts = [*_named("environment", sorted(agent.env)), *_named("secrets", agent.secrets)]
        parts += _named("egress", agent.egress)
        yield from _grant(f"agent {name}", parts, agent.secrets)
    for name, workspace in sorted(catalogue.workspaces.items()):
        parts = [
            *_named("setup secrets", workspace.setup_secrets),
            *_named("setup egress", workspace.setup_egress),
            *_named("shared caches", workspace.caches),
        ]
        yield from _grant(f"workspace {name} grants", parts, workspace.setup_secrets)


def _named(what: str, names: Iterable[str]) -> list[str]:
    text = ", ".join(names)
    return [f"{what}: {text}"] if text else []


def _grant(name: str, parts: Sequence[str], secrets: Iterable[str]) -> Iterator[Check]:
    if not parts:
        return
    lost = [path for path in secrets if not Path(path).exists()]
    remedy = f"put {', '.join(lost)} there, or take it out of the configuration" if lost else None
    yield Check(name, ok=not lost, detail="; ".join(parts), remedy=remedy)
