"""Services whose agents are sealed off; as root, which CI is, every row of the attack table is tried."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sandboxed.recording_server import RecordingServer
from tests.service_fixtures import (
    closing_services,
    make_repository,
    make_service_root,
    model,
    reachable_tmp,
    stand_in,
)

from steadyhand.testing.service import MakeService, Service

__all__ = ["model", "reachable_tmp", "stand_in"]  # fixtures, taken in

CONFIG = """\
[agents.small]
workspace = "scratch"
memory = "200M"
processes = 100
disk = "128M"
"""


FILES = {"greeting.txt": "hello\n", "CLAUDE.md": "Answer in one line.\n"}


@pytest.fixture(autouse=True)
def _as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("agents have users of their own only when the service is root")


@pytest.fixture(scope="session")
def make_service_in(reachable_tmp: Path, stand_in: Path) -> MakeService:
    """Make a service that was not started, sealed unless told otherwise, with a repository as `WORKSPACE_DIR`."""

    def make(**options: object) -> Service:
        root = make_service_root(reachable_tmp)
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
        make_repository(repository, FILES)
        return service

    return make


@pytest.fixture
def make_service(make_service_in: MakeService) -> Iterator[MakeService]:
    """Make services for one test; they are ended with it."""
    with closing_services(make_service_in) as ended:
        yield ended


@pytest.fixture(scope="module")
def listener() -> Iterator[RecordingServer]:
    """A server on this machine that tells what it was asked for."""
    found = RecordingServer()
    yield found
    found.close()


@pytest.fixture(scope="session")
def sealed(make_service_in: MakeService) -> Iterator[Service]:
    """A sealed service with the stand-in; shared, so a test leaves nothing running in it."""
    with make_service_in() as service:
        yield service


@pytest.fixture
def workspace(sealed: Service) -> str:
    """The repository of the shared service, as a job names it."""
    return str(sealed.root / "workspace")
