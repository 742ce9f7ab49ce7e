"""Where it is measured: a directory that agents' users can reach, and processes with an environment from nothing."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steadyhand.testing.cli import SYSTEM_PATH

_numbers = itertools.count(1)


class Broken(Exception):
    """A measurement could not be taken, or what it stands on did not hold."""


@contextmanager
def world() -> Iterator[Path]:
    """Make a directory of the run that any user may pass through; gone afterwards."""
    made = Path(tempfile.mkdtemp(prefix="sh-bench-", dir="/tmp"))  # reachable for agents' users
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def made_in(directory: Path, name: str) -> Path:
    """Make a new directory in a world."""
    made = directory / f"{name}-{next(_numbers)}"
    made.mkdir(mode=0o755)
    made.chmod(0o755)
    return made


def child_environment() -> dict[str, str]:
    """Give the environment of a helper of ours; this package is found from its current directory."""
    root = Path(__file__).parent.parent
    return {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", "PYTHONPATH": str(root)}


def ask_client(module: str, asked: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Run a client in a process of its own, with what it is asked as JSON; return its answer. Raise `Broken`."""
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env=child_environment(),
    )
    if done.returncode:
        raise Broken(f"the client failed: {done.stderr[-500:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def given_to(path: Path, user: int | None) -> Path:
    """Make a directory that belongs to a user; null is ours."""
    path.mkdir(mode=0o700)
    if user is not None:
        os.chown(path, user, user)
    return path
