"""The files of a release, built once for all tests of a worker."""

import subprocess
import sys
from pathlib import Path

import pytest

from steadyhand.testing.cli import SYSTEM_PATH

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built by the backend that `pyproject.toml` names."""
    return build(tmp_path_factory.mktemp("wheel"), "wheel", "*.whl")


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's sources as they are released."""
    return build(tmp_path_factory.mktemp("sdist"), "sdist", "*.tar.gz")


def build(folder: Path, target: str, pattern: str) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)],
        cwd=ROOT,
        env={"PATH": SYSTEM_PATH, "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob(pattern)
    return found
