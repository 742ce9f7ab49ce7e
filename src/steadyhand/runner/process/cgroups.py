"""Control groups: the limits that the kernel can enforce for a run, and removal of groups that an earlier process left.

The group of a run is `steadyhand-<pid>-<ticks>-<namespace>`: its supervisor's pid and start time, and the pid namespace
of both. It lies below the service's own group, so that the service's limits also hold for its runs, and no other group
is changed. There are three cases, best first: version 2 with the `memory` and `pids` controllers delegated to the
service; version 1 `memory` and `pids` for the limits, with version 2 beside them for `cgroup.kill`; none, in which case
resource limits are set and the supervisor walks the process tree.
"""

import asyncio
import contextlib
import functools
import os
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from steadyhand.ports import ResourceLimits
from steadyhand.text_lines import split_lines

GONE_SECONDS = 10.0
"""Seconds for the kernel to remove killed processes; a process that takes longer hangs in the kernel itself."""
_NAME = re.compile(r"steadyhand-([0-9]+)-([0-9]+)-([0-9]+)")
_SERVICE_CGROUP = "steadyhand-service"
_V2_LIMIT_FILES = ("memory.max", "pids.max")
_TRIAL_BYTES = 1 << 30

CgroupLimit = tuple[str, bytes, bool]
"""A file of a group, the bytes to write to it, and True if the group is useless without that limit."""
CgroupCounter = tuple[str, str, bytes]
"""A name, a file, and the key of the line in it that holds the count."""


@dataclass(frozen=True, slots=True)
class Cgroups:
    """The parents of a run's groups; None if there is no such group. With version 2 all three are the same."""

    memory: Path | None = None
    processes: Path | None = None
    kill: Path | None = None
    version: int = 1

    @property
    def parents(self) -> tuple[Path, ...]:
        """Return each parent once."""
        return tuple(
            dict.fromkeys(group for group in (self.memory, self.processes, self.kill) if group is not None)
        )

    def paths(self, name: str) -> list[Path]:
        """Return the paths of the groups of a run with this name. They need not exist."""
        return [parent / name for parent in self.parents]

    def limits(self, name: str, resource_limits: ResourceLimits) -> list[tuple[str, list[CgroupLimit]]]:
        """Return the groups to create for a run, each with the limits to write to it."""
        return [
            (str(parent / name), list(self._limits_below(parent, resource_limits))) for parent in self.parents
        ]

    def _limits_below(self, parent: Path, resource_limits: ResourceLimits) -> Iterator[CgroupLimit]:
        if parent == self.memory and resource_limits.memory is not None:
            memory = b"%d" % resource_limits.memory
            if self.version == 2:  # noqa: PLR2004  # of cgroups
                yield "memory.max", memory, True
                yield "memory.swap.max", b"0", False
            else:
                yield "memory.limit_in_bytes", memory, True
                yield (
                    "memory.memsw.limit_in_bytes",
                    memory,
                    False,
                )  # missing if the kernel does not account swap
        if parent == self.processes and resource_limits.processes is not None:
            yield "pids.max", b"%d" % resource_limits.processes, True

    def counters(self, name: str) -> list[CgroupCounter]:
        """Return the files in which the kernel counts how often a run reached a limit."""
        counters: list[CgroupCounter] = []
        if self.memory is not None:
            file = "memory.events" if self.version == 2 else "memory.oom_control"  # noqa: PLR2004
            counters.append(("oom", str(self.memory / name / file), b"oom_kill"))
        if self.processes is not None:
            counters.append(("forks_refused", str(self.processes / name / "pids.events"), b"max"))
        return counters

    @property
    def description(self) -> str:
        """Return one sentence about how limits are enforced here."""
        if self.memory is None or self.processes is None:
            sentence = (
                "No control group holds memory or processes here; "
                "resource limits and a look at them twice a second must do"
            )
        else:
            sentence = f"Memory and processes are held by control groups (version {self.version})"
        return f"{sentence}; {'cgroup.kill' if self.kill is not None else 'a walk'} ends what is left."


