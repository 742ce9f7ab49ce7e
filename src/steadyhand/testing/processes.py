"""Finding the processes of a run by a mark in their environment.

Pids that an agent tells are no help: inside a pid namespace they are other numbers. The environment that a process
was started with stays with its forks, so a mark put there finds every child, whatever session or parent it has.
"""

import time
import uuid
from pathlib import Path

_EMPTY_CHECKS = 5


def new_process_mark() -> str:
    """Return a text that no other process has."""
    return f"mark-{uuid.uuid4().hex}"


def pids_with_mark(mark: str) -> list[int]:
    """Return the pids of every process that was started with `mark` in its environment and is no zombie."""
    pids = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if mark.encode() in environment:
            pids.append(int(folder.name))
    return pids


def wait_until_gone(mark: str, timeout_seconds: float = 5.0) -> bool:
    """Wait until nothing with this mark is there; False if something still is after `timeout_seconds`.

    Several looks in a row must find nothing: one may miss what forks and ends between two steps of it. The time is that
    of the processes: on a busy machine the looks may take longer.
    """
    deadline = time.monotonic() + timeout_seconds
    empty_checks = 0
    while empty_checks < _EMPTY_CHECKS:
        is_late = time.monotonic() > deadline
        if not pids_with_mark(mark):
            empty_checks += 1
        elif is_late:
            return False
        else:
            empty_checks = 0
        time.sleep(0.002)
    return True
