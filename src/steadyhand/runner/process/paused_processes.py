"""Processes of a run that are stopped (SIGSTOP) while nobody needs them, and their priority meanwhile.

A stopped process can be killed like any other, also after a crash of the service, and no control group is needed. A
frozen group of version 1 could not be: its processes would take the kill only when somebody thaws them.
"""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from steadyhand.runner.process.process_tree import descendants
from steadyhand.text_lines import split_lines


class PausedProcesses:
    """The descendants of a process, stopped. Each is held by a descriptor, so no signal reaches another process."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._descriptors = descriptors

    @classmethod
    def below(cls, pid: int) -> "PausedProcesses":
        """Stop the descendants of a process."""
        found = []
        for each in descendants(pid):
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
