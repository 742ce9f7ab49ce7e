import asyncio
import os
from pathlib import Path

import pytest

from steadyhand.agents import Agent, Workspace
from steadyhand.ports import Checkout, Command, DoctorCheck
from steadyhand.sandbox.sandbox import NoSandbox
from steadyhand.testing.contracts.checkouts import Repository
from steadyhand.testing.contracts.samples import make_job
from steadyhand.workspace import GitCheckouts
from steadyhand.workspace.doctor import check_workspaces


def looked_at(checkouts: GitCheckouts, data_dir: Path, *workspaces: Workspace) -> dict[str, DoctorCheck]:
    found = asyncio.run(check_workspaces(data_dir, checkouts.mirrors, workspaces))
    return {check.name: check for check in found}


def test_a_sound_machine_has_no_fault(
    checkouts: GitCheckouts, repository: Repository, world_dir: Path
) -> None:
    found = looked_at(checkouts, world_dir / "data", repository.workspace(), Workspace("scratch"))
    assert list(found) == ["git", "data directory", "workspace example"]
    assert all(check.ok for check in found.values())


def test_a_repository_that_cannot_be_reached_is_a_fault_with_a_remedy(
    checkouts: GitCheckouts, world_dir: Path
) -> None:
    (world_dir / "empty").mkdir()
    found = looked_at(
        checkouts,
        world_dir / "data",
        Workspace("gone", repository=str(world_dir / "nowhere")),
        Workspace("empty", repository=str(world_dir / "empty")),
        Workspace("refused", repository="http://127.0.0.1:1/x.git"),
    )
    for name in ("workspace gone", "workspace empty", "workspace refused"):
        assert not found[name].ok
        assert found[name].remedy


@pytest.mark.skipif(os.geteuid() != 0, reason="agents have a uid of their own only under root")
def test_a_data_directory_that_agents_cannot_reach_is_a_fault(
    checkouts: GitCheckouts, world_dir: Path
) -> None:
    world_dir.chmod(0o700)
    check = looked_at(checkouts, world_dir / "data")["data directory"]
    assert not check.ok
    assert f"chmod o+x {world_dir}" in (check.remedy or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="agents have a uid of their own only under root")
def test_a_directory_in_place_that_agents_cannot_write_is_a_fault(
    checkouts: GitCheckouts, repository: Repository, world_dir: Path
) -> None:
    workspace = repository.workspace(mode="in_place")
    name = "workspace example in place"
    assert not looked_at(checkouts, world_dir / "data", workspace)[name].ok
    os.chown(repository.folder, 64042, 64042)
    assert looked_at(checkouts, world_dir / "data", workspace)[name].ok


def test_level_none_changes_nothing_of_a_command(checkouts: GitCheckouts) -> None:
    place: Checkout = asyncio.run(checkouts.prepare(make_job(), Workspace("scratch"), 0))
    command = Command(("agent", "-p"), {"A": "b"}, place.directory, place.uid)
    assert NoSandbox().wrap(command, place, Agent("a")) == command
