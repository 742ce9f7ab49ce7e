"""Packages are installed by the real npm from a registry on loopback: whole as they are pinned, or not at all."""

import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.runner.packages.conftest import OpenInstaller, install
from tests.runner.packages.package_registry import PackageRegistry, make_package, pack

from steadyhand.errors import InstallError, RetryLater
from steadyhand.runner.packages.installed import (
    find_installed,
    list_installed,
    packages_dir,
    packages_lock,
)
from steadyhand.runner.packages.package_list import Package

IN_A_SANDBOX = pytest.mark.parametrize("open_installer", ["bwrap"], indirect=True)
WITHOUT_SANDBOX = pytest.mark.parametrize("open_installer", ["none"], indirect=True)
KILLED = """
import asyncio, signal, sys
from pathlib import Path
from steadyhand.config.settings import load_settings
from steadyhand.runner.packages.package_list import Package
from steadyhand.runner.packages.installer import Installer
from steadyhand.serve.package_setup import open_install_place

async def main(data_dir, locks, name, program):
    settings = load_settings(None, {"service.data_dir": data_dir})
    async with open_install_place(settings, without_sandbox=False) as place:
        await Installer(data_dir, place, print).install([Package(name, program, locks=locks)])

signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the program does
asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]))
"""


@pytest.fixture
def hello(world_dir: Path, registry: PackageRegistry) -> Package:
    """A package with a program, a dependency, an optional one of another machine, and scripts of each kind."""
    marker = f"touch {world_dir / 'marker'}; touch marker"
    scripts = dict.fromkeys(("preinstall", "install", "postinstall", "prepare"), marker)
    world_dir.joinpath("marker").unlink(missing_ok=True)
    dependency = pack("greeting", files={"index.js": "exports.text = 'hello'"}, scripts=scripts)
    other = pack("greeting-win32", os=["win32"], files={"index.js": ""})
    main = pack(
        "@tests/hello",
        files={"bin/hello.js": "console.log(require('greeting').text)"},
        bin={"hello": "bin/hello.js"},
        dependencies={"greeting": "1.0.0"},
        optionalDependencies={"greeting-win32": "1.0.0"},
        scripts=scripts,
    )
    registry.add(main, dependency, other)
    tree = {"@tests/hello": main, "greeting": dependency, "greeting-win32": other}
    return make_package(
        world_dir / "locks", "hello", tree, program="@tests/hello/bin/hello.js", needs_node=True
    )


def left_below(data_dir: Path, name: str) -> list[str]:
    """Return what is left of a package and of staging folders; the empty lock and Node are no part of it."""
    folder = packages_dir(data_dir)
    own = [str(path.relative_to(folder)) for path in (folder / name).rglob("*")]
    return own + [path.name for path in folder.iterdir() if path.name not in ("node", ".lock", name)]


def test_a_package_is_installed_with_its_dependency_and_none_of_its_scripts_is_run(
    data_dir: Path, world_dir: Path, hello: Package, registry: PackageRegistry, open_installer: OpenInstaller
) -> None:
    installed = install(open_installer, hello)
    assert installed.directory == data_dir / "packages" / "hello" / "1.0.0"
    found = find_installed(data_dir, "hello", {"hello": hello})
    assert found is not None
    assert (found.version, found.directories[0]) == ("1.0.0", installed.directory)
    assert subprocess.run(found.argv, capture_output=True, timeout=60, check=True).stdout == b"hello\n"
    assert sorted(path.name for path in (installed.directory / "node_modules").iterdir()) == [
        ".package-lock.json",
        "@tests",
        "greeting",
    ]
    assert not [*world_dir.rglob("marker")]
    assert registry.tokens == {"Bearer token-of-the-registry"}


@IN_A_SANDBOX
def test_all_may_read_what_is_installed_and_its_owner_alone_may_write(
    data_dir: Path, hello: Package, open_installer: OpenInstaller
) -> None:
    installed = install(open_installer, hello)
    paths = [installed.directory, *installed.directory.rglob("*"), *installed.directory.parents[:2]]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in paths}
    assert modes == {0o755, 0o644}
    assert {(path.stat().st_uid, path.stat().st_gid) for path in paths} == {(os.geteuid(), os.getegid())}
    program = installed.directory / "node_modules/@tests/hello/bin/hello.js"
    assert stat.S_IMODE(program.stat().st_mode) == 0o755


@WITHOUT_SANDBOX
def test_a_second_install_asks_the_registry_nothing(
    hello: Package, registry: PackageRegistry, open_installer: OpenInstaller
) -> None:
    first = install(open_installer, hello)
    asked, changed = len(registry.paths), first.directory.stat().st_mtime_ns
    assert install(open_installer, hello) == first
    assert (len(registry.paths), first.directory.stat().st_mtime_ns) == (asked, changed)


