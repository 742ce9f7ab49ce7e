"""Find and read `steadyhand.toml`. Each command imports this module, so it imports little."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steadyhand.errors import ConfigError

FILE_NAME = "steadyhand.toml"
MAX_FILE_BYTES = 1024 * 1024
_MAX_KEY_BYTES = 4096


def user_config_file(environ: Mapping[str, str]) -> Path | None:
    """Return the user's own configuration file, or `None` if there is none."""
    base = environ.get("XDG_CONFIG_HOME") or (
        str(Path(environ["HOME"], ".config")) if environ.get("HOME") else ""
    )
    path = Path(base, "steadyhand", FILE_NAME)
    return path if path.is_absolute() and path.is_file() else None


def named_config_file(file: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Return the file of `--config`, else that of STEADYHAND_CONFIG, else `None`.

    Raise `ConfigError` if it does not exist.
    """
    if file is None and environ.get("STEADYHAND_CONFIG"):
        file = Path(environ["STEADYHAND_CONFIG"])
    if file is not None and not file.is_file():
        raise ConfigError(f"There is no configuration file {file}.")
    return file


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the tables of a file. Raise `ConfigError` if it cannot be read, is too large or is not TOML."""
    import tomllib  # noqa: PLC0415  # most commands find no file

    try:
        return tomllib.loads(_read_regular_file(path, MAX_FILE_BYTES).decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path.name} could not be read: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path.name} could not be read: its values are nested too deeply") from error


def read_local_key(path: Path, *, owned: bool) -> str | None:
    """Return the key of the local service, or `None` if it cannot be read.

    With `owned` a link and a file of somebody else count as no file: a repository may hold a link to another secret.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_NOFOLLOW if owned else 0)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or (owned and status.st_uid != os.geteuid()):
                return None
            return file.read(_MAX_KEY_BYTES).decode("ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _read_regular_file(path: Path, max_bytes: int) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not block
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is not a regular file")
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(f"it is larger than {max_bytes} bytes")
    return content
