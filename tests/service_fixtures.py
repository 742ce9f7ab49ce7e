"""What the rooms that start real services share: fixtures that their conftests take in, and how a repository begins."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from steadyhand.testing.cli import install_standin
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import MakeService, Service, run_git


@pytest.fixture(scope="session")
def reachable_tmp() -> Iterator[Path]:
    """A directory under /tmp that agents of any user can enter, for the whole run."""
    path = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def stand_in(reachable_tmp: Path) -> Path:
    """The stand-in agent, installed as a CLI."""
    return install_standin(reachable_tmp / "stand-in")


@pytest.fixture(scope="session")
def model() -> Iterator[ScriptedModel]:
    """A scripted model for the whole run."""
    with ScriptedModel() as scripted:
        yield scripted


@contextmanager
def closing_services(make_service: MakeService) -> Iterator[MakeService]:
    """Make services by `make_one` for the length of the block; they are ended and taken away with it."""
    services: list[Service] = []

    def make(**options: object) -> Service:
        services.append(make_service(**options))
        return services[-1]

    yield make
    for service in services:
        service.close()
        shutil.rmtree(service.root, ignore_errors=True)


def make_service_root(reachable_tmp: Path) -> Path:
    """Make the directory that one service has to itself."""
    root = Path(tempfile.mkdtemp(prefix="service-", dir=reachable_tmp))
    root.chmod(0o755)
    return root


def make_repository(folder: Path, files: dict[str, str]) -> None:
    """Make a repository of one commit with these files, by their paths in it."""
    folder.mkdir()
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    run_git(folder, "init", "-q", "-b", "main")
    run_git(folder, "add", "-A")
    run_git(folder, "commit", "-q", "-m", "first")
