"""Read the upper layer of a job's overlay: it holds each path that the job changed, and no other.

An agent chose its names and its shape, and no git is asked. It is read by descriptors, no symlink is followed, and
the number of entries is bounded. Where a change may reach further than its own path, there is no answer, and a harvest
looks at the whole tree: after a rename of a folder, a change of what git ignores, or a repository inside the tree.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MAX_ENTRIES = 20_000
"""The number of entries of both layers that are read; with more changes a look at the whole tree costs less."""
MAX_DEPTH = 60
MAX_NAME_BYTES = 4 * 1024 * 1024
_OVERLAY = "trusted.overlay."
_PROOF = "trusted.steadyhand.read"
"""An attribute that only a process can set, and see, that sees the overlay's own ones."""
_OPAQUE, _OPAQUE_WHOLE = f"{_OVERLAY}opaque", b"y"
_HARMLESS = frozenset(f"{_OVERLAY}{name}" for name in ("opaque", "origin", "impure", "nlink", "uuid"))
_GIT_DIR = ".git"
_RULES = frozenset({".gitignore", ".gitattributes", ".gitmodules"})
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class LayerChanges:
    """The paths of a tree that may differ from the layer below; all others are as they were given.

    `git_dir` is False if the repository, `.git`, is as it was given.
    """

    names: frozenset[bytes]
    git_dir: bool

    @property
    def is_empty(self) -> bool:
        """True if the whole checkout is as it was given."""
        return not self.names and not self.git_dir


class _Unclear(Exception):  # the whole tree has to be looked at; no error of a caller
    """The layer does not say all by itself, or it is too large to be read."""


def read_changes(upper: Path, lower: Path) -> LayerChanges | None:
    """Return the changes in an upper layer over `lower`; `None` if they are too many or not clear. Blocks."""
    try:
        with _opened(os.open(upper, _FLAGS)) as upper_fd, _opened(os.open(lower, _FLAGS)) as lower_fd:
            os.setxattr(upper_fd, _PROOF, b"")
            if _PROOF not in os.listxattr(upper_fd) or _is_opaque(upper_fd):
                return None
            reader = _LayerReader()
            reader.read_tree(upper_fd, lower_fd)
            return LayerChanges(frozenset(reader.names), reader.git_dir)
    except (OSError, _Unclear):
        return None


@contextlib.contextmanager
def _opened(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class _LayerReader:
    names: list[bytes] = field(default_factory=list)
    git_dir: bool = False
    _entries: int = 0
    _name_bytes: int = 0

    def read_tree(self, upper: int, lower: int | None, prefix: bytes = b"", depth: int = 0) -> None:
        """Add the changes below a folder that both layers have, or the upper one alone."""
        for entry in self._listed(upper, depth):
            if not prefix and entry.name == _GIT_DIR:
                self.git_dir = self._is_changed_repository(entry, upper)
                continue
            if entry.name == _GIT_DIR or entry.name in _RULES:
                raise _Unclear
            name = prefix + os.fsencode(entry.name)
            if not entry.is_dir(follow_symlinks=False):
                _require_ordinary(entry)
                self._add(name)
                self._add_hidden(entry.name, lower, name, depth)
                continue
            with _opened(os.open(entry.name, _FLAGS, dir_fd=upper)) as folder:
                below = _mode(entry.name, lower)
                if below is not None and stat.S_ISDIR(below) and not _is_opaque(folder):
                    with _opened(os.open(entry.name, _FLAGS, dir_fd=lower)) as lower_folder:
                        self.read_tree(folder, lower_folder, name + b"/", depth + 1)
                    continue
                _require_open(folder)
                if below is not None and not stat.S_ISDIR(below):
                    self._add(name)  # it is in the place of a file
                self._add_hidden(entry.name, lower, name, depth)
                self.read_tree(folder, None, name + b"/", depth + 1)

    def _is_changed_repository(self, entry: "os.DirEntry[str]", upper: int) -> bool:
        """Return True if more than folders is in the repository's upper layer: folders alone say nothing to git."""
        if not entry.is_dir(follow_symlinks=False):
            raise _Unclear
        with _opened(os.open(_GIT_DIR, _FLAGS, dir_fd=upper)) as folder:
            return self._has_entries(folder, 0)

    def _has_entries(self, folder: int, depth: int) -> bool:
        if _is_opaque(folder):
            return True
        for entry in self._listed(folder, depth):
            if not entry.is_dir(follow_symlinks=False):
                return True
            with _opened(os.open(entry.name, _FLAGS, dir_fd=folder)) as inner:
                if self._has_entries(inner, depth + 1):
                    return True
        return False

    def _add_hidden(self, entry: str, lower: int | None, name: bytes, depth: int) -> None:
        """Add the files of a folder of the lower layer that something else hides."""
        below = _mode(entry, lower)
        if below is not None and stat.S_ISDIR(below):
            with _opened(os.open(entry, _FLAGS, dir_fd=lower)) as folder:
                self._add_all(folder, name + b"/", depth + 1)

    def _add_all(self, folder: int, prefix: bytes, depth: int) -> None:
        for entry in self._listed(folder, depth):
            if entry.name == _GIT_DIR or entry.name in _RULES:
                raise _Unclear
            name = prefix + os.fsencode(entry.name)
            if not entry.is_dir(follow_symlinks=False):
                self._add(name)
                continue
            with _opened(os.open(entry.name, _FLAGS, dir_fd=folder)) as inner:
                self._add_all(inner, name + b"/", depth + 1)

    def _listed(self, folder: int, depth: int) -> Iterator["os.DirEntry[str]"]:
        if depth > MAX_DEPTH:
            raise _Unclear
        with os.scandir(folder) as entries:
            for entry in entries:
                self._entries += 1
                if self._entries > MAX_ENTRIES:
                    raise _Unclear
                yield entry

    def _add(self, name: bytes) -> None:
        self._name_bytes += len(name) + 1
        if self._name_bytes > MAX_NAME_BYTES:
            raise _Unclear
        self.names.append(name)


def _require_ordinary(entry: "os.DirEntry[str]") -> None:
    """Raise `_Unclear` unless an entry is a file, a symlink or the mark of a deletion."""
    info = entry.stat(follow_symlinks=False)
    is_whiteout = stat.S_ISCHR(info.st_mode) and info.st_rdev == 0
    if not (is_whiteout or stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode)):
        raise _Unclear


def _require_open(folder: int) -> None:
    """Raise `_Unclear` if a folder was moved, or if its owner, as whom git looks into it from inside, cannot."""
    if os.fstat(folder).st_mode & stat.S_IRWXU != stat.S_IRWXU:
        raise _Unclear
    if any(name.startswith(_OVERLAY) and name not in _HARMLESS for name in os.listxattr(folder)):
        raise _Unclear


def _is_opaque(folder: int) -> bool:
    """Return True if nothing of the layer below is seen in a folder. Raise `_Unclear` as `_require_open` does."""
    _require_open(folder)
    if _OPAQUE not in os.listxattr(folder):
        return False
    if os.getxattr(folder, _OPAQUE) != _OPAQUE_WHOLE:
        raise _Unclear
    return True


def _mode(name: str, parent: int | None) -> int | None:
    """Return the mode of an entry of the lower layer; `None` if there is none."""
    if parent is None:
        return None
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None
