"""Files of a job on disk: create them, change their owner, copy and remove them. Hostile trees are safe to pass."""

import contextlib
import errno
import os
import shutil
import stat
import time
from pathlib import Path

from steadyhand.errors import WorkspaceError

TRAVERSABLE = 0o711
PRIVATE = 0o700


def make_dir(path: Path, mode: int, owner: int | None = None) -> None:
    """Create one folder with exactly this mode and owner (uid and gid, if set). An existing folder stays as it is."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=mode)
    path.chmod(mode)
    if owner is not None:
        os.chown(path, owner, owner)


def disk_usage(folder: Path) -> int:
    """Return the bytes that the files of a tree take on disk."""
    total = 0
    for _, _, names, handle in os.fwalk(folder, follow_symlinks=False):
        for name in names:
            total += os.stat(name, dir_fd=handle, follow_symlinks=False).st_blocks * 512
    return total


def chown_tree(path: Path, owner: int | None) -> None:
    """Change the owner of a folder and all in it. Symlinks are not followed; if `owner` is `None`, nothing happens."""
    if owner is None:
        return
    for _, folders, files, fd in os.fwalk(path, follow_symlinks=False):
        for name in (*folders, *files):
            os.chown(name, owner, owner, dir_fd=fd, follow_symlinks=False)
    os.chown(path, owner, owner, follow_symlinks=False)


def copy_tree(source: Path, target: Path, *, max_bytes: int = 512 * 1024 * 1024) -> None:
    """Copy the folders and regular files of a tree that an agent wrote. Links and special files are left out.

    The copy belongs to the caller. If `source` does not exist, nothing happens. Raise `WorkspaceError` above
    `max_bytes`.
    """
    if source.is_symlink() or not source.is_dir():
        return
    bytes_left = max_bytes
    for path, folders, files, handle in os.fwalk(source, follow_symlinks=False):
        inner = target / os.path.relpath(path, source)
        make_dir(inner, PRIVATE)
        for name in [each for each in folders if stat.S_ISLNK(_mode(each, handle))]:
            folders.remove(name)
        for name in files:
            if stat.S_ISREG(_mode(name, handle)):
                bytes_left = _copy_file(name, handle, inner / name, bytes_left)


def _mode(name: str, folder: int) -> int:
    return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode


def _copy_file(name: str, folder: int, target: Path, bytes_left: int) -> int:
    """Copy one file and return the bytes that may still be copied."""
    # No process of the job is alive, so a file stays a file; O_NONBLOCK is for the case that it does not.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, dir_fd=folder), "rb") as source, target.open("xb") as copy:
        while data := source.read(1 << 20):
            bytes_left -= len(data)
            if bytes_left < 0:
                raise WorkspaceError("The session of the run before is too large to be copied.")
            copy.write(data)
    return bytes_left


def copy_objects(source: Path, target: Path) -> None:
    """Copy git's objects file by file, never as hard links.

    Loose objects come before packs, so an object that a repack moves during the copy is found in one of the two.
    Raise `FileNotFoundError` if a file disappears during the copy; the caller starts again.
    """
    for folder in sorted(source.iterdir()):
        if len(folder.name) == 2:  # noqa: PLR2004  # the first byte of an object's id, in hex
            _copy_dir(folder, target / folder.name)
    _copy_dir(source / "pack", target / "pack")
    (target / "info").mkdir(exist_ok=True)


def _copy_dir(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    # Data before indexes: an index is never there without its pack.
    for file in sorted(source.iterdir(), key=lambda file: (file.suffix == ".idx", file.name)):
        if file.name.startswith("tmp_") or file.suffix in {".lock", ".keep"}:
            continue
        copy = target / file.name
        shutil.copyfile(file, copy)
        copy.chmod(0o444)


def remove_tree(path: Path, *, seconds: float = 120.0) -> None:
    """Remove a file, a symlink or a tree of any depth. No symlink is followed.

    Folders are first moved side by side into a folder of the service beside `path`, so that only one is open at a
    time. Modes that lock the owner out are changed before. Call it when no process is alive in the tree. Raise
    `WorkspaceError` when it takes longer than `seconds`; the next sweep removes the rest.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        path.unlink()
        return
    trash = path.parent / f".trash-{path.name}"
    make_dir(trash, PRIVATE)
    _make_accessible(path)
    with contextlib.suppress(FileNotFoundError):
        path.rename(trash / f"{time.monotonic_ns()}")
    _empty_trash(trash, time.monotonic() + seconds)
    trash.rmdir()


def _empty_trash(trash: Path, deadline: float) -> None:
    count = 0
    while folders := list(trash.iterdir()):
        for folder in folders:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if time.monotonic() > deadline:
                        raise WorkspaceError("A checkout took too long to remove.")
                    inner = Path(entry.path)
                    if not entry.is_dir(follow_symlinks=False):
                        inner.unlink()
                        continue
                    _make_accessible(inner)
                    count += 1
                    inner.rename(trash / f"{time.monotonic_ns()}-{count}")
            try:
                folder.rmdir()
            except OSError as error:
                # A listing that changes under the reader may skip a name; the next round finds it.
                if error.errno != errno.ENOTEMPTY or time.monotonic() > deadline:
                    raise


def _make_accessible(folder: Path) -> None:
    """Change the folder's mode so that its owner can list and empty it. Root does not need this."""
    if os.geteuid() != 0:
        folder.chmod(PRIVATE)
