"""The memory that the service may still take: of the machine, and of its control group."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from steadyhand.text_lines import split_lines

_MEMINFO = Path("/proc/meminfo")
_CGROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))

_FILE_COUNTERS = ("total_inactive_file", "inactive_file")
"""The names in version 1, whose plain counter leaves out the groups below, and in version 2."""


def available_memory() -> int | None:
    """Return the bytes that can be taken before the kernel has to kill or swap; None if nothing tells."""
    return min((each for each in (_machine(), *_groups()) if each is not None), default=None)


def _machine() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in split_lines(_MEMINFO.read_text("ascii", "replace")):
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _groups() -> Iterator[int]:
    """Yield the room in each control group of this process that has a limit."""
    with contextlib.suppress(OSError):
        for line in split_lines(Path("/proc/self/cgroup").read_text("ascii", "replace")):
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = Path("/sys/fs/cgroup/memory" if controllers else "/sys/fs/cgroup")
            group = root / path.lstrip("/")
            while group.is_relative_to(root):
                room = _room(group)
                if room is not None:
                    yield room
                if group == root:
                    break
                group = group.parent


def _room(group: Path) -> int | None:
    for limit_name, usage_name in _CGROUP_FILES:
        with contextlib.suppress(OSError, ValueError):
            limit = int((group / limit_name).read_text("ascii"))
            usage = int((group / usage_name).read_text("ascii"))
            return max(0, limit - usage + _reclaimable(group))
    return None


def _reclaimable(group: Path) -> int:
    """Return the bytes of files that the kernel can drop without harm, of the groups below as well."""
    found: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in split_lines((group / "memory.stat").read_text("ascii")):
            name, _, value = line.partition(" ")
            if name in _FILE_COUNTERS:
                found[name] = int(value)
    return next((found[name] for name in _FILE_COUNTERS if name in found), 0)
