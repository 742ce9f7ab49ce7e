"""Read an agent's files inside the sandbox: sizes, raw digests and access. Standard library only.

It is a part of the program that `sandboxed_git_client` sends into the sandbox.
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

GITLINK = b"160000"
_MODE_LINK = b"120000"
_CHUNK = 1 << 20
_MAX_REPAIRS = 100_000
_SHA1_DIGITS = 40


class Classified:
    """Changed names of a tree by what has to be done about them."""

    def __init__(self) -> None:
        self.present: list[bytes] = []
        self.missing: list[bytes] = []
        self.oversized: list[bytes] = []
        self.sizes: dict[bytes, int] = {}


def classify_names(tree: Path, names: Iterable[bytes], file_bytes: int, total_bytes: int) -> Classified:
    """Sort names into those that exist, are gone or are too large, without opening a file.

    A file behind a folder that became a symlink is gone, and so is one that became a folder: the files in it have names
    of their own. Only a repository in the place of a file counts as the entry itself, as it does for git.
    """
    found = Classified()
    total = 0
    folders: dict[Path, bool] = {tree: True}
    for name in names:
        path = tree / os.fsdecode(name)
        try:
            info = path.lstat()
        except OSError:
            found.missing.append(name)
            continue
        is_plain_folder = stat.S_ISDIR(info.st_mode) and not os.path.lexists(path / ".git")
        if is_plain_folder or not is_real_folder(path.parent, folders):
            found.missing.append(name)
            continue
        size = info.st_size if stat.S_ISREG(info.st_mode) else 0
        if size > file_bytes or total + size > total_bytes:
            found.oversized.append(name)
            continue
        total += size
        found.sizes[name] = size
        found.present.append(name)
    return found


def is_real_folder(folder: Path, checked: dict[Path, bool]) -> bool:
    """Return true if no part of the folder's path is a symlink; `checked` holds earlier results and the tree's root."""
    if folder not in checked:
        checked[folder] = is_real_folder(folder.parent, checked) and not folder.is_symlink()
    return checked[folder]


def is_entry(path: Path) -> bool:
    """Return true if there is a file or a symlink at a path, which git can have as an entry."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return not stat.S_ISDIR(mode)


def nul_terminated(names: Iterable[bytes]) -> bytes:
    """Return the names in the form that git reads with `-z`."""
    return b"".join(name + b"\x00" for name in names)


def batches(names: Sequence[bytes], sizes: Mapping[bytes, int], max_bytes: int) -> Iterator[list[bytes]]:
    """Split names into groups of at most `max_bytes`; a larger file is a group of its own."""
    group: list[bytes] = []
    total = 0
    for name in names:
        size = sizes.get(name, 0)
        if group and (total + size > max_bytes or len(group) >= _MAX_GROUP):
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group


_MAX_GROUP = 5000


# --- raw content -------------------------------------------------------------------------------


def raw_entry(path: Path, digits: int) -> tuple[bytes, bytes] | None:
    """Return mode and object id of a file's bytes as they are, without filters; `None` if it cannot be read.

    `digits` is the length of an object id in the repository.
    """
    import hashlib  # noqa: PLC0415  # it loads OpenSSL, and few jobs have a file to look into

    digest = hashlib.sha1(usedforsecurity=False) if digits == _SHA1_DIGITS else hashlib.sha256()
    try:
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            target = os.fsencode(path.readlink())
            digest.update(b"blob %d\x00" % len(target) + target)
            return _MODE_LINK, digest.hexdigest().encode()
        if not stat.S_ISREG(info.st_mode):
            return None
        digest.update(b"blob %d\x00" % info.st_size)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return None
    return (b"100755" if info.st_mode & stat.S_IXUSR else b"100644"), digest.hexdigest().encode()


class Given(NamedTuple):
    """The files whose bytes in the checkout are not those of their blob, as they were given: by name.

    A value has the mode, the blob of the index and the object id of the bytes. Submodules stand there too.
    """

    entries: Mapping[bytes, tuple[bytes, bytes, bytes]]

    @classmethod
    def parse(cls, data: bytes) -> "Given":
        """Parse the lines that `format_given` made."""
        entries = {}
        for line in data.split(b"\x00"):
            head, _, name = line.partition(b"\t")
            fields = head.split()
            if len(fields) == 3:  # noqa: PLR2004  # mode, blob, bytes
                entries[name] = (fields[0], fields[1], fields[2])
        return cls(entries)

    def is_as_given(self, name: bytes, entry: tuple[bytes, bytes], raw: tuple[bytes, bytes]) -> bool:
        """Return true if a file with this entry in the index still has the bytes and the mode that were given."""
        mode, blob = entry
        if raw[0] != mode:
            return False
        given = self.entries.get(name)
        return raw[1] == blob or (given is not None and given == (mode, blob, raw[1]))

    @property
    def submodules(self) -> Sequence[bytes]:
        """The paths of submodules."""
        return [name for name, (mode, _, _) in self.entries.items() if mode == GITLINK]


def format_given(entries: Iterable[tuple[bytes, bytes, bytes, bytes]]) -> bytes:
    """Format names with mode, blob and object id of the bytes."""
    return b"".join(b"%s %s %s\t%s\x00" % (mode, blob, raw, name) for name, mode, blob, raw in entries)


# --- access ------------------------------------------------------------------------------------


class Access:
    """Makes files readable that their owner shut, and restores their modes at the end."""

    def __init__(self) -> None:
        self._modes: list[tuple[Path, int]] = []

    def open_tree(self, folder: Path) -> None:
        """Make every folder below readable, and every file below a folder that was not."""
        self._open(folder, 0o700)
        for path, folders, _ in os.walk(folder):
            for name in folders:
                self._open(Path(path, name), 0o700)
            if len(self._modes) > _MAX_REPAIRS:
                return

    def open_files(self, paths: Iterable[Path]) -> None:
        """Make these files readable."""
        for path in paths:
            self._open(path, 0o400)

    def open_git_dir(self, folder: Path) -> None:
        """Make a git directory and all in it readable, if it is not."""
        if folder.is_symlink() or not folder.exists():
            return
        if folder.is_file():
            self._open(folder, 0o400)
            return
        if os.access(folder, os.R_OK | os.X_OK) and os.access(folder / "HEAD", os.R_OK):
            return
        self.open_tree(folder)
        for path, _, files in os.walk(folder):
            self.open_files(Path(path, name) for name in files)

    def _open(self, path: Path, bits: int) -> None:
        with contextlib.suppress(OSError):
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode) or mode & bits == bits:
                return
            path.chmod(stat.S_IMODE(mode) | bits)
            self._modes.append((path, stat.S_IMODE(mode)))

    def restore(self) -> None:
        """Restore the modes, the innermost first."""
        for path, mode in reversed(self._modes):
            with contextlib.suppress(OSError):
                path.chmod(mode)


def make_git_dir(folder: Path, digits: int, config: bytes = b"") -> None:
    """Create a git directory without hooks; `digits` is the length of an object id, `config` is added."""
    for name in ("objects/info", "objects/pack", "refs/heads", "info"):
        (folder / name).mkdir(parents=True)
    (folder / "HEAD").write_text("ref: refs/heads/none\n", encoding="ascii")
    core = b"[core]\n\trepositoryformatversion = %d\n\tfilemode = true\n" % (digits != _SHA1_DIGITS)
    if digits != _SHA1_DIGITS:
        core += b"[extensions]\n\tobjectFormat = sha256\n"
    (folder / "config").write_bytes(core + config)
