"""A memory control group of one process, whose limit can leave it little: so the memory of a service becomes short."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bench.worlds import Broken

_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "-1")
_VERSION_2 = ("memory.max", "memory.current", "max")


class MemoryGroup:
    """The control group of one process."""

    def __init__(self, folder: Path, *, version: int) -> None:
        self._folder = folder
        self._limit, self._usage, self._unlimited = _VERSION_1 if version == 1 else _VERSION_2

    @classmethod
    @contextlib.contextmanager
    def of(cls, pid: int) -> Iterator[MemoryGroup]:
        """Move a process, without those that it has started, into a group below its own for the length of the block."""
        parent, version = _group_of(pid)
        folder = parent / f"bench-{pid}"
        try:
            folder.mkdir()
            (folder / "cgroup.procs").write_text(str(pid), "ascii")
        except OSError as error:
            raise Broken(f"no memory control group can be made: {error}") from error
        group = cls(folder, version=version)
        try:
            yield group
        finally:
            group.remove_limit()
            with contextlib.suppress(OSError):  # the process may have ended
                (parent / "cgroup.procs").write_text(str(pid), "ascii")
            with contextlib.suppress(OSError):
                folder.rmdir()

    def leave_free(self, size: int) -> None:
        """Let the group have so many bytes more than it uses now."""
        usage = int((self._folder / self._usage).read_text("ascii"))
        (self._folder / self._limit).write_text(str(usage + size), "ascii")

    def remove_limit(self) -> None:
        """Let the group have as much as its parent."""
        (self._folder / self._limit).write_text(self._unlimited, "ascii")


def _group_of(pid: int) -> tuple[Path, int]:
    for line in Path(f"/proc/{pid}/cgroup").read_text("ascii").split():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return Path("/sys/fs/cgroup/memory") / path.lstrip("/"), 1
        if not controllers and (Path("/sys/fs/cgroup") / path.lstrip("/") / "memory.current").exists():
            return Path("/sys/fs/cgroup") / path.lstrip("/"), 2
    raise Broken("there is no memory control group")
