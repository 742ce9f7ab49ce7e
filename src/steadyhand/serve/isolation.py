"""The level of isolation: chosen once at the start and tried on this machine. The service stops if it fails."""

import asyncio
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from steadyhand.agents import Agent, Catalog, Workspace
from steadyhand.config.settings import LOOPBACK, Settings
from steadyhand.errors import ConfigError
from steadyhand.gateway import EgressRules
from steadyhand.ports import Checkout, Command, DoctorCheck, JobPaths, OverlayLayers, Sandbox
from steadyhand.runner.claude import install
from steadyhand.runner.process.cgroups import detect_cgroups
from steadyhand.runner.process.trial_run import try_command
from steadyhand.sandbox.etc_dir import make_etc
from steadyhand.sandbox.sandbox import (
    HOST_NETWORK_ONLY,
    BwrapSandbox,
    DefaultLimits,
    Degradation,
    NoSandbox,
    has_seccomp_filter,
)
from steadyhand.workspace.disk_images import DiskImages
from steadyhand.workspace.doctor import closed_ancestor
from steadyhand.workspace.filesystem import PRIVATE, TRAVERSABLE, make_dir

OPT_OUT_HINT = (
    'Or choose isolation = "none" (STEADYHAND_ISOLATION=none) if this machine or container is itself the sandbox: '
    "agents can then read and change whatever their user can."
)
_NAMESPACES = ("ipc", "mnt", "net", "pid", "user", "uts")
_MARKER_FILE = "made-inside"
_PROBE_SCRIPT = f"""
fail() {{ echo "$1" >&2; exit 1; }}
while read -r name value; do
    case $name in Seccomp:) filter=$value ;; NoNewPrivs:) stays=$value ;; CapEff:) may=$value ;; esac
done < /proc/self/status
[ "$filter" = 2 ] || fail "system calls are not filtered inside"
[ "$stays$may" = 10000000000000000 ] || fail "it has capabilities inside, or can gain some"
for name in {" ".join(_NAMESPACES)}; do
    [ "$(readlink "/proc/self/ns/$name")" != "$1" ] || fail "it has no $name namespace of its own"
    shift
done
while read -r _ at _ options _; do
    case "$at $options" in "/ rw"* | "/usr rw"* | "/etc rw"*) fail "it can write to $at" ;; esac
done < /proc/self/mounts
: > {_MARKER_FILE}
"""
"""The essential protections, checked from inside; the arguments are the service's own namespaces."""
_OVERLAY_PROBE = ["/bin/sh", "-c", "cat folder/below && echo x > folder/below && mv folder moved"]


@dataclass(frozen=True, slots=True)
class IsolationLevel:
    """The isolation of agents on this machine. `overlay` is set if checkouts can be overlays over warm ones."""

    sandbox: Sandbox
    overlay: bool = False
    missing_protections: tuple[Degradation, ...] = ()
    """Protections that this machine does not offer, although agents run in the sandbox."""
    no_overlay_reason: str | None = None
    """The reason why checkouts are not overlays over warm ones."""
    shares_objects: bool = False
    """True if agents can read a mirror's objects; then a checkout without an overlay is a clone that shares them."""

    @property
    def is_sandboxed(self) -> bool:
        """True if agents run in a sandbox."""
        return self.sandbox.level != "none"


NO_ISOLATION = IsolationLevel(NoSandbox())


async def choose_level(settings: Settings, cli: Path, *, etc_in: Path | None = None) -> IsolationLevel:
    """Return the level of the settings. Raise `ConfigError` with a remedy if this machine cannot offer it.

    `etc_in` is the parent of the sandbox's `/etc`; by default it is the data directory.
    """
    if settings.tables.service.isolation == "none":
        return NO_ISOLATION
    for agent in settings.build_catalog().agents.values():
        EgressRules.parse(agent.egress)
    for workspace in settings.build_catalog().workspaces.values():
        EgressRules.parse(workspace.setup_egress)
    if not has_seccomp_filter():
        raise ConfigError(no_seccomp_message(platform.machine()))
    uid = settings.tables.service.agent_uid_base if os.geteuid() == 0 else None
    closed_directory = await asyncio.to_thread(closed_ancestor, settings.data_dir, uid)
    if closed_directory is not None:
        raise ConfigError(data_dir_unreachable_message(closed_directory, uid))
    secrets = granted_secret_files(settings.build_catalog())
    try:
        etc = await asyncio.to_thread(
            make_etc, etc_in or settings.data_dir, placeholders=[Path(name) for name in secrets]
        )
        make_dir(settings.data_dir / "stage", TRAVERSABLE)
    except OSError as error:
        raise ConfigError(f"The sandbox's own /etc cannot be created: {error.strerror}.") from error
    defaults = settings.tables.defaults
    strictest = BwrapSandbox.detect(
        settings.data_dir,
        cli,
        program_name=install.PROGRAM_NAME,
        config_dir_name=install.CONFIG_DIR_NAME,
        etc_dir=etc,
        secrets=secrets,
        default_limits=DefaultLimits(defaults.memory, defaults.processes, defaults.disk),
        search_path=settings.path,
    )
    with _trial_checkout(settings) as trial_checkout:
        sandbox, missing_protections = await _first_working_sandbox(strictest, trial_checkout)
        no_overlay_reason = await _overlay_failure_reason(sandbox, trial_checkout, settings)
    missing_protections += tuple(
        _missing_protections(disk_images=no_overlay_reason is None and DiskImages.is_supported())
    )
    # Without root, agents run as the service's user; root without mounts cannot show them its own files.
    shares_objects = os.geteuid() != 0 or sandbox.staging_dir is not None
    return IsolationLevel(
        sandbox, no_overlay_reason is None, missing_protections, no_overlay_reason, shares_objects
    )