def cgroup_name(supervisor: int, ticks: int) -> str:
    """Return the name of the groups of a supervisor's run."""
    return f"steadyhand-{supervisor}-{ticks}-{_pid_namespace()}"


@functools.cache
def _pid_namespace() -> int:
    """Return the number of this process's pid namespace.

    Control groups may be shared with services in other pid namespaces, where our pids mean other processes.
    """
    return Path("/proc/self/ns/pid").stat().st_ino


@functools.cache
def detect_cgroups() -> Cgroups:
    """Return the control groups that can be used here. They are tried once; the service stays in its own group."""
    if os.geteuid() != 0:
        return Cgroups()
    return find_cgroups(*_kernel_tables())


def enter_service_cgroup() -> bool:
    """Move the service into a group below its own if that makes the kernel's limits available to runs.

    Return True if it moved. Call this first of all when the service starts: a process that was started before the
    move stays outside the new group.
    """
    if os.geteuid() != 0 or not delegate_own_cgroup(*_kernel_tables()):
        return False
    detect_cgroups.cache_clear()
    return True


def _kernel_tables() -> tuple[str, str]:
    mounts = Path("/proc/self/mountinfo").read_text("utf-8", "replace")
    return mounts, Path("/proc/self/cgroup").read_text()


def find_cgroups(mounts: str, own_cgroups: str) -> Cgroups:
    """Return the groups to use, by the mount table and the service's own groups (`/proc/self/{mountinfo,cgroup}`).

    Each one is tried by a group that is made below it and removed again.
    """
    unified = _own_cgroup(mounts, own_cgroups, None)
    if unified is not None and unified.name == _SERVICE_CGROUP:
        unified = unified.parent  # the service has moved into a group below it
    if unified is not None and _is_usable(unified, *_V2_LIMIT_FILES):
        return Cgroups(unified, unified, unified, version=2)
    memory, processes = _own_cgroup(mounts, own_cgroups, "memory"), _own_cgroup(mounts, own_cgroups, "pids")
    return Cgroups(
        memory if memory is not None and _is_usable(memory, "memory.limit_in_bytes") else None,
        processes if processes is not None and _is_usable(processes, "pids.max") else None,
        unified if unified is not None and _is_usable(unified) else None,
    )


def delegate_own_cgroup(mounts: str, own_cgroups: str) -> bool:
    """Delegate controllers of the service's own version 2 group, unless groups below it have limits already."""
    group = _own_cgroup(mounts, own_cgroups, None)
    if group is None:
        return False
    if (
        group.name == _SERVICE_CGROUP
    ):  # systemd has started it there (`DelegateSubgroup=`), or it has moved already
        return not _is_usable(group.parent, *_V2_LIMIT_FILES) and _enable_controllers(group.parent)
    return not _is_usable(group, *_V2_LIMIT_FILES) and delegate_controllers(group)


def _enable_controllers(group: Path) -> bool:
    """Enable the controllers for the groups below a group that holds no process; return True on success."""
    try:
        if _member_pids(group) or not (group / "cgroup.subtree_control").is_file():
            return False
        (group / "cgroup.subtree_control").write_text("+memory +pids", "ascii")
    except OSError:
        return False
    return True


def delegate_controllers(group: Path) -> bool:
    """Delegate the `memory` and `pids` controllers to groups below the service's own version 2 group; True on success.

    The kernel requires that a group with delegated controllers holds no process, so the service moves into a new group
    below it. It moves only if it is alone in its group, such as in a systemd unit or a container of its own.
    """
    try:
        controllers = (group / "cgroup.controllers").read_text("ascii").split()
        if not {"memory", "pids"} <= set(controllers) or _member_pids(group) != [os.getpid()]:
            return False
        (group / _SERVICE_CGROUP).mkdir(exist_ok=True)
        (group / _SERVICE_CGROUP / "cgroup.procs").write_text(str(os.getpid()), "ascii")
        (group / "cgroup.subtree_control").write_text("+memory +pids", "ascii")
    except OSError:
        return False
    return True


