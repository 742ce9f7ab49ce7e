"""Finds the program of Codex."""

from pathlib import Path

from steadyhand.errors import ConfigError
from steadyhand.runner.packages.installed import find_installed
from steadyhand.runner.process.programs import accessible_program

PROGRAM_NAME = "codex"


def native_program(path: Path) -> Path:
    """Return the program itself for a path that may be npm's launcher of it, a script that needs Node.

    npm installs the program for this machine as a package beside that of the launcher. Raise `ConfigError` if it is
    not there, as after an install without optional packages.
    """
    launcher = path.resolve()
    if launcher.suffix != ".js":
        return path
    found = sorted(launcher.parents[2].glob(f"{PROGRAM_NAME}-*/vendor/*/bin/{PROGRAM_NAME}"))
    if not found:
        raise ConfigError(
            f"runner.codex.path: {path} is npm's launcher, and the program for this machine is missing beside it."
        )
    return found[0]


def find_codex(configured: Path | None, data_dir: Path, uid: int | None) -> Path | None:
    """Return a path to Codex that the agents' user can run: the configured one, else the newest that is installed.

    Return None if there is neither. Raise `ConfigError` if the configured one is not a file.
    """
    if configured is None:
        installed = find_installed(data_dir, PROGRAM_NAME)
        return None if installed is None else installed.program
    if not configured.is_file():
        raise ConfigError(f"runner.codex.path: {configured} is not a file.")
    return accessible_program(native_program(configured.absolute()), PROGRAM_NAME, data_dir, uid)