async def _first_working_sandbox(
    strictest: BwrapSandbox, trial_checkout: Checkout
) -> tuple[BwrapSandbox, tuple[Degradation, ...]]:
    reason = await _failure_reason(strictest, trial_checkout)
    if reason is None:
        return strictest, ()
    for weaker_sandbox, missing_protections in strictest.fallbacks():
        if await _failure_reason(weaker_sandbox, trial_checkout) is None:
            first_missing = Degradation(
                f"{missing_protections[0].missing} ({reason.strip().removesuffix('.')})",
                missing_protections[0].consequence,
            )
            return weaker_sandbox, (first_missing, *missing_protections[1:])
    raise ConfigError(sandbox_unavailable_message(reason, read_kernel_settings()))


async def _failure_reason(sandbox: BwrapSandbox, trial_checkout: Checkout) -> str | None:
    """Return the reason why this sandbox fails; `None` if it starts and the essential protections hold in it."""
    reason = await try_command(_wrap_command(sandbox, trial_checkout, _probe_command(trial_checkout)))
    if reason is None and not _marker_owned_by_agent(trial_checkout):
        return "its user is not the agents' own outside of the sandbox"
    return reason


def _probe_command(trial_checkout: Checkout) -> Sequence[str]:
    (trial_checkout.directory / _MARKER_FILE).unlink(missing_ok=True)
    ours = [str(Path("/proc/self/ns", name).readlink()) for name in _NAMESPACES]
    return ["/bin/sh", "-c", _PROBE_SCRIPT, "sh", *ours]


def _marker_owned_by_agent(trial_checkout: Checkout) -> bool:
    return (
        trial_checkout.uid is None
        or (trial_checkout.directory / _MARKER_FILE).stat().st_uid == trial_checkout.uid
    )


def _missing_protections(*, disk_images: bool) -> Iterator[Degradation]:
    """Yield the missing protections beside those of the sandbox itself."""
    if os.geteuid() != 0:
        yield Degradation(
            "root",
            "on this machine all agents run as the service's user, so only the sandbox keeps them apart",
        )
    cgroup_support = detect_cgroups()
    if cgroup_support.memory is None or cgroup_support.processes is None:
        yield Degradation(
            "control groups for memory and processes",
            "memory is summed up twice a second and may pass its limit for a moment; processes are counted by user",
        )
    if not disk_images:
        yield Degradation(
            "disks of a fixed size (root, overlays, loop devices and mkfs.ext4)",
            "a disk limit holds for each file of an agent and not for all of them together",
        )


async def _overlay_failure_reason(
    sandbox: BwrapSandbox, trial_checkout: Checkout, settings: Settings
) -> str | None:
    if trial_checkout.uid is None:
        return "the service is not root"
    if sandbox.staging_dir is None:
        return "the service may not mount"
    root = trial_checkout.paths.root
    owner = settings.tables.service.agent_uid_base - 1
    lower, upper, work = (root / name for name in ("lower", "upper", "work"))
    for directory, uid in (
        (lower, owner),
        (lower / "folder", owner),
        (upper, trial_checkout.uid),
        (work, trial_checkout.uid),
    ):
        make_dir(directory, PRIVATE, uid)
    (lower / "folder" / "below").write_text("below", "ascii")
    os.chown(lower / "folder" / "below", owner, owner)
    overlay_checkout = Checkout(
        trial_checkout.workspace,
        trial_checkout.paths,
        trial_checkout.directory,
        trial_checkout.home,
        trial_checkout.config_dir,
        trial_checkout.uid,
        None,
        layers=OverlayLayers(lower, upper, work, owner),
    )
    return await try_command(_wrap_command(sandbox, overlay_checkout, _OVERLAY_PROBE))


