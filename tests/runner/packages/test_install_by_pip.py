"""A package that pip brings, as Node is: from the index of pip's configuration, checked by its digest."""

import hashlib
import stat
from pathlib import Path

import pytest
from tests.runner.packages.conftest import OpenInstaller, install
from tests.runner.packages.package_registry import make_wheel

import steadyhand.runner.packages.installer
from steadyhand.errors import InstallError
from steadyhand.runner.packages.installed import list_installed, locate
from steadyhand.runner.packages.package_list import Package

PROGRAM = "tool_wheel/bin/tool"


def make_tool(world_dir: Path, monkeypatch: pytest.MonkeyPatch, digest: str | None = None) -> Package:
    """Write a wheel into a folder that pip is configured for, and a lock of it; it takes the place of Node's."""
    folder = world_dir / "wheels"
    folder.mkdir()
    wheel = make_wheel(folder, "tool_wheel", {PROGRAM: "#!/bin/sh\necho tool\n", "tool_wheel/text": "text"})
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    lock = world_dir / "locks" / "tool" / "requirements.txt"
    lock.parent.mkdir(parents=True)
    digest = digest or hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock.write_text(f"tool-wheel==1.0.0 --hash=sha256:{digest}\n")
    package = Package("tool", PROGRAM, locks=world_dir / "locks")
    monkeypatch.setattr(steadyhand.runner.packages.installer, "NODE_PACKAGE", package)
    return package


def test_a_wheel_is_installed_with_its_program(
    world_dir: Path, data_dir: Path, open_installer: OpenInstaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = make_tool(world_dir, monkeypatch)
    installed = install(open_installer, package)
    assert installed.directory == data_dir / "packages" / "tool" / "1.0.0"
    program = locate(installed.directory, package)
    assert program == installed.directory / PROGRAM
    assert stat.S_IMODE(program.stat().st_mode) == 0o755
    assert (installed.directory / "tool_wheel" / "text").read_text() == "text"


@pytest.mark.parametrize("open_installer", ["bwrap"], indirect=True)
def test_a_wheel_with_another_digest_is_refused(
    world_dir: Path, data_dir: Path, open_installer: OpenInstaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = make_tool(world_dir, monkeypatch, digest="0" * 64)
    with pytest.raises(InstallError, match=r"pip could not fetch tool 1\.0\.0: .*HASHES"):
        install(open_installer, package)
    assert list_installed(data_dir, "tool") == []
