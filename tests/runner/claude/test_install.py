"""Which CLI is run, and that the agents' user can run it."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from steadyhand.errors import ConfigError
from steadyhand.runner.claude.install import PROGRAM_NAME, check_cli, find_cli
from steadyhand.runner.process.programs import accessible_program, can_execute
from steadyhand.testing.cli import cli_path

UID = 64700
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def _program(folder: Path, mode: int = 0o755) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "claude"
    shutil.copyfile("/bin/true", program)
    program.chmod(mode)
    return program


def test_a_configured_path_wins_and_must_be_there(tmp_path: Path) -> None:
    program = _program(tmp_path)
    assert find_cli(program, classic=True, path_env="/nowhere") == program
    with pytest.raises(ConfigError, match=r"runner\.claude\.path"):
        find_cli(tmp_path / "gone", classic=False, path_env="")


def test_only_the_classic_profile_looks_on_the_path(tmp_path: Path) -> None:
    program = _program(tmp_path / "bin")
    path = f"/nowhere:{program.parent}"
    assert find_cli(None, classic=True, path_env=path) == program
    assert find_cli(None, classic=False, path_env=path) == cli_path()
    assert find_cli(None, classic=True, path_env="/nowhere") == cli_path()


def test_the_services_own_user_needs_no_copy(tmp_path: Path) -> None:
    program = _program(tmp_path, 0o700)
    assert accessible_program(program, PROGRAM_NAME, tmp_path / "data", None) == program


def test_a_program_that_can_be_reached_stays_where_it_is(world_dir: Path) -> None:
    program = _program(world_dir / "bin")
    assert can_execute(program, UID)
    assert accessible_program(program, PROGRAM_NAME, world_dir / "data", UID) == program


@needs_root
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_a_program_behind_a_closed_folder_is_put_where_it_can_be_run(world_dir: Path, mode: int) -> None:
    closed = world_dir / "closed"
    program = _program(closed, mode)
    closed.chmod(0o700)
    assert not can_execute(program, UID)
    put = accessible_program(program, PROGRAM_NAME, world_dir / "data", UID)
    assert put.parent == world_dir / "data" / "bin"
    assert can_execute(put, UID)
    assert put.read_bytes() == program.read_bytes()
    assert program.stat().st_mode & 0o777 == mode
    assert accessible_program(program, PROGRAM_NAME, world_dir / "data", UID) == put
    program.write_bytes(program.read_bytes() + b"\0")
    assert accessible_program(program, PROGRAM_NAME, world_dir / "data", UID) != put


def test_a_script_behind_a_closed_folder_stays_with_what_it_needs(world_dir: Path) -> None:
    closed = world_dir / "closed"
    closed.mkdir()
    script = closed / "claude"
    script.write_text("#!/usr/bin/env node\n")
    script.chmod(0o755)
    closed.chmod(0o700)
    assert accessible_program(script, PROGRAM_NAME, world_dir / "data", UID) == script


def _checked(program: Path | None, data: Path, uid: int | None) -> list[tuple[str, bool]]:
    found = asyncio.run(check_cli(program, classic=False, path_env="", data_dir=data, uid=uid))
    assert all(check.ok or check.remedy for check in found)
    return [(check.name, check.ok) for check in found]


def test_the_doctor_runs_the_real_cli_as_the_agents_user(world_dir: Path) -> None:
    uid = UID if os.geteuid() == 0 else None
    assert _checked(None, world_dir, uid) == [("cli", True), ("cli runs", True)]


def test_the_doctor_says_what_is_wrong(world_dir: Path) -> None:
    assert _checked(world_dir / "gone", world_dir, None) == [("cli", False)]
    assert _checked(Path("/bin/false"), world_dir, None) == [("cli", True), ("cli runs", False)]
    plain = world_dir / "no-program"
    plain.write_text("hello")
    assert _checked(plain, world_dir, None) == [("cli", True), ("cli runs", False)]
