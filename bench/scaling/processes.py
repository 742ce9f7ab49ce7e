"""The processor time of processes and of all that they start, also of what has ended: by a control group of their own.

The kernel sums up the times of children only for a parent that waits for them. The fork server of agents does not.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.worlds import Broken

_TICKS = os.sysconf("SC_CLK_TCK")
_numbers = itertools.count(1)
_ROOT = Path("/sys/fs/cgroup")


def own_seconds(pid: int) -> float:
    """Give the processor time of a process itself."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / _TICKS


class ProcessorGroup:
    """A control group whose processor time is counted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    @contextmanager
    def of(cls, pid: int) -> Iterator[ProcessorGroup]:
        """Move a process and its descendants into a new group for the length of the block."""
        parent = _ROOT / "cpuacct" if (_ROOT / "cpuacct").exists() else _ROOT
        folder = parent / f"bench-{os.getpid()}-{next(_numbers)}"
        try:
            folder.mkdir()
            for each in _tree(pid):
                (folder / "cgroup.procs").write_text(str(each), "ascii")
        except OSError as error:
            raise Broken(f"no control group can be made: {error}") from error
        try:
            yield cls(folder)
        finally:
            for still_there in (folder / "cgroup.procs").read_text("ascii").split():
                with suppress(OSError):  # it may just have ended
                    (parent / "cgroup.procs").write_text(still_there, "ascii")
            with suppress(OSError):
                folder.rmdir()

    def seconds(self) -> float:
        """Give the processor time of all that was in it so far."""
        usage = self._folder / "cpuacct.usage"
        if usage.exists():
            return int(usage.read_text("ascii")) / 1e9
        fields = dict(line.split() for line in (self._folder / "cpu.stat").read_text("ascii").splitlines())
        return int(fields["usage_usec"]) / 1e6


def _tree(pid: int) -> set[int]:
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    tree = {pid}
    while more := {each for each, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return tree
