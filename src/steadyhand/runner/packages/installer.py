"""Installs packages below a data directory: fetched by npm or pip, checked by digests, and renamed when whole."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from steadyhand.agents import Agent, Workspace
from steadyhand.errors import InstallError
from steadyhand.ports import DEFAULT_PATH, AgentPaths, BindMount, Checkout, JobPaths, SandboxExec
from steadyhand.runner.packages.installed import (
    RECORD_NAME,
    STAGING_PREFIX,
    InstalledPackage,
    discard,
    find_node,
    list_installed,
    locate,
    packages_dir,
    packages_lock,
    system_program,
)
from steadyhand.runner.packages.installed_tree import check_against_lock, seal_tree, this_libc
from steadyhand.runner.packages.package_list import NODE_PACKAGE, Package
from steadyhand.runner.packages.registry_clients import (
    RegistrySettings,
    read_npm_settings,
    read_pip_settings,
)
from steadyhand.text_lines import split_lines

OLDEST_NODE = (22, 19)
"""An older one silently gets older agents."""
INSTALL_SECONDS = 1800.0
_MAX_OUTPUT = 1 << 20
_MAX_REASON_LINES, _MAX_REASON_LENGTH = 4, 200
_NPM_OPTIONS = (
    "--ignore-scripts",
    "--no-bin-links",
    "--no-audit",
    "--no-fund",
    "--no-update-notifier",
    "--loglevel=error",
)
_PIP_OPTIONS = (
    "--no-deps",
    "--only-binary=:all:",
    "--require-hashes",
    "--no-compile",
    "--no-cache-dir",
    "--disable-pip-version-check",
    "--no-warn-script-location",
    "--quiet",
)
_SANDBOX_ETC = Path("/opt/etc")
"""The folder of a sandbox for files of `/etc`: its own `/etc` has no place for them."""


@dataclass(frozen=True, slots=True)
class InstallPlace:
    """The place in which the clients of the registries run: `uid` is their user, None is the service's.

    `refused_hosts` returns the hosts that they asked for and did not reach.
    """

    sandbox_exec: SandboxExec
    agent_paths: Callable[[Checkout], AgentPaths]
    sandboxed: bool
    uid: int | None = None
    refused_hosts: Callable[[], Sequence[str]] = field(default=tuple)
    proxy_env: Mapping[str, str] = field(default_factory=dict)
    """The variables by which the clients find the way out, if there is one alone."""


@dataclass(frozen=True, slots=True)
class _Client:
    """A client of a registry: its command, the settings that it needs, and the folders of its program."""

    name: str
    argv: tuple[str, ...]
    settings: RegistrySettings
    folders: tuple[Path, ...]


class Installer:
    """Installs packages into a data directory."""

    def __init__(self, data_dir: Path, place: InstallPlace, report: Callable[[str], None]) -> None:
        """Create it. `report` gets a line for each package that is fetched."""
        self._data_dir = data_dir
        self._place = place
        self._report = report

    async def install(self, packages: Sequence[Package]) -> list[InstalledPackage]:
        """Install these packages, and Node if it is needed; return those that are there now.

        A package that is there in its version is left as it is. Raise `InstallError`.
        """
        installed = []
        with packages_lock(self._data_dir):
            for package in packages:
                found = self._find(package)
                if found is None:
                    found = await self._install(package)
                elif package.needs_node:
                    await self._usable_node()
                installed.append(found)
        return installed

    def _find(self, package: Package) -> InstalledPackage | None:
        """Return the installed version of a package that was made from the same lock."""
        wanted = (package.version, package.digest)
        same = (
            each
            for each in list_installed(self._data_dir, package.name)
            if (each.version, each.digest) == wanted
        )
        return next((each for each in same if locate(each.directory, package) is not None), None)

    async def _install(self, package: Package) -> InstalledPackage:
        parent = packages_dir(self._data_dir)
        node = None if package.name == NODE_PACKAGE.name else await self._usable_node()
        self._report(f"Installing {package.name} {package.version}.")
        staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=parent))
        try:
            checkout = self._make_checkout(staging)
            if node is None:
                await self._fetch_by_pip(package, checkout)
            else:
                await self._fetch_by_npm(package, checkout, node)
                check_against_lock(checkout.directory, package.read_lock(), this_libc())
            seal_tree(checkout.directory)
            if locate(checkout.directory, package) is None:
                raise InstallError(f"{package.name} {package.version} has no program for this machine.")
            record = {"name": package.name, "version": package.version, "lock": package.digest}
            (checkout.directory / RECORD_NAME).write_text(json.dumps(record), "utf-8")
            os.sync()  # a name must not outlive its content when the machine loses power
            return self._give_name(checkout.directory, package)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _make_checkout(self, staging: Path) -> Checkout:
        """Create the folders in which a client works: those of a checkout, of its own user."""
        staging.chmod(0o711)
        paths, uid = JobPaths(staging), self._place.uid
        for directory in (paths.checkout, paths.home, paths.config_dir):
            directory.mkdir(mode=0o700)
            if uid is not None:
                os.chown(directory, uid, uid)
        return Checkout(Workspace("install"), paths, paths.checkout, paths.home, paths.config_dir, uid, None)

    def _give_name(self, directory: Path, package: Package) -> InstalledPackage:
        parent = packages_dir(self._data_dir)
        final = parent / package.name / package.version
        final.parent.mkdir(exist_ok=True)
        final.parent.chmod(0o755)
        if final.exists():  # of another lock, or without a record
            discard(final, parent)
        directory.rename(final)
        return InstalledPackage(package.name, package.version, final, package.digest)

    # --- Node and the clients -------------------------------------------------------------------

    async def _usable_node(self) -> Path:
        """Return a Node that is new enough and has npm: this machine's below `/usr`, else one that is installed."""
        system = system_program("node")
        if system is not None and system_program("npm") is not None and _is_new_enough(system):
            return system
        if self._find(NODE_PACKAGE) is None:
            await self._install(NODE_PACKAGE)
        node = find_node(self._data_dir)
        assert node is not None  # noqa: S101  # it was installed just now
        return node

    async def _fetch_by_npm(self, package: Package, checkout: Checkout, node: Path) -> None:
        script, folders = system_program("npm"), tuple[Path, ...]()
        if node.is_relative_to(packages_dir(self._data_dir)):
            root = node.parent.parent
            script, folders = root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js", (root,)
        npm = (str(node), str(script))
        for lock in package.lock_dir.iterdir():
            _give_file(lock, checkout.directory / lock.name)
        client = _Client(
            "npm",
            (*npm, "ci", *_NPM_OPTIONS),
            read_npm_settings(npm, checkout.paths.root),
            folders,
        )
        await self._run(client, package, checkout)

    async def _fetch_by_pip(self, package: Package, checkout: Checkout) -> None:
        requirements = package.lock_file.name
        _give_file(package.lock_file, checkout.directory / requirements)
        argv = (sys.executable, "-m", "pip", "install", *_PIP_OPTIONS)
        client = _Client(
            "pip",
            (*argv, "--target", "tree", "-r", requirements),
            read_pip_settings(checkout.paths.root),
            tuple({Path(sys.prefix), Path(sys.base_prefix)}),
        )
        await self._run(client, package, checkout)
        for path in (checkout.directory / "tree").iterdir():
            path.rename(checkout.directory / path.name)
        (checkout.directory / "tree").rmdir()

    async def _run(self, client: _Client, package: Package, checkout: Checkout) -> None:
        """Run a client in an empty folder with the lock. Raise `InstallError` with its reason if it fails."""
        binds, env = self._show(client)
        checkout = replace(checkout, binds=binds)
        view = self._place.agent_paths(checkout)
        env |= {
            "PATH": os.pathsep.join((str(Path(client.argv[0]).parent), DEFAULT_PATH)),
            "HOME": str(view.home),
            "PWD": str(view.directory),
            "TMPDIR": str(view.home),
            "LANG": "C.UTF-8",
            **self._place.proxy_env,
        }
        agent = Agent("install", egress=client.settings.hosts)
        done = await self._place.sandbox_exec.run(
            client.argv,
            checkout,
            agent,
            env=env,
            timeout_seconds=INSTALL_SECONDS,
            max_output=_MAX_OUTPUT,
        )
        if done.exit_code != 0:
            raise InstallError(self._failure_text(client, package, done.stderr or done.stdout))

    def _show(self, client: _Client) -> tuple[tuple[BindMount, ...], dict[str, str]]:
        """Return the mounts of a sandbox for a client, and its variables with the paths that are valid there."""
        env = dict(client.settings.env)
        if not self._place.sandboxed:
            return (), env
        binds = []
        for path in (*client.folders, *client.settings.files):
            if path.is_relative_to("/usr"):
                continue
            target = _SANDBOX_ETC / path.relative_to("/etc") if path.is_relative_to("/etc") else path
            info = path.stat()
            is_private = not info.st_mode & stat.S_IROTH  # its user could not read it
            binds.append(BindMount(path, target, owner=info.st_uid if is_private else None))
            env = {name: str(target) if value == str(path) else value for name, value in env.items()}
        return tuple(binds), env

    def _failure_text(self, client: _Client, package: Package, output: bytes) -> str:
        lines = _reason_lines(split_lines(output.decode("utf-8", "replace")))
        reason = "; ".join(lines) if lines else "it was stopped, or took too long"
        hosts = self._place.refused_hosts()
        refused = f" It asked for {', '.join(hosts)}, which it may not reach." if hosts else ""
        return f"{client.name} could not fetch {package.name} {package.version}: {reason}.{refused}"


def _reason_lines(lines: Iterable[str]) -> list[str]:
    """Return the first lines of a client's errors that tell something, without their marks."""
    found = []
    for line in lines:
        text = line.strip()
        for mark in ("npm error", "npm warn", "ERROR:", "WARNING:"):
            text = text.removeprefix(mark).strip()
        if text and "complete log of this run" not in text and text not in found:
            found.append(text.rstrip(".")[:_MAX_REASON_LENGTH])
    return found[:_MAX_REASON_LINES]


def _is_new_enough(node: Path) -> bool:
    try:
        done = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=20, check=False)
        parts = done.stdout.strip().removeprefix("v").split(".")
        return (int(parts[0]), int(parts[1])) >= OLDEST_NODE
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return False


def _give_file(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())
    target.chmod(0o644)
