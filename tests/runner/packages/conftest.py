"""A data directory with Node, and a registry that the user's own configuration of npm names."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from tests.clients.client_programs import NODE
from tests.runner.packages.package_registry import PackageRegistry

from steadyhand.config.settings import load_settings
from steadyhand.runner.packages.installed import RECORD_NAME, InstalledPackage, packages_dir
from steadyhand.runner.packages.installer import Installer
from steadyhand.runner.packages.package_list import NODE_PACKAGE, Package
from steadyhand.serve.package_setup import open_install_place

OpenInstaller = Callable[[], AbstractAsyncContextManager[Installer]]


def place_node(data_dir: Path) -> Path:
    """Install the Node of the clients' tests, by links to its files, as the installer would."""
    directory = packages_dir(data_dir) / "node" / NODE_PACKAGE.version
    directory.mkdir(parents=True)
    assert NODE.is_file(), "Node is not installed: run `sh tools/clients.sh codex`"
    root = NODE.parents[1]
    shutil.copytree(root, directory / root.name, symlinks=True, copy_function=os.link)
    (directory / RECORD_NAME).write_text(f'{{"lock": "{NODE_PACKAGE.digest}"}}')
    return directory


@pytest.fixture
def registry() -> Iterator[PackageRegistry]:
    with PackageRegistry() as served:
        yield served


@pytest.fixture
def data_dir(world_dir: Path, registry: PackageRegistry, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with Node; npm is configured for the registry in a file that only its owner may read."""
    npmrc = world_dir / "npmrc"
    host = registry.url.removeprefix("http:")
    npmrc.write_text(f"registry={registry.url}/\n{host}/:_authToken=${{REGISTRY_TOKEN}}\nfetch-retries=0\n")
    npmrc.chmod(0o600)
    for name in [name for name in os.environ if name.lower().startswith(("npm_config", "steadyhand"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("npm_config_userconfig", str(npmrc))
    monkeypatch.setenv("REGISTRY_TOKEN", "token-of-the-registry")
    data_dir = world_dir / "data"
    data_dir.mkdir()
    place_node(data_dir)
    return data_dir


@pytest.fixture(params=["bwrap", "none"])
def open_installer(data_dir: Path, request: pytest.FixtureRequest) -> OpenInstaller:
    """Return what opens an installer: in a sandbox, and without one."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Installer]:
        settings = load_settings(None, {"service.data_dir": data_dir})
        async with open_install_place(settings, without_sandbox=request.param == "none") as place:
            yield Installer(data_dir, place, lambda _: None)

    return opened


def install(open_installer: OpenInstaller, package: Package) -> InstalledPackage:
    async def run() -> InstalledPackage:
        async with open_installer() as installer:
            [installed] = await installer.install([package])
        return installed

    return asyncio.run(run())
