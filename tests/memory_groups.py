"""Control groups of memory for tests: one with a limit, and a program in it that holds some, bounded by itself."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from steadyhand.runner.process.cgroups import detect_cgroups
from steadyhand.testing.service import wait_until

MEBIBYTE = 1 << 20
MOST_BYTES = 480 * MEBIBYTE
_HOLD = """
import os, signal, sys
signal.alarm(30)
with open(sys.argv[1] + "/cgroup.procs", "w") as group:
    group.write(str(os.getpid()))
with open("/proc/self/oom_score_adj", "w") as score:
    score.write(sys.argv[3])
held = bytearray(int(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


def limit_file(group: Path) -> Path:
    """Return the file with the limit of a group of either version."""
    path = group / "memory.limit_in_bytes"
    return path if path.exists() else group / "memory.max"


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """Make a group with this limit for the length of the block. What is in it then moves to the group above."""
    parent = detect_cgroups().memory
    if parent is None:
        assert os.geteuid() != 0, "control groups of memory cannot be made here: mount them, writable"
        pytest.skip("control groups are made by root")
    group = parent / f"sh-test-{os.getpid()}"
    group.mkdir()
    try:
        limit_file(group).write_text(str(limit))
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (parent / "cgroup.procs").write_text(pid)
        wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


@contextlib.contextmanager
def holding(group: Path, amount: int, *, oom_score: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Run a program in a group that takes so many bytes, and holds them for the length of the block."""
    assert amount <= MOST_BYTES
    process = subprocess.Popen(
        ["/usr/bin/python3", "-I", "-c", _HOLD, str(group), str(amount), str(oom_score)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def was_killed(process: subprocess.Popen[str]) -> bool:
    """Return True if the program was killed for want of memory."""
    return wait_until(lambda: process.poll() is not None) and process.returncode == -signal.SIGKILL
