"""Real services over real sockets; each worker of the test run has its own."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.service_fixtures import (
    closing_services,
    make_repository,
    make_service_root,
    model,
    reachable_tmp,
    stand_in,
)

from steadyhand.testing.cli import cli_path
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import MakeService, Service, run_git

__all__ = ["model", "reachable_tmp", "stand_in"]  # fixtures, taken in

AGENT = """\
---
name: {name}
description: Answers {name} questions.
---
You answer {name} questions.
"""
AGENTS = ("issue-responder", "recruiter-triage")


FILES = {
    "greeting.txt": "hello\n",
    **{f".claude/agents/{name}.md": AGENT.format(name=name) for name in AGENTS},
}


UNSANDBOXED = {"STEADYHAND_ISOLATION": "none"}


def long(*values: Any) -> Any:
    """Return a parameter set that is left to `make test-long`."""
    return pytest.param(*values, marks=pytest.mark.long)


# For what is the same in both profiles, as the routes are: `make test` has it in one of them.
LONG_DEFAULT = pytest.mark.parametrize("service", [long("default"), "classic"], indirect=True)
LONG_CLASSIC = pytest.mark.parametrize("service", ["default", long("classic")], indirect=True)


def isolation_for(request: pytest.FixtureRequest) -> dict[str, str]:
    """Say how a test's services keep agents apart: as by default, unless it shares a folder with its agents."""
    return UNSANDBOXED if "common_dir" in request.fixturenames else {}


@pytest.fixture
def common_dir() -> Iterator[Path]:
    """A directory where agents of any user may leave files; `ran` in it is for all of them to append to.

    Services of a test that has one are not sealed: a sealed agent sees no folder of this machine.
    """
    path = Path(tempfile.mkdtemp(prefix="sh-co-", dir="/tmp"))  # a fresh name
    path.chmod(0o777)
    (path / "ran").touch()
    (path / "ran").chmod(0o666)  # agents of several users append to it
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def make_service_in(reachable_tmp: Path, stand_in: Path) -> MakeService:
    """Make a service that was not started, with a repository as `WORKSPACE_DIR`; keywords are `Service`'s."""
    return service_maker(reachable_tmp, stand_in)


def service_maker(reachable_tmp: Path, stand_in: Path) -> MakeService:
    """Return what makes a service in the default way; see `make_service_in`."""

    def make(**options: object) -> Service:
        root = make_service_root(reachable_tmp)
        repository = root / "workspace"
        env = {"WORKSPACE_DIR": str(repository), **options.pop("env", {})}  # type: ignore[dict-item]
        service = Service(root, options.pop("claude", stand_in), env=env, **options)  # type: ignore[arg-type]
        make_repository(repository, FILES)
        if service.classic:
            remote = root / "remote.git"
            run_git(root, "clone", "-q", "--bare", str(repository), str(remote))
            run_git(repository, "remote", "add", "origin", str(remote))
            run_git(repository, "fetch", "-q", "origin")
            run_git(repository, "branch", "-q", "-u", "origin/main")
            run_git(repository, "config", "user.name", "Owner")
            run_git(repository, "config", "user.email", "owner@example.org")
            service.give_to_agent(repository)
            service.give_to_agent(remote)
        return service

    return make


@pytest.fixture
def make_service(make_service_in: MakeService, request: pytest.FixtureRequest) -> Iterator[MakeService]:
    """Make services for one test; they are ended with it."""

    def make(**options: object) -> Service:
        env = isolation_for(request) | options.pop("env", {})  # type: ignore[operator]  # a mapping, as `Service` takes it
        return make_service_in(env=env, **options)

    with closing_services(make) as ended:
        yield ended


@pytest.fixture(scope="session")
def sealed_service(make_service_in: MakeService) -> Iterator[Service]:
    """The default profile with the stand-in, sealed as it is by default; shared, so nothing is left running in it."""
    with make_service_in() as service:
        yield service


@pytest.fixture(scope="session")
def open_service(make_service_in: MakeService) -> Iterator[Service]:
    """The same without a boundary, for tests that share a folder with their agents."""
    with make_service_in(env=UNSANDBOXED) as service:
        yield service


@pytest.fixture(scope="session")
def classic_service(make_service_in: MakeService) -> Iterator[Service]:
    """The classic profile with the stand-in on PATH, which is not sealed unless asked for."""
    with make_service_in(classic=True) as service:
        yield service


@pytest.fixture(scope="session")
def real_default(make_service_in: MakeService, model: ScriptedModel) -> Iterator[Service]:
    """The default profile with the real CLI, sealed; shared, so nothing is left running in it."""
    with make_service_in(claude=cli_path(), model=model.url) as service:
        yield service


@pytest.fixture
def default_service(request: pytest.FixtureRequest) -> Service:
    """The default profile at the level that the test can do with."""
    found: Service = request.getfixturevalue("open_service" if isolation_for(request) else "sealed_service")
    return found


@pytest.fixture(params=["default", "classic"])
def service(request: pytest.FixtureRequest) -> Service:
    """Each profile in turn, for what holds in both."""
    found: Service = request.getfixturevalue(f"{request.param}_service")
    return found


@pytest.fixture
def root_only() -> None:
    if os.geteuid() != 0:
        pytest.skip("agents have a user of their own only when the service is root")
