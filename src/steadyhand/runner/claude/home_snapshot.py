"""The files of a home and a config directory as they were before the first job, so that they can be made so again.

Only the agent's own program has written there: an agent without tools writes no file. No symlink is followed.
"""

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

_MAX_BYTES = 4 << 20
_MAX_FILES = 2_000
_OWN_DIRS = ("sessions",)
"""Folders of the config directory that describe the running process, such as its session's id."""
_FILE_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Files = dict[PurePosixPath, bytes | None]
"""The content of files by their paths; None is a folder, or a socket of the program."""


class HomeSnapshot:
    """The content of the files in some folders. A folder is known by its place in the order."""

    def __init__(self, folders: Sequence[Files] | None) -> None:
        self._folders = folders

    @classmethod
    def of(cls, folders: Sequence[Path]) -> "HomeSnapshot":
        """Read folders; blocks. If there is too much in them, the snapshot can restore nothing."""
        try:
            return cls([_read(folder) for folder in folders])
        except (OSError, ValueError):
            return cls(None)

    def restore(self, folders: Sequence[Path]) -> bool:
        """Make folders as they were: other files go, changed ones get their content back. Return False on a failure."""
        if self._folders is None:
            return False
        try:
            for folder, files in zip(folders, self._folders, strict=True):
                _restore(folder, files)
        except OSError:
            return False
        return True


def _entries(folder: Path) -> Iterator[tuple[PurePosixPath, str, int, bool]]:
    """Yield the path, the name, the descriptor of its folder, and True for a folder, the deepest first."""
    for path, folders, names, handle in os.fwalk(folder, topdown=False, follow_symlinks=False):
        inner = PurePosixPath(path).relative_to(PurePosixPath(folder))
        if inner.parts[:1] and inner.parts[0] in _OWN_DIRS:
            continue
        for name in names:
            yield inner / name, name, handle, False
        for name in folders:
            if (inner / name).parts[0] not in _OWN_DIRS:
                is_link = stat.S_ISLNK(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode)
                yield inner / name, name, handle, not is_link


def _read(folder: Path) -> Files:
    files: Files = {}
    size = 0
    for path, name, handle, is_dir in _entries(folder):
        if is_dir:
            files[path] = None
            continue
        content = files[path] = _read_file(name, handle)
        size += len(content or b"")
        if size > _MAX_BYTES or len(files) > _MAX_FILES:
            raise ValueError("too much")
    return files


def _read_file(name: str, handle: int) -> bytes | None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode):
            return None
        with os.fdopen(os.open(name, os.O_RDONLY | _FILE_FLAGS, dir_fd=handle), "rb") as file:
            return file.read(_MAX_BYTES + 1)
    return None


def _restore(folder: Path, files: Files) -> None:
    for path, name, handle, is_dir in _entries(folder):
        if is_dir:
            if path not in files:
                with contextlib.suppress(OSError):  # not empty: a folder of the program's own, such as `tmp`
                    os.rmdir(name, dir_fd=handle)
            continue
        wanted = files.get(path)
        if path not in files:
            os.unlink(name, dir_fd=handle)
        elif wanted is not None and _read_file(name, handle) != wanted:
            with os.fdopen(
                os.open(name, os.O_WRONLY | os.O_TRUNC | _FILE_FLAGS, dir_fd=handle), "wb"
            ) as file:
                file.write(wanted)
