"""Agents for tests: the real CLI of the SDK's wheel, the stand-in, and an environment built from nothing."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from steadyhand.errors import ConfigError

DUMMY_API_KEY = "sk-ant-scripted-no-real-key"
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
_STANDIN_SOURCE = Path(__file__).parent / "standin"
_LIBRARY_NAME = ".stand-in"
_LAUNCHER = """\
#!{python} -IS
import os, sys
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), {library!r}))
from standin.program import main
code = main(sys.argv[1:])
os._exit(code)
"""


def cli_path() -> Path:
    """Return the path of the real ``claude`` in the SDK's wheel; raise `ConfigError` if the wheel has none."""
    spec = importlib.util.find_spec("claude_agent_sdk")
    if spec is None or spec.origin is None:
        raise ConfigError("claude-agent-sdk is not installed")
    path = Path(spec.origin).parent / "_bundled" / "claude"
    if not path.exists():
        raise ConfigError("the claude-agent-sdk wheel for this platform brings no CLI")
    return path


def system_python() -> Path:
    """Return a python3 that an unprivileged user can run: the system's, or the base of this interpreter."""
    system = Path("/usr/bin/python3")
    return system if system.exists() else Path(sys.executable).resolve()


def install_standin(directory: Path) -> Path:
    """Install the stand-in agent into ``directory`` (created if missing) as an executable ``claude``; return its path.

    Any user can read all of it; the directories above must be traversable for the user who runs it. It is compiled
    here, because the user who runs it could not write the compiled files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    library = directory / _LIBRARY_NAME
    shutil.rmtree(library, ignore_errors=True)
    shutil.copytree(_STANDIN_SOURCE, library / "standin", ignore=shutil.ignore_patterns("__pycache__"))
    python = system_python()
    subprocess.run(
        [python, "-IS", "-m", "compileall", "-q", library], check=True, capture_output=True, timeout=60
    )
    for path in [library, *library.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    launcher = directory / "claude"
    launcher.write_text(_LAUNCHER.format(python=python, library=_LIBRARY_NAME), encoding="utf-8")
    launcher.chmod(0o755)
    return launcher


def require_loopback(base_url: str) -> str:
    """Return a model's address; raise `ConfigError` if it is not on loopback."""
    if urlsplit(base_url).hostname not in ("127.0.0.1", "::1"):
        raise ConfigError(f"a test's model must be on loopback, not at {base_url!r}")
    return base_url


def isolated_env(home: Path, base_url: str, *, config: Path | None = None) -> dict[str, str]:
    """Return an environment for an agent built from nothing: its own home, a fake key, the model on loopback.

    Nothing of this process's environment goes in, so no test can reach or spend anything real. ``config`` is
    ``CLAUDE_CONFIG_DIR``, ``.claude`` in the home without it. Raise `ConfigError` for an address that is not loopback.
    """
    return {
        "HOME": str(home),
        "TMPDIR": str(home),
        "PATH": SYSTEM_PATH,
        "LANG": "C.UTF-8",
        "CLAUDE_CONFIG_DIR": str(config or home / ".claude"),
        "ANTHROPIC_API_KEY": DUMMY_API_KEY,
        "ANTHROPIC_BASE_URL": require_loopback(base_url),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
    }