def _wrap_command(sandbox: BwrapSandbox, trial_checkout: Checkout, argv: Sequence[str]) -> Command:
    inner = Command(
        argv, {"PATH": "/usr/bin:/bin"}, sandbox.agent_paths(trial_checkout).directory, trial_checkout.uid
    )
    return sandbox.wrap(inner, trial_checkout, Agent("probe"))


@contextmanager
def _trial_checkout(settings: Settings) -> Iterator[Checkout]:
    """Create a checkout to try the sandbox in, and remove it after the block."""
    uid = settings.tables.service.agent_uid_base if os.geteuid() == 0 else None
    paths = JobPaths(settings.data_dir / f"probe-{os.getpid()}")
    try:
        make_dir(paths.root, TRAVERSABLE)
        for directory in (paths.checkout, paths.home, paths.config_dir):
            make_dir(directory, PRIVATE, uid)
        yield Checkout(Workspace("probe"), paths, paths.checkout, paths.home, paths.config_dir, uid, None)
    finally:
        shutil.rmtree(paths.root, ignore_errors=True)


def granted_secret_files(catalog: Catalog) -> list[str]:
    """Return every secret file that an agent or a setup may read."""
    names = [name for agent in catalog.agents.values() for name in agent.secrets]
    names += [name for workspace in catalog.workspaces.values() for name in workspace.setup_secrets]
    return sorted(set(names))


# --- messages ----------------------------------------------------------------------------------


def read_kernel_settings() -> Mapping[str, str]:
    """Return the kernel settings that decide if users may create namespaces, without those that do not exist."""
    values = {}
    for name in (
        "kernel/unprivileged_userns_clone",
        "kernel/apparmor_restrict_unprivileged_userns",
        "user/max_user_namespaces",
    ):
        try:
            values[name] = Path("/proc/sys", name).read_text("ascii").strip()
        except OSError:
            continue
    container_markers = [
        Path("/.dockerenv"),
        Path("/run/.containerenv"),
        Path("/var/run/secrets/kubernetes.io"),
    ]
    if any(marker.exists() for marker in container_markers):
        values["container"] = "yes"
    return values


def sandbox_unavailable_message(reason: str, kernel_settings: Mapping[str, str]) -> str:
    """Return the error text: the sandbox does not work, the reason, and the remedies."""
    remedies = []
    if kernel_settings.get("kernel/unprivileged_userns_clone") == "0":
        remedies.append("sysctl -w kernel.unprivileged_userns_clone=1")
    if kernel_settings.get("user/max_user_namespaces") in {"0", "1"}:
        remedies.append("sysctl -w user.max_user_namespaces=10000")
    if kernel_settings.get("kernel/apparmor_restrict_unprivileged_userns") == "1":
        remedies.append(
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (or an AppArmor profile for bwrap with `userns,`)"
        )
    if "container" in kernel_settings or "mount proc" in reason:
        remedies.append(
            "in a container: --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
            "--security-opt systempaths=unconfined (compose.yaml has them); as root also --cap-add SYS_ADMIN"
        )
    if not remedies:
        remedies.append(
            "allow this user to create user namespaces: bwrap --unshare-user --ro-bind / / true must work"
        )
    remedy_list = "".join(f"\n  - {remedy}" for remedy in remedies)
    return (
        f"Agents cannot run in a sandbox here (isolation 'bwrap'): {reason.strip().removesuffix('.')}.\n"
        f"What may help:{remedy_list}\n{OPT_OUT_HINT}"
    )


def no_seccomp_message(machine: str) -> str:
    """Return the error text: no system call filter exists for this kind of machine, and the remedies."""
    return (
        f"Agents cannot run in a sandbox here (isolation 'bwrap'): there is no system call filter for {machine}.\n"
        f"What may help:\n  - a machine of x86_64 or aarch64\n{OPT_OUT_HINT}"
    )


def data_dir_unreachable_message(directory: Path, uid: int | None) -> str:
    """Return the error text: agents cannot reach their part of the data directory, and the remedies."""
    return (
        f"Agents cannot run in a sandbox here (isolation 'bwrap'): their user ({uid}) cannot pass through {directory} "
        f"to the data directory.\nWhat may help:\n  - chmod o+x {directory}\n"
        f"  - a data directory elsewhere (--data-dir, STEADYHAND_DATA_DIR)\n{OPT_OUT_HINT}"
    )