def _own_cgroup(mounts: str, own_cgroups: str, controller: str | None) -> Path | None:
    """Return the path of the service's own group: of a version 1 controller, or of version 2 if that is None."""
    path = None
    for line in split_lines(own_cgroups):
        number, _, rest = line.partition(":")
        names, _, cgroup_path = rest.partition(":")
        if (number == "0" and not names) if controller is None else controller in names.split(","):
            path = cgroup_path
    if path is None:
        return None
    for line in split_lines(mounts):
        left, _, right = line.partition(" - ")
        kind, _, options = right.partition(" ")
        matches = (
            kind == "cgroup2"
            if controller is None
            else kind == "cgroup" and controller in _mount_options(options)
        )
        if matches:
            root, point = left.split(" ")[3:5]
            relative = path.removeprefix(root.rstrip("/")) if path.startswith(root) else ""
            return Path(point + relative.rstrip("/"))
    return None


def _mount_options(fields: str) -> Sequence[str]:
    return fields.rpartition(" ")[2].split(",")


def _is_usable(parent: Path, *files: str) -> bool:
    """Return True if a group below `parent` can be created and these files of it can be written."""
    # The name of a group that is alive: the sweep of a service that starts at this moment would remove any other.
    probe = parent / cgroup_name(os.getpid(), start_ticks(os.getpid()) or 0)
    try:
        probe.mkdir(exist_ok=True)
    except OSError:
        return False
    try:
        for file in files:
            (probe / file).write_text(str(_TRIAL_BYTES if file.startswith("memory") else 64))
        return bool(files) or (probe / "cgroup.kill").exists()
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            probe.rmdir()


# --- leftover groups -----------------------------------------------------------------------------


def kill_members(paths: Sequence[Path]) -> None:
    """Send SIGKILL to every process in the groups."""
    for path in paths:
        _kill_cgroup_members(path)


@functools.cache
def _own_freezer() -> Path | None:
    """Return the service's own group of the version 1 controller `freezer`, if that is mounted."""
    return _own_cgroup(*_kernel_tables(), "freezer") if os.geteuid() == 0 else None


def leave_freezer(pid: int) -> None:
    """Move a process into the service's own group of the version 1 freezer: in a frozen group no signal reaches it."""
    group = _own_freezer()
    if group is not None:
        with contextlib.suppress(OSError):  # it is gone
            (group / "cgroup.procs").write_text(str(pid), "ascii")


async def kill_cgroups(paths: Sequence[Path]) -> None:
    """Kill every process in groups whose supervisor is gone, and remove the groups. Takes `GONE_SECONDS` at most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GONE_SECONDS):
            while True:
                kill_members(paths)
                paths = [path for path in paths if not _try_remove(path)]
                if not paths:
                    return
                await asyncio.sleep(0.005)


async def sweep_cgroups() -> int:
    """Kill and remove groups whose supervisor is gone, and return how many there were."""
    leftovers = []
    for parent in detect_cgroups().parents:
        for path in parent.glob("steadyhand-*"):
            name = _NAME.fullmatch(path.name)
            if name is None or int(name[3]) != _pid_namespace():
                continue
            if start_ticks(int(name[1])) != int(name[2]):
                leftovers.append(path)
    await kill_cgroups(leftovers)
    return len(leftovers)


def _member_pids(group: Path) -> list[int]:
    try:
        return [int(line) for line in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _kill_cgroup_members(group: Path) -> None:
    try:
        (group / "cgroup.kill").write_text("1")
    except OSError:
        for pid in _member_pids(group):
            if pid > 0:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)


def _try_remove(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False  # busy: killed processes are still exiting
    return True


def start_ticks(pid: int) -> int | None:
    """Return a process's start time in clock ticks since boot (`/proc/PID/stat`, field 22); None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    after = fields[fields.rindex(b")") + 2 :].split()
    return None if after[0] in (b"Z", b"X") else int(after[19])
