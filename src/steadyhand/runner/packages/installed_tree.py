"""Checks of an installed tree: it is as the lock says, and nobody but its owner may change it."""

import os
import platform
import stat
from collections.abc import Iterator, Mapping
from json import loads
from pathlib import Path

from steadyhand.errors import InstallError

_CPU_NAMES = {"x86_64": "x64", "aarch64": "arm64"}
_EXECUTABLE = 0o111


def check_against_lock(directory: Path, entries: Mapping[str, Mapping[str, object]], libc: str) -> None:
    """Raise `InstallError` unless each package that the lock has for this machine is there in its version.

    npm leaves out an optional package that it could not get, and says nothing.
    """
    for path, entry in entries.items():
        if is_for_this_machine(entry, libc) and _installed_version(directory / path) != entry["version"]:
            name = path.rpartition("node_modules/")[2]
            raise InstallError(
                f"The package {name} {entry['version']} could not be installed as it is pinned: "
                "the registry has it not, or has another one by this name."
            )


def is_for_this_machine(entry: Mapping[str, object], libc: str) -> bool:
    """Return True if an entry of a lock is for Linux, this processor and this C library, or for all."""
    own = {"os": "linux", "cpu": _CPU_NAMES.get(platform.machine(), platform.machine()), "libc": libc}
    for field, name in own.items():
        wanted = entry.get(field)
        if isinstance(wanted, list) and name not in wanted:
            return False
    return True


def this_libc() -> str:
    """Return the name of this machine's C library, as npm has it."""
    return "glibc" if platform.libc_ver()[0] == "glibc" else "musl"


def _installed_version(directory: Path) -> object:
    try:
        return loads((directory / "package.json").read_text("utf-8")).get("version")
    except (OSError, ValueError, AttributeError):
        return None


def seal_tree(directory: Path) -> None:
    """Change a tree to files of this process's user, readable for all and writable for nobody else.

    No other process may use it meanwhile.

    Raise `InstallError` if it has a link that leads out, or a file of another kind.
    """
    root = directory.resolve()
    for path in _walk(directory):
        info = path.lstat()
        os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)
        if stat.S_ISLNK(info.st_mode):
            if not path.resolve().is_relative_to(root):
                raise InstallError(f"{path.relative_to(directory)} is a link that leads out of the package.")
        elif stat.S_ISDIR(info.st_mode):
            path.chmod(0o755)
        elif stat.S_ISREG(info.st_mode):
            path.chmod(0o755 if info.st_mode & _EXECUTABLE else 0o644)
        else:
            raise InstallError(f"{path.relative_to(directory)} is neither a file nor a folder.")


def _walk(directory: Path) -> Iterator[Path]:
    yield directory
    for parent, folders, files in os.walk(directory, followlinks=False):
        for name in (*folders, *files):
            yield Path(parent, name)