def log_isolation(settings: Settings, level: IsolationLevel) -> None:
    """Log the level of isolation, with a warning for each missing protection."""
    log = structlog.get_logger("steadyhand")
    if not level.is_sandboxed:
        log.warning(
            "isolation.none",
            meaning="agents can read and change all that their user can; run only work that you trust",
        )
        if settings.tables.server.host not in LOOPBACK:
            log.warning(
                "isolation.none.exposed",
                host=settings.tables.server.host,
                meaning="each caller with a key that can submit jobs can do the same",
            )
        return
    log.info("isolation.bwrap", limits=detect_cgroups().description, checkouts=describe_checkouts(level))
    for protection in level.missing_protections:
        log.warning("isolation.partly", missing=protection.missing, meaning=protection.consequence)
    for who in host_network_users(settings.build_catalog()):
        log.warning(
            "egress.host", who=who, meaning="shares the network of this machine, its loopback included"
        )


def describe_checkouts(level: IsolationLevel) -> str:
    """Return the kind of checkouts in words, with the reason if there is no overlay."""
    if level.overlay:
        return "overlays over a warm checkout of their commit"
    how = (
        "clones that share the mirror's objects"
        if level.shares_objects
        else "clones with a copy of all objects"
    )
    return f"{how}, because overlays do not work: {level.no_overlay_reason}"


def host_network_users(catalog: Catalog) -> list[str]:
    """Return the agents and the setups of workspaces whose egress is this machine's network."""
    users = [f"agent {name}" for name, agent in catalog.agents.items() if agent.egress == HOST_NETWORK_ONLY]
    users += [
        f"setup of {name}"
        for name, each in catalog.workspaces.items()
        if each.setup_egress == HOST_NETWORK_ONLY
    ]
    return sorted(users)


# --- doctor ------------------------------------------------------------------------------------


async def check_isolation(settings: Settings, cli: Path) -> list[DoctorCheck]:
    """Try the level of the settings, and list the access that agents have beside their checkout."""
    grant_checks = list(_grant_checks(settings.build_catalog()))
    if settings.tables.service.isolation == "none":
        detail = "none: an agent can do what its uid can do on this machine, its network included"
        return [DoctorCheck("isolation", ok=True, detail=detail, warning=True), *grant_checks]
    trial_dir = settings.data_dir / f"doctor-{os.getpid()}"
    try:
        make_dir(trial_dir, TRAVERSABLE)
        level = await choose_level(settings, cli, etc_in=trial_dir)
    except ConfigError as error:
        summary, _, remedy = error.detail.partition("\n")
        return [
            DoctorCheck("isolation", ok=False, detail=summary, remedy=remedy or OPT_OUT_HINT),
            *grant_checks,
        ]
    except OSError as error:
        return [
            DoctorCheck("isolation", ok=False, detail=f"{error.strerror}: {trial_dir}", remedy=OPT_OUT_HINT),
            *grant_checks,
        ]
    finally:
        await asyncio.to_thread(shutil.rmtree, trial_dir, ignore_errors=True)
    detail = "bwrap: tried, agents run in a sandbox; system calls are filtered"
    results = [DoctorCheck("isolation", ok=True, detail=detail)]
    results += [
        DoctorCheck("isolation, in part", ok=True, detail=str(protection), warning=True)
        for protection in level.missing_protections
    ]
    cgroups = detect_cgroups()
    lacks_cgroups = cgroups.memory is None or cgroups.processes is None
    results.append(DoctorCheck("limits", ok=True, detail=cgroups.description, warning=lacks_cgroups))
    results.append(
        DoctorCheck("checkouts", ok=True, detail=describe_checkouts(level), warning=not level.overlay)
    )
    return [*results, *grant_checks]


def _grant_checks(catalog: Catalog) -> Iterator[DoctorCheck]:
    for name, agent in sorted(catalog.agents.items()):
        parts = [*_labelled("environment", sorted(agent.env)), *_labelled("secrets", agent.secrets)]
        parts += _labelled("egress", agent.egress)
        yield from _grant_check(f"agent {name}", parts, agent.secrets)
    for name, workspace in sorted(catalog.workspaces.items()):
        parts = [
            *_labelled("setup secrets", workspace.setup_secrets),
            *_labelled("setup egress", workspace.setup_egress),
            *_labelled("shared caches", workspace.caches),
        ]
        yield from _grant_check(f"workspace {name} grants", parts, workspace.setup_secrets)


def _labelled(label: str, names: Iterable[str]) -> list[str]:
    text = ", ".join(names)
    return [f"{label}: {text}"] if text else []


def _grant_check(name: str, parts: Sequence[str], secrets: Iterable[str]) -> Iterator[DoctorCheck]:
    if not parts:
        return
    missing = [path for path in secrets if not Path(path).exists()]
    remedy = f"create {', '.join(missing)}, or remove it from the configuration" if missing else None
    yield DoctorCheck(name, ok=not missing, detail="; ".join(parts), remedy=remedy)
