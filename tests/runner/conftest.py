"""What the runner's tests share."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from steadyhand.ports import Command
from steadyhand.testing.processes import new_process_mark

AGENT_UID = 64321 if os.geteuid() == 0 else None
SYSTEM_PYTHON = "/usr/bin/python3"

Python = Callable[..., Command]


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that any uid may look into and write to."""
    folder = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))  # pytest's own is closed to other uids
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def mark() -> str:
    """What the processes of this test are known by."""
    return new_process_mark()


@pytest.fixture
def python(open_dir: Path, mark: str) -> Python:
    """Make a command that runs Python code as the agent's user, with the mark of this test."""
    interpreter = SYSTEM_PYTHON if Path(SYSTEM_PYTHON).exists() else sys.executable

    def command(code: str, *words: str, user: int | None = AGENT_UID) -> Command:
        return Command([interpreter, "-I", "-S", "-c", code, *words], {"SH_MARK": mark}, open_dir, user)

    return command


@pytest.fixture
def unruly(python: Python) -> Python:
    """Make a command that runs `unruly_agent.py` with the given words."""
    code = Path(__file__).with_name("unruly_agent.py").read_text(encoding="utf-8")

    def command(*words: str) -> Command:
        return python(code, *words)

    return command
