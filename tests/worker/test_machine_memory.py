"""The memory that can be taken, read in a real control group with a limit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.memory_groups import MEBIBYTE, holding, memory_group

from steadyhand.worker import machine_memory
from steadyhand.worker.machine_memory import available_memory

LIMIT = 400 * MEBIBYTE
ROOM = 40 * MEBIBYTE
"""What the reading program itself may take."""
READ = """
import sys
from steadyhand.worker.machine_memory import available_memory
with open(sys.argv[1] + "/cgroup.procs", "w") as group:
    group.write("0")
print(available_memory())
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="control groups are made by root")


def read_inside(group: Path) -> int:
    argv = [sys.executable, "-c", READ, str(group)]
    return int(subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout)


def test_the_memory_of_a_group_is_what_its_limit_leaves() -> None:
    with memory_group(LIMIT) as group:
        free = read_inside(group)
        assert LIMIT - ROOM < free <= LIMIT
        with holding(group, 200 * MEBIBYTE):
            assert LIMIT - 200 * MEBIBYTE - ROOM < read_inside(group) <= LIMIT - 200 * MEBIBYTE
        assert read_inside(group) > LIMIT - ROOM


def test_files_that_the_kernel_can_drop_take_none(tmp_path: Path) -> None:
    """Also those that a group below has read: a run's control group is one."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * (120 * MEBIBYTE))
    os.sync()
    read = "import os, sys; open(sys.argv[1] + '/cgroup.procs', 'w').write('0')\n"
    read += "fd = os.open(sys.argv[2], os.O_RDONLY); os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)\n"
    read += "while os.read(fd, 1 << 20): pass"
    with memory_group(LIMIT) as group:
        inner = group / "inner"
        inner.mkdir()
        try:
            subprocess.run([sys.executable, "-c", read, str(inner), str(file)], check=True, timeout=60)
            assert read_inside(group) > LIMIT - ROOM
        finally:
            inner.rmdir()


def test_the_machine_is_the_bound_if_no_group_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = available_memory()
    assert found is not None
    assert 0 < found <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(machine_memory, "_MEMINFO", Path("/nonexistent"))
    assert available_memory() != 0
