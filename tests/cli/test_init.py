"""`steadyhand init` in an empty folder: what it writes is loaded, served and verified."""

import json
import re
import shutil
import signal
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.command_line import CommandLine, InProcessCommandLine, read_until

from steadyhand.cli.systemd_unit import Installation, find_systemd_version, systemd_unit
from steadyhand.client import Client
from steadyhand.config.settings import load_settings
from steadyhand.config.starter_file import starter_file
from steadyhand.errors import ConfigError
from steadyhand.testing.cli import DUMMY_API_KEY
from steadyhand.testing.reserved_port import ReservedPort
from steadyhand.testing.service import UNUSED_MODEL_URL


@pytest.fixture
def steadyhand(tmp_path: Path) -> CommandLine:
    """The command line in an empty folder, which is the home of its user as well."""
    command = InProcessCommandLine(tmp_path, None, None)
    del command.env["STEADYHAND_DATA_DIR"]
    return command


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(60)
        yield sock


def wide_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if len(line) > 80]


@pytest.fixture
def port() -> Iterator[int]:
    """A port that nobody else gets."""
    with ReservedPort() as reserved:
        yield reserved.number


def test_a_service_runs_on_what_it_wrote_and_knows_the_key_that_it_printed(
    tmp_path: Path, world_dir: Path, standin: Path, manager: socket.socket, port: int
) -> None:
    command = CommandLine(world_dir, None, None)
    del command.env["STEADYHAND_DATA_DIR"]
    done = command("init", "--port", str(port), "--data-dir", "data")
    assert (done.code, done.err) == (0, "")
    (key,) = [word for word in done.out.split() if word.startswith("sh_admin_")]
    assert (world_dir / "data" / "admin.key").stat().st_mode & 0o777 == 0o600
    command.env |= {
        "STEADYHAND_RUNNER__CLAUDE__PATH": str(standin),
        "ANTHROPIC_API_KEY": DUMMY_API_KEY,
        "ANTHROPIC_BASE_URL": UNUSED_MODEL_URL,
    }
    told = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    with command.running("serve", more_env=told) as process:
        read_until(process.stdout, f"http://127.0.0.1:{port}\n", 60)
        assert manager.recv(100) == b"READY=1"
        with Client(f"http://127.0.0.1:{port}", key) as client:
            assert {found.name for found in client.list_keys()} == {"admin.key"}
        assert command("jobs").code == 0, "commands here find the address and the key"
        process.send_signal(signal.SIGTERM)
        assert manager.recv(100) == b"STOPPING=1"
        assert process.wait(45) == 0


def test_the_file_fits_a_terminal_and_each_line_that_is_commented_out_is_valid(
    tmp_path: Path,
) -> None:
    text = starter_file(Path('/srv/a "b" \\c'), "::1", 8081)
    assert wide_lines(text) == []
    (tmp_path / "credential").write_text("x")
    used = text.replace("#: ", "").replace("/etc/steadyhand/anthropic.key", str(tmp_path / "credential"))
    (tmp_path / "used.toml").write_text(used)
    settings = load_settings(tmp_path / "used.toml", environ={"HOME": str(tmp_path)})
    tables = settings.tables
    assert (str(tables.service.data_dir), tables.server.host, tables.server.port) == (
        '/srv/a "b" \\c',
        "::1",
        8081,
    )
    commented = [line for line in text.splitlines() if line.startswith("#: ") and "=" in line]
    assert len(commented) > 20
    assert len(tomllib.loads(text)["service"]) == 1
    assert tables.agents["reviewer"].workspace == "infra"
    (tmp_path / "fresh.toml").write_text(text)
    fresh = load_settings(tmp_path / "fresh.toml", environ={"HOME": str(tmp_path)}).tables
    assert (fresh.agents, fresh.workspaces, fresh.limits.max_budget_usd) == ({}, {}, None)


@pytest.mark.parametrize("there", ["steadyhand.toml", "steadyhand.service"])
def test_nothing_is_written_if_a_file_is_there_already(
    tmp_path: Path, steadyhand: CommandLine, there: str
) -> None:
    (tmp_path / there).symlink_to("/nowhere")
    done = steadyhand("init", "--systemd", "--data-dir", "data")
    assert (done.code, done.out) == (2, "")
    assert there in done.err
    assert [path.name for path in tmp_path.iterdir()] == [there]


def test_a_data_directory_that_cannot_be_made_leaves_nothing_behind(
    tmp_path: Path, steadyhand: CommandLine
) -> None:
    (tmp_path / "file").write_text("")
    done = steadyhand("init", "--systemd", "--data-dir", "file/data")
    assert done.code == 2
    assert "cannot be created" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_key_that_was_there_stays_and_is_not_shown_again(tmp_path: Path, steadyhand: CommandLine) -> None:
    first = json.loads(steadyhand("init", "--data-dir", "data", "--json").out)
    key = (tmp_path / "data" / "admin.key").read_text().strip()
    assert first["key"] == key
    (tmp_path / "steadyhand.toml").unlink()
    again = steadyhand("init", "--data-dir", "data", STEADYHAND_API_KEY="another-key-of-16")
    assert again.code == 0
    assert key not in again.out
    assert "STEADYHAND_API_KEY is set here" in again.err
    assert "another-key" not in again.out + again.err