@WITHOUT_SANDBOX
def test_a_newer_version_stands_beside_the_older_one_and_is_found(
    data_dir: Path, world_dir: Path, hello: Package, registry: PackageRegistry, open_installer: OpenInstaller
) -> None:
    install(open_installer, hello)
    newer = pack("@tests/hello", "1.10.0", {"bin/hello.js": ""})
    registry.add(newer)
    package = make_package(
        world_dir / "newer", "hello", {"@tests/hello": newer}, program="@tests/hello/bin/hello.js"
    )
    install(open_installer, package)
    assert [each.version for each in list_installed(data_dir, "hello")] == ["1.10.0", "1.0.0"]
    found = find_installed(data_dir, "hello", {"hello": package})
    assert found is not None
    assert found.version == "1.10.0"


@IN_A_SANDBOX
@pytest.mark.parametrize("name", ["@tests/hello", "greeting"])
def test_a_tarball_with_another_digest_is_refused_and_leaves_nothing(
    data_dir: Path, hello: Package, registry: PackageRegistry, open_installer: OpenInstaller, name: str
) -> None:
    package = registry.packages[name]
    other = pack(name, files={"bin/hello.js": "console.log('owned')", "index.js": "owned"})
    registry.packages[name] = replace(package, tarball=other.tarball)
    with pytest.raises(InstallError, match=r"npm could not fetch hello 1\.0\.0: .*EINTEGRITY"):
        install(open_installer, hello)
    assert left_below(data_dir, "hello") == []


@WITHOUT_SANDBOX
@pytest.mark.parametrize("fault", ["tampered", "missing"])
def test_a_program_in_an_optional_package_is_not_left_out_silently(
    data_dir: Path, world_dir: Path, registry: PackageRegistry, open_installer: OpenInstaller, fault: str
) -> None:
    binary = pack("native-linux", os=["linux"], files={"bin/native": "#!/bin/sh\n"})
    main = pack("native", optionalDependencies={"native-linux": "1.0.0"})
    tree = {"native": main, "native-linux": binary}
    package = make_package(world_dir / "locks", "native", tree, program="native-linux/bin/native")
    registry.add(main)
    if fault == "tampered":
        registry.add(replace(binary, tarball=pack("native-linux", files={"bin/native": "owned"}).tarball))
    with pytest.raises(InstallError, match=r"native-linux 1\.0\.0|EINTEGRITY"):
        install(open_installer, package)
    assert left_below(data_dir, "native") == []


def test_a_package_at_another_host_is_not_fetched_in_the_sandbox(
    data_dir: Path, hello: Package, registry: PackageRegistry, open_installer: OpenInstaller,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    with PackageRegistry() as other:
        greeting = registry.packages["greeting"]
        registry.packages["greeting"] = replace(greeting, tarball_host=other.url)
        other.add(greeting)
        if request.node.callspec.params["open_installer"] == "none":
            install(open_installer, hello)
            assert len(other.paths) == 1
            return
        host = other.url.removeprefix("http://")
        with pytest.raises(InstallError, match=f"It asked for {host}, which it may not reach"):
            install(open_installer, hello)
        assert other.paths == []
    assert left_below(data_dir, "hello") == []


@IN_A_SANDBOX
def test_a_registry_that_is_not_there_is_said_and_leaves_nothing(
    data_dir: Path, world_dir: Path, hello: Package, open_installer: OpenInstaller
) -> None:
    npmrc = world_dir / "npmrc"
    npmrc.write_text("registry=http://127.0.0.1:1/\nfetch-retries=0\n")
    with pytest.raises(InstallError, match=r"npm could not fetch hello 1\.0\.0"):
        install(open_installer, hello)
    assert left_below(data_dir, "hello") == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_install_that_is_killed_leaves_nothing_that_counts_and_no_process(
    data_dir: Path, world_dir: Path, hello: Package, registry: PackageRegistry, number: signal.Signals
) -> None:
    registry.hold = "greeting"
    argv = [sys.executable, "-c", KILLED, str(data_dir), str(world_dir / "locks"), "hello", hello.program]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert registry.holding.wait(90)
    finally:
        process.send_signal(number)
        process.wait(60)
    assert registry.client_gone.wait(30), "npm goes on"
    assert find_installed(data_dir, "hello", {"hello": hello}) is None
    assert list_installed(data_dir, "hello") == []
    if number == signal.SIGKILL:
        with packages_lock(data_dir):  # as the next install takes it
            pass
    assert left_below(data_dir, "hello") == []


def test_a_second_one_at_the_same_time_is_sent_away(data_dir: Path) -> None:
    with packages_lock(data_dir), pytest.raises(RetryLater), packages_lock(data_dir):
        pass
