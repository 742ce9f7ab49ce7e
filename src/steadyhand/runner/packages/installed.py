"""The installed packages of a data directory: found, listed and removed.

A folder counts once it has its final name `<data-dir>/packages/NAME/VERSION`, which it gets when it is whole.
"""

import contextlib
import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from steadyhand.errors import NotFound, RetryLater
from steadyhand.ports import DEFAULT_PATH
from steadyhand.runner.packages.package_list import AGENT_PACKAGES, NODE_PACKAGE, Package

FOLDER_NAME = "packages"
RECORD_NAME = "installed.json"
"""The file in an installed folder with the digest of the lock that it was made from."""
STAGING_PREFIX = ".new-"


@dataclass(frozen=True, slots=True)
class InstalledPackage:
    """A folder of an installed package: its version, and the digest of the lock that it was made from."""

    name: str
    version: str
    directory: Path
    digest: str


@dataclass(frozen=True, slots=True)
class InstalledAgent:
    """The program of an installed agent.

    `argv` starts it: the program alone, or Node and the script. A sandbox has to show its `directories`.
    """

    name: str
    version: str
    program: Path
    argv: tuple[str, ...]
    directories: tuple[Path, ...]


def packages_dir(data_dir: Path) -> Path:
    """Return the folder of all installed packages."""
    return data_dir.absolute() / FOLDER_NAME


def list_installed(data_dir: Path, name: str) -> list[InstalledPackage]:
    """Return the installed versions of a package, the newest first."""
    found = []
    for directory in (packages_dir(data_dir) / name).glob("*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads((directory / RECORD_NAME).read_text("utf-8"))
            found.append(InstalledPackage(name, directory.name, directory, str(record["lock"])))
    return sorted(found, key=lambda each: _version_key(each.version), reverse=True)


def find_installed(
    data_dir: Path, name: str, packages: Mapping[str, Package] = AGENT_PACKAGES
) -> InstalledAgent | None:
    """Return the newest installed version of an agent; None if none is installed, or if its Node is missing."""
    package = packages.get(name)
    if package is None:
        return None
    for installed in list_installed(data_dir, name):
        program = locate(installed.directory, package)
        if program is None:
            continue
        if not package.needs_node:
            argv: tuple[str, ...] = (str(program),)
            return InstalledAgent(name, installed.version, program, argv, (installed.directory,))
        node = find_node(data_dir)
        if node is None:
            return None
        argv = (str(node), str(program))
        own = [node.parent.parent] if node.is_relative_to(packages_dir(data_dir)) else []
        return InstalledAgent(name, installed.version, program, argv, (installed.directory, *own))
    return None


def locate(directory: Path, package: Package) -> Path | None:
    """Return the program of a package below a folder; None if it is not there."""
    found = sorted(directory.glob(package.program), key=lambda path: (len(str(path)), path))
    return found[0] if found and found[0].is_file() else None


def find_node(data_dir: Path) -> Path | None:
    """Return the installed Node, else this machine's own below `/usr`, which every sandbox shows; None if none is."""
    for installed in list_installed(data_dir, NODE_PACKAGE.name):
        program = locate(installed.directory, NODE_PACKAGE)
        if program is not None:
            return program
    return system_program("node")


def system_program(name: str) -> Path | None:
    """Return a program of this machine that every sandbox shows, without links; None if there is none."""
    found = shutil.which(name, path=DEFAULT_PATH)
    resolved = None if found is None else Path(found).resolve()
    return resolved if resolved is not None and resolved.is_relative_to("/usr") else None


def remove_installed(data_dir: Path, name: str) -> list[str]:
    """Remove all versions of a package and return them. Raise `NotFound` if there is none."""
    with packages_lock(data_dir):
        folder = packages_dir(data_dir) / name
        versions = [each.version for each in list_installed(data_dir, name)]
        if not versions:
            raise NotFound(f"{name} is not installed.")
        discard(folder, packages_dir(data_dir))
    return versions


def discard(folder: Path, parent: Path) -> None:
    """Remove a folder; at once it has a name that does not count."""
    trash = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=parent))
    folder.rename(trash / folder.name)
    shutil.rmtree(trash)


@contextlib.contextmanager
def packages_lock(data_dir: Path) -> Iterator[None]:
    """Exclude other installs and removals, and remove the files that a killed one left.

    Raise `RetryLater` if another one is at work.
    """
    folder = packages_dir(data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RetryLater(f"Another install or removal is at work in {folder}.", retry_after=30) from error
        for leftover in folder.glob(f"{STAGING_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def _version_key(version: str) -> tuple[list[int], bool, str]:
    """Return the key that orders versions: the numbers, and a release after its previews."""
    numbers, _, preview = version.partition("-")
    return [int(part) if part.isdigit() else -1 for part in numbers.split(".")], not preview, preview
