"""Where it is measured: a directory that agents' users can reach, and processes with an environment from nothing."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def given_to(path: Path, user: int | None) -> Path:
    """Make a directory that belongs to a user; null is ours."""
    path.mkdir(mode=0o700)
    if user is not None:
        os.chown(path, user, user)
    return path
