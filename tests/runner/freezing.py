"""Ways to freeze a process: by a signal, and by the freezer of control groups of both versions."""

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from steadyhand.runner.process.cgroups import start_ticks

Freeze = Callable[[int], None]
_GROUPS = ("group of version 1", "group of version 2")
_NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="control groups are made by root")
_MARKS: Mapping[str, list[pytest.MarkDecorator]] = {"signal": [], **{way: [_NEEDS_ROOT] for way in _GROUPS}}
"""The ways, with the marks of each."""
_BOUND_SECONDS = 10.0


def ways(quick: str) -> Sequence[Any]:
    """Return the ways as parameters of a test; `make test` has the one that is named."""
    return [
        pytest.param(way, marks=[*marks, *([] if way == quick else [pytest.mark.long])])
        for way, marks in _MARKS.items()
    ]


def each_with_each_way(names: Sequence[str]) -> Sequence[Any]:
    """Return pairs of a name and a way as parameters of a test; `make test` has each of them once at least."""
    quick = set(zip(names, itertools.cycle(_MARKS), strict=False))
    return [
        pytest.param(name, way, marks=[*marks, *([] if (name, way) in quick else [pytest.mark.long])])
        for name in names
        for way, marks in _MARKS.items()
    ]


def state_of(pid: int) -> str:
    """Return the state of a process, as `/proc` has it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextmanager
def freezer(way: str) -> Iterator[Freeze]:
    """Return a function that freezes a process; whatever is frozen at the end goes on then."""
    with ExitStack() as stack:
        if way == "signal":
            yield lambda pid: _stop(pid, stack)
            return
        group = _new_group(way, stack)

        def freeze(pid: int) -> None:
            (group / "cgroup.procs").write_text(str(pid))
            file, frozen = ("freezer.state", "FROZEN") if "1" in way else ("cgroup.freeze", "1")
            (group / file).write_text(frozen)
            _wait_until(lambda: _is_frozen(group, way))

        yield freeze


def _stop(pid: int, stack: ExitStack) -> None:
    ticks = start_ticks(pid)
    os.kill(pid, signal.SIGSTOP)
    _wait_until(lambda: state_of(pid) == "T")
    stack.callback(_resume, pid, ticks)


def _resume(pid: int, ticks: int | None) -> None:
    if start_ticks(pid) == ticks:
        os.kill(pid, signal.SIGCONT)


def _new_group(way: str, stack: ExitStack) -> Path:
    parent = _find_freezer(way)
    if parent is None:
        # A machine mounts groups of version 1, of version 2 or of both, and each version has a freezer of its own.
        if all(_find_freezer(each) is None for each in _GROUPS):
            pytest.fail("No freezer is mounted: run `mount -t cgroup2 none /sys/fs/cgroup`.")
        pytest.skip(f"this machine mounts no {way}; the other version is tested")
    group = parent / f"test-freezer-{os.getpid()}-{time.monotonic_ns()}"
    group.mkdir()
    stack.callback(_remove, group, way)
    return group


def _find_freezer(way: str) -> Path | None:
    """Return where the freezer of a version is mounted, found without the code under test."""
    for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).split("\n")[:-1]:
        mount, _, filesystem = line.partition(" - ")
        kind, _, options = filesystem.split(" ", 2)
        if kind == "cgroup2" if "2" in way else kind == "cgroup" and "freezer" in options.split(","):
            return Path(mount.split(" ")[4])
    return None


def _remove(group: Path, way: str) -> None:
    file, thawed = ("freezer.state", "THAWED") if "1" in way else ("cgroup.freeze", "0")
    (group / file).write_text(thawed)
    _wait_until(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


def _is_frozen(group: Path, way: str) -> bool:
    if "1" in way:
        return (group / "freezer.state").read_text().strip() == "FROZEN"
    return "frozen 1" in (group / "cgroup.events").read_text()


def _wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + _BOUND_SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)
