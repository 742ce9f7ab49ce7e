"""The versions of the package, of the agent's command line, and of the schema that the store has.

Little is imported, as `--version` answers at once.
"""

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from steadyhand import __version__
from steadyhand.cli.sanitize import one_line
from steadyhand.config.locate import read_config_file, user_config_file
from steadyhand.errors import ConfigError

_SECONDS = 5.0
_MAX_LENGTH = 60
_REVISION_FILE = re.compile(r"r(\d{4})_\w+\.py")


def version_lines() -> Iterator[str]:
    """Yield the package's version, and what else belongs to it: one in a line."""
    yield __version__
    yield f"agent CLI: {agent_cli_version(os.environ)}"
    yield f"store schema: {store_schema()}"


def store_schema() -> str:
    """Return the newest revision of the database, which a start migrates to."""
    spec = importlib.util.find_spec("steadyhand.store")
    assert spec is not None  # noqa: S101  # it is a part of the package
    assert spec.origin is not None  # noqa: S101  # the same
    files = (Path(spec.origin).parent / "migrations" / "versions").iterdir()
    return max(found[1] for path in files if (found := _REVISION_FILE.fullmatch(path.name)))


def agent_cli_version(environ: Mapping[str, str]) -> str:
    """Return the version of the agent's command line, or why it is not known.

    A `steadyhand.toml` in the working directory is not read: it could name any program of a hostile repository.
    """
    from steadyhand.runner.claude.install import find_cli  # noqa: PLC0415  # only `--version` needs it

    try:
        program = find_cli(_configured_path(environ), classic=False, path_env="")
    except ConfigError as error:
        return f"not found: {one_line(error.detail)}"
    env = {"PATH": os.defpath, "HOME": "/nonexistent", "DISABLE_AUTOUPDATER": "1", "DISABLE_TELEMETRY": "1"}
    try:
        done = subprocess.run(
            [str(program), "--version"],
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not known: it did not answer within {_SECONDS:g} s"
    except OSError as error:
        return f"not known: {error.strerror}"
    text = one_line(done.stdout.decode("utf-8", "replace").strip(), _MAX_LENGTH)
    return text if done.returncode == 0 and text else f"not known: it ended with {done.returncode}"


def _configured_path(environ: Mapping[str, str]) -> Path | None:
    named = environ.get("STEADYHAND_RUNNER__CLAUDE__PATH")
    if named:
        return Path(named)
    own = user_config_file(environ)
    table = {} if own is None else read_config_file(own)
    for name in ("runner", "claude"):
        inner = table.get(name)
        table = inner if isinstance(inner, dict) else {}
    path = table.get("path")
    return Path(path) if isinstance(path, str) and path else None
