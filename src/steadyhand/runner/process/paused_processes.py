"""Processes of a run that are stopped (SIGSTOP) while nobody needs them, and their priority meanwhile.

A stopped process can be killed like any other, also after a crash of the service, and no control group is needed. A
frozen group of version 1 could not be: its processes would take the kill only when somebody thaws them.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from steadyhand.runner.process.cgroups import start_ticks
from steadyhand.runner.process.process_tree import descendants, parents
from steadyhand.text_lines import split_lines

_MAX_ROUNDS, _LOOKS_WITHOUT_GROUP, _ROUND_SECONDS = 100, 10, 0.005


class PausedProcesses:
    """The descendants of a process, stopped. Each is held by a descriptor, so no signal reaches another process."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._descriptors = descriptors

    @classmethod
    def below(cls, pid: int, *, wrappers: int = 0, cgroups: Sequence[Path] = ()) -> "PausedProcesses":
        """Stop the descendants of a supervisor, apart from this many wrappers of the agent.

        A wrapper that was stopped would not notice the end of the agent. If the run has one of the `cgroups`, nobody
        looks at the other processes of the machine.
        """
        children, found = _children_in_group(pid, wrappers, cgroups) or _children(parents()), []
        spared = {each for each, _ in _oldest_line(children, pid, wrappers)}
        for each in _below(children, pid):
            if each not in spared:
                with contextlib.suppress(OSError):
                    found.append(os.pidfd_open(each))
        paused = cls(found)
        paused._send(signal.SIGSTOP)
        return paused

    def resume(self) -> None:
        """Let them go on."""
        self._send(signal.SIGCONT)
        for each in self._descriptors:
            os.close(each)
        self._descriptors = ()

    def _send(self, number: signal.Signals) -> None:
        for each in self._descriptors:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(each, number)


async def kill_others(supervisor: int, levels: int, cgroups: Sequence[Path]) -> bool:
    """Kill the processes of a run but the agent itself; return False if some come back for too long.

    The agent is `levels` levels below its supervisor, and only those between the two are older than it. A process that
    forks and ends all the time may be missed by a look at the process table, but not by one at its control group.
    """
    spared: frozenset[tuple[int, int | None]] = frozenset()
    looks = 0
    for _ in range(_MAX_ROUNDS):
        children = _children(parents())
        spared = spared or _oldest_line(children, supervisor, levels)
        if len(spared) != levels:
            return False
        in_group = _members(cgroups, {pid for pid, _ in spared})
        found = {*_below(children, supervisor), *(in_group or ())}
        others = {(each, start_ticks(each)) for each in found if not _is_zombie(each)} - spared
        looks = 0 if others else looks + 1
        if looks >= (1 if in_group is not None else _LOOKS_WITHOUT_GROUP):
            return True
        for each, started in others:
            with contextlib.suppress(OSError):
                descriptor = os.pidfd_open(each)
                try:
                    if start_ticks(each) == started:
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                finally:
                    os.close(descriptor)
        await asyncio.sleep(_ROUND_SECONDS if others else 0)
    return False


def _is_zombie(pid: int) -> bool:
    """Return True if a process has ended and only its parent does not know yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False  # it has gone, and another one may have come
    return stat.rpartition(b")")[2].split()[0] in b"ZX"


def _members(cgroups: Sequence[Path], spared: set[int]) -> set[int] | None:
    """Return the processes of a group that holds one of `spared`; None if there is no such group."""
    for group in cgroups:
        with contextlib.suppress(OSError, ValueError):
            members = {int(line) for line in (group / "cgroup.procs").read_bytes().split()}
            if members & spared:
                return members
    return None


def _children(pairs: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for pid, parent in pairs:
        children.setdefault(parent, []).append(pid)
    return children


def _children_in_group(
    supervisor: int, wrappers: int, cgroups: Sequence[Path]
) -> Mapping[int, Sequence[int]] | None:
    """Return the children of each process of a run by its control group; None if no group has its agent."""
    for group in cgroups:
        with contextlib.suppress(OSError, ValueError):
            members = {int(line) for line in (group / "cgroup.procs").read_bytes().split()}
            parent_of = dict(parents(members))
            # The init of the run's namespace, between the supervisor and the group.
            parent_of.update(parents(set(parent_of.values()) - parent_of.keys() - {supervisor}))
            children = _children(parent_of.items())
            if len(_oldest_line(children, supervisor, wrappers + 1)) == wrappers + 1:
                return children
    return None


def _below(children: Mapping[int, Sequence[int]], root: int) -> Iterator[int]:
    rest = [root]
    while rest:
        below = children.get(rest.pop(), ())
        yield from below
        rest.extend(below)


def _oldest_line(
    children: Mapping[int, Sequence[int]], root: int, levels: int
) -> frozenset[tuple[int, int | None]]:
    """Return the pid and start time of the oldest child of `root`, of its oldest child, and so on."""
    line: list[tuple[int, int | None]] = []
    for _ in range(levels):
        started = [(ticks, pid) for pid in children.get(root, ()) if (ticks := start_ticks(pid)) is not None]
        if not started:
            break
        ticks, root = min(started)
        line.append((root, ticks))
    return frozenset(line)


def lower_priority(pid: int) -> None:
    """Let a process, and all that it will start, have the processor only while nothing else wants it.

    Change nothing if this process could not take that back.
    """
    if os.geteuid() == 0 and _has_nice_capability():
        _set_policy((pid, *descendants(pid)), os.SCHED_IDLE)


def restore_priority(pid: int) -> None:
    """Restore the usual priority of a process and its descendants."""
    for _ in range(2):  # a thread may begin while the others are listed
        _set_policy((pid, *descendants(pid)), os.SCHED_OTHER)


def _set_policy(pids: Sequence[int], policy: int) -> None:
    for thread in _threads(pids):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(thread, policy, os.sched_param(0))


def _threads(pids: Sequence[int]) -> Iterator[int]:
    for pid in pids:
        with contextlib.suppress(OSError):
            yield from (int(each.name) for each in Path(f"/proc/{pid}/task").iterdir())


def _has_nice_capability() -> bool:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in split_lines(Path("/proc/self/status").read_text("ascii", "replace")):
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) & (1 << 23))  # CAP_SYS_NICE
    return False
