"""Services whose agents are sealed off; as root, which CI is, every row of the attack table is tried."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from steadyhand.testing.cli import install_standin
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import MakeService, Service, git

CONFIG = """\
[agents.small]
workspace = "scratch"
memory = "200M"
processes = 100
disk = "128M"
"""


def make_repository(folder: Path) -> None:
    """A repository with a file and a text of instructions."""
    folder.mkdir()
    (folder / "greeting.txt").write_text("hello\n")
    (folder / "CLAUDE.md").write_text("Answer in one line.\n")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")


@pytest.fixture(autouse=True)
def _as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("agents have users of their own only when the service is root")


@pytest.fixture(scope="session")
def reachable_tmp() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="sh-se-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def stand_in(reachable_tmp: Path) -> Path:
    return install_standin(reachable_tmp / "stand-in")


@pytest.fixture(scope="session")
def make_service_in(reachable_tmp: Path, stand_in: Path) -> MakeService:
    """Make a service that was not started, sealed unless told otherwise, with a repository as `WORKSPACE_DIR`."""

    def make(**options: object) -> Service:
        root = Path(tempfile.mkdtemp(prefix="service-", dir=reachable_tmp))
        root.chmod(0o755)
        repository = root / "workspace"
        own_tmp = root / "tmp"
        own_tmp.mkdir()
        env = {
            "WORKSPACE_DIR": str(repository),
            "STEADYHAND_ISOLATION": "bwrap",
            "TMPDIR": str(own_tmp),
            **options.pop("env", {}),  # type: ignore[dict-item]
        }
        options.setdefault("config", CONFIG)
        service = Service(root, options.pop("claude", stand_in), env=env, **options)  # type: ignore[arg-type]
        make_repository(repository)
        return service

    return make


@pytest.fixture
def make_service(make_service_in: MakeService) -> Iterator[MakeService]:
    """Make services for one test; they are ended with it."""
    made: list[Service] = []

    def make(**options: object) -> Service:
        made.append(make_service_in(**options))
        return made[-1]

    yield make
    for service in made:
        service.close()
        shutil.rmtree(service.root, ignore_errors=True)


@pytest.fixture(scope="session")
def sealed(make_service_in: MakeService) -> Iterator[Service]:
    """A sealed service with the stand-in; shared, so a test leaves nothing running in it."""
    with make_service_in() as service:
        yield service


@pytest.fixture(scope="session")
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel() as scripted:
        yield scripted


@pytest.fixture
def workspace(sealed: Service) -> str:
    """The repository of the shared service, as a job names it."""
    return str(sealed.root / "workspace")
