"""Install a wheel or an sdist into a clean environment of each Python here, and run the demo from it.

`python -m tools.try_release dist/*.whl dist/*.tar.gz` prints a line for each Python and each file, and fails if one of
them does not work, is too large beside the agent's command line, or takes too long to its first result.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[1]
MAX_BYTES, MAX_SECONDS = 200_000_000, 60.0
"""The goals: the size of an install beside the agent's command line, and the time to the demo's result."""
UNPRIVILEGED_UID = 54_321
AGENT_CLI = "claude_agent_sdk/_bundled/claude"
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
_MINIMUM = (3, 11)
_NAMES = ("python3", *(f"python3.{minor}" for minor in range(11, 20)))


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment with the package alone."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def program(self) -> Path:
        """The command of the package."""
        return self.folder / "bin" / "steadyhand"

    def installed_bytes(self) -> int:
        """Return the bytes of its files, without the agent's command line."""
        files = (path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink())
        return sum(path.stat().st_size for path in files if not str(path).endswith(AGENT_CLI))

    def distributions(self) -> frozenset[str]:
        """Return the names of what is installed in it."""
        code = "import importlib.metadata as m, json; print(json.dumps([d.name for d in m.distributions()]))"
        return frozenset(json.loads(run([str(self.python), "-I", "-c", code])))


def run(
    command: Sequence[str],
    *,
    uid: int | None = None,
    folder: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a command to its end and return what it printed. Raise `RuntimeError` with all of it if it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=env,
        user=uid,
        group=uid,
        extra_groups=None if uid is None else [],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def find_pythons() -> Iterator[Path]:
    """Yield one interpreter of each release of Python on PATH and below pyenv that is new enough."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [Path(path) for name in _NAMES if (path := shutil.which(name, path=SYSTEM_PATH))]
    found += sorted(pyenv.glob("3.*/bin/python3"))
    seen = set()
    for python in found:
        version = python_version(python)
        if version >= _MINIMUM and version not in seen:
            seen.add(version)
            yield python


def python_version(python: Path) -> tuple[int, ...]:
    """Return the release of an interpreter, such as (3, 11)."""
    printed = run([str(python), "-I", "-c", "import sys; print(*sys.version_info[:2])"])
    return tuple(map(int, printed.split()))


def install(package: Path, python: Path, folder: Path) -> Environment:
    """Install a file of the release, with what it needs and nothing else, into a new environment."""
    environment = Environment(folder)
    _uv("venv", "--quiet", "--no-project", "--python", str(python), str(folder))
    wanted = ("pip", "install", "--quiet", "--python", str(environment.python), str(package.absolute()))
    try:
        _uv(*wanted, "--offline")  # the tests' own environment has brought all of it into the cache
    except RuntimeError:
        _uv(*wanted)
    return environment


def _uv(*arguments: str) -> None:
    script = 'python=$1; shift; . tools/uv.sh; exec "$@"'
    uv = str(Path(sys.executable).with_name("uv"))
    run(["/bin/sh", "-c", script, "sh", sys.executable, uv, *arguments], folder=PROJECT)


def run_command(environment: Environment, folder: Path, *arguments: str, uid: int | None = None) -> str:
    """Run the package's command in a folder, with an environment made from nothing."""
    env = {
        "PATH": f"{environment.program.parent}:{SYSTEM_PATH}",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LANG": "C.UTF-8",
        **({"STEADYHAND_ISOLATION": level} if (level := os.environ.get("STEADYHAND_ISOLATION")) else {}),
    }
    return run([str(environment.program), *arguments], uid=uid, folder=folder, env=env)


def make_empty_folder(parent: Path, uid: int | None) -> Path:
    """Make an empty folder of a user."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    folder.chmod(0o755)
    if uid is not None:
        os.chown(folder, uid, uid)
    return folder


def unprivileged_uid(python: Path) -> int | None:
    """Return the uid to run as; `None` for this user, who is not root or alone can start the interpreter."""
    if os.geteuid() != 0:
        return None
    tried = (
        subprocess.run(
            [str(python), "-I", "-c", ""], user=UNPRIVILEGED_UID, cwd="/", capture_output=True, check=False
        )
        if _is_reachable(python)
        else None
    )
    return UNPRIVILEGED_UID if tried is not None and tried.returncode == 0 else None


def _is_reachable(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def main() -> int:
    """Try each file with each Python and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--python", action="append", type=Path, help="an interpreter; else all that are here")
    options = parser.parse_args()
    failures = 0
    for python in options.python or find_pythons():
        for file in options.files:
            with tempfile.TemporaryDirectory(prefix="steadyhand-try-") as name:
                root = Path(name)
                root.chmod(0o755)
                failures += not _try(file, python, root)
    return 1 if failures else 0


def _try(file: Path, python: Path, root: Path) -> bool:
    release = ".".join(map(str, python_version(python)))
    uid = unprivileged_uid(python)
    began = time.monotonic()
    try:
        environment = install(file, python, root / "environment")
        installed_seconds, size = time.monotonic() - began, environment.installed_bytes()
        run_command(environment, make_empty_folder(root, uid), "init", "--data-dir", "data", uid=uid)
        began = time.monotonic()
        run_command(environment, make_empty_folder(root, uid), "demo", uid=uid)
    except RuntimeError as error:
        sys.stdout.write(f"Python {release}, {file.name}: FAILED\n{error}\n")
        return False
    seconds, is_good = time.monotonic() - began, size <= MAX_BYTES
    user = "this user" if uid is None else f"uid {uid}"
    sys.stdout.write(
        f"Python {release}, {file.name}: installed in {installed_seconds:.1f} s, {size / 1e6:.0f} MB beside the "
        f"agent's command line (goal {MAX_BYTES / 1e6:.0f}), the demo as {user} took {seconds:.1f} s "
        f"(goal {MAX_SECONDS:.0f}){'' if is_good and seconds <= MAX_SECONDS else ': MISSED'}\n"
    )
    sys.stdout.flush()
    return is_good and seconds <= MAX_SECONDS


if __name__ == "__main__":
    sys.exit(main())