def test_the_report_and_the_unit_fit_a_terminal_and_systemd_takes_the_unit(
    tmp_path: Path, steadyhand: CommandLine
) -> None:
    done = steadyhand("init", "--systemd", "--data-dir", "data")
    assert done.code == 0
    unit = (tmp_path / "steadyhand.service").read_text()
    paths = str(tmp_path)
    assert [line for line in wide_lines(done.out + unit) if paths not in line] == []
    verify(tmp_path / "steadyhand.service")


def verify(unit: Path) -> None:
    """Let systemd verify a unit, if it is on this machine; without the page of the manual, which is not installed."""
    program = shutil.which("systemd-analyze")
    if program is not None:
        command = [program, "--man=no", "verify", str(unit)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("is_root", [True, False])
def test_a_unit_names_any_path_as_it_is(tmp_path: Path, *, is_root: bool) -> None:
    program = tmp_path / "a b%h $HOME" / "steadyhand"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    folder = tmp_path / 'c d%h $HOME "q" \\t'
    installation = Installation(
        [str(program)], folder / "steadyhand.toml", folder / "data", "daemon", is_root, 0.5
    )
    unit = tmp_path / "steadyhand.service"
    unit.write_text(systemd_unit(installation))
    verify(unit)
    lines = dict(line.split("=", 1) for line in unit.read_text().splitlines() if "=" in line)
    assert lines["WorkingDirectory"] == f'{tmp_path}/c d%%h $HOME "q" \\t'
    assert lines["ReadWritePaths"] == f'"{tmp_path}/c d%%h $HOME \\"q\\" \\\\t/data"'
    quoted = f'"{tmp_path}/c d%%h $$HOME \\"q\\" \\\\t/steadyhand.toml"'
    assert lines["ExecStart"] == f'"{tmp_path}/a b%%h $HOME/steadyhand" --config {quoted} serve'
    assert lines["ExecReload"] == "/bin/kill -USR2 $MAINPID"
    assert lines["TimeoutStopSec"] == "61"
    assert ("User" in lines, lines["Type"]) == (not is_root, "notify")


@pytest.mark.parametrize("reattach_seconds", [0, 30])
def test_a_unit_ends_the_runs_with_the_service_unless_they_may_outlive_it(
    tmp_path: Path, reattach_seconds: float
) -> None:
    program = tmp_path / "steadyhand"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    installation = Installation(
        [str(program)], tmp_path / "f.toml", tmp_path / "data", "root", True, 1, reattach_seconds
    )
    unit = tmp_path / "steadyhand.service"
    text = systemd_unit(installation)
    unit.write_text("".join(each for each in text.splitlines(True) if "DelegateSubgroup" not in each))
    verify(unit)  # without the line that systemd has known since version 254
    lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    assert lines["KillMode"] == ("process" if reattach_seconds else "mixed")
    assert ("DelegateSubgroup" in lines) == bool(reattach_seconds)
    assert "Environment" not in lines


def test_a_unit_for_an_earlier_systemd_ends_the_runs_with_the_service(tmp_path: Path) -> None:
    installation = Installation(
        ["/bin/true"], tmp_path / "f.toml", tmp_path / "data", "root", True, 1, 30, systemd_version=252
    )
    unit = tmp_path / "steadyhand.service"
    unit.write_text(systemd_unit(installation))
    verify(unit)
    lines = dict(line.split("=", 1) for line in unit.read_text().splitlines() if "=" in line)
    assert (lines["KillMode"], lines["Environment"]) == ("mixed", "STEADYHAND_SERVICE__REATTACH_SECONDS=0")


def test_the_version_of_systemd_is_that_of_this_machine() -> None:
    program = shutil.which("systemctl")
    told = "" if program is None else subprocess.check_output([program, "--version"], text=True)
    assert find_systemd_version() == int(re.findall(r"^systemd (\d+)", told + "systemd 0", re.MULTILINE)[0])


def test_the_unit_of_a_worker_runs_that_command_and_is_else_the_same(tmp_path: Path) -> None:
    texts = [
        systemd_unit(
            Installation(["/bin/true"], tmp_path / "f.toml", tmp_path, "root", True, 1, role=role)
        ).splitlines()
        for role in ("serve", "worker")
    ]
    changed = [pair for pair in zip(*texts, strict=True) if pair[0] != pair[1]]
    config = f"ExecStart=/bin/true --config {tmp_path}/f.toml"
    assert changed == [(f"{config} serve", f"{config} worker")]


@pytest.mark.parametrize("path", ["/a\nExecStart=/bin/sh", "/a\x00b", "/a\x7f", "/trailing ", "/back\\"])
def test_a_path_that_could_be_more_than_a_path_is_refused(path: str) -> None:
    installation = Installation(["/bin/true"], Path(path) / "f", Path("/data"), "daemon", True, 1)
    directory = Installation(["/bin/true"], Path("/etc/f"), Path(path), "daemon", True, 1)
    program = Installation(["/a'b"], Path("/etc/f"), Path("/data"), "daemon", True, 1)
    for each in (installation, directory, program):
        with pytest.raises(ConfigError):
            systemd_unit(each)
