"""Finding the processes of a run by a mark in their environment.

Pids that an agent tells are no help: inside a pid namespace they are other numbers. The environment that a process
was started with stays with its forks, so a mark put there finds every child, whatever session or parent it has.
"""

import time
import uuid
from pathlib import Path

_LOOKS = 5


def new_mark() -> str:
    """Give a text that no other process has."""
    return f"mark-{uuid.uuid4().hex}"


def marked(mark: str) -> list[int]:
    """Give the pids of every process that was started with `mark` in its environment and is no zombie."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if mark.encode() in environment:
            found.append(int(folder.name))
    return found


def none_left(mark: str, seconds: float = 5.0) -> bool:
    """Wait until nothing with this mark is there, at most `seconds`; False when something still is.

    Several looks in a row must find nothing: one may miss what forks and ends between two steps of it.
    """
    until = time.monotonic() + seconds
    empty = 0
    while empty < _LOOKS:
        empty = 0 if marked(mark) else empty + 1
        if time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True
