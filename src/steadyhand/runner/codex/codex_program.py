"""Finds the program of Codex."""

from pathlib import Path

from steadyhand.errors import ConfigError
from steadyhand.runner.process.programs import accessible_program

PROGRAM_NAME = "codex"


def find_codex(configured: Path | None, data_dir: Path, uid: int | None) -> Path | None:
    """Return a path to Codex that the agents' user can run; None if none is configured.

    Raise `ConfigError` if the configured one is not a file.
    """
    if configured is None:
        return None
    if not configured.is_file():
        raise ConfigError(f"runner.codex.path: {configured} is not a file.")
    return accessible_program(configured.absolute(), PROGRAM_NAME, data_dir, uid)
