import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from steadyhand.errors import DataDirectoryBusy
from steadyhand.store import DataDirectoryLock

HOLDER = """
import subprocess, sys, time
from pathlib import Path
from steadyhand.store import DataDirectoryLock
lock = DataDirectoryLock(Path(sys.argv[1]))
lock.acquire()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_second_process_is_refused_and_told_which_one_has_the_directory(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    agent = 0
    try:
        assert holder.stdout is not None
        agent = int(holder.stdout.readline())
        with pytest.raises(DataDirectoryBusy) as refused:
            DataDirectoryLock(tmp_path).acquire()
        assert f"in use by process {holder.pid}." in str(refused.value)
        assert isinstance(refused.value.__cause__, BlockingIOError)

        holder.kill()
        holder.wait(10)
        os.kill(agent, 0)  # its child lives on, and has not inherited the lock
        with DataDirectoryLock(tmp_path):
            assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    finally:
        holder.kill()
        if agent:
            os.kill(agent, signal.SIGKILL)


def test_a_directory_that_was_let_go_can_be_taken_again(tmp_path: Path) -> None:
    lock = DataDirectoryLock(tmp_path)
    for _ in range(3):
        with lock, pytest.raises(DataDirectoryBusy):
            DataDirectoryLock(tmp_path).acquire()
        lock.release()
    assert (tmp_path / "lock").read_text() == ""


def test_a_process_that_is_refused_leaves_the_owner_known(tmp_path: Path) -> None:
    with DataDirectoryLock(tmp_path):
        for _ in range(2):
            with pytest.raises(DataDirectoryBusy, match=f"process {os.getpid()}"):
                DataDirectoryLock(tmp_path).acquire()


def test_nothing_is_left_of_the_longer_pid_of_an_owner_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("4194304123\n")
    with DataDirectoryLock(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
