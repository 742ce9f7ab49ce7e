"""An archive of an agent's config directory, with its session in it: written by one node and opened by another.

The agent writes the directory, also while it is packed, and names all that is in it. So only folders and regular files
are taken, each by a descriptor that follows no symlink, and the archive is opened as if a stranger had made it.
"""

import contextlib
import gzip
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from steadyhand.errors import WorkspaceError
from steadyhand.workspace.filesystem import PRIVATE, make_dir

MAX_BYTES = 512 * 1024 * 1024
"""The most bytes of all files together, unpacked."""
MAX_FILES = 20_000
_NOTE = "steadyhand.json"
_FILES = "config"
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def pack(config_dir: Path, target: Path, directory: Path) -> None:
    """Write an archive of a config directory to `target`; blocks. The same files make the same archive.

    `directory` is the working directory of the agent, which names the folder of its sessions. A file that disappears
    meanwhile is left out. Raise `WorkspaceError` if there is too much, or if a file gets shorter while it is read.
    """
    with (
        target.open("xb") as raw,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        bytes_left = MAX_BYTES
        for count, (name, file, status) in enumerate(_open_files(config_dir)):
            if file is None:
                entry = _entry(PurePosixPath(_FILES) / name, 0, 0o700, 0)
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
                continue
            with file:
                bytes_left -= status.st_size
                if bytes_left < 0 or count > MAX_FILES:
                    raise WorkspaceError("The session is too large to be kept on other nodes.")
                entry = _entry(
                    PurePosixPath(_FILES) / name, status.st_size, status.st_mode & 0o700, status.st_mtime
                )
                try:
                    archive.addfile(entry, file)
                except OSError as error:
                    raise WorkspaceError("A file of the session changed while it was read.") from error
        # It comes last: an archive without it was cut.
        note = json.dumps({"directory": str(directory)}).encode("ascii")
        archive.addfile(_entry(PurePosixPath(_NOTE), len(note), 0o600, 0), io.BytesIO(note))


def unpack(source: Path, config_dir: Path) -> Path:
    """Write the files of an archive to `config_dir`, which must not exist, and return the agent's working directory.

    Blocks. Raise `WorkspaceError` for an archive that `pack` does not make.
    """
    make_dir(config_dir, PRIVATE)
    directory: Path | None = None
    bytes_left = MAX_BYTES
    try:
        with tarfile.open(source, "r|gz") as archive:
            for count, entry in enumerate(archive):
                bytes_left -= entry.size
                if bytes_left < 0 or count > 2 * MAX_FILES:
                    raise _malformed()
                parts = PurePosixPath(entry.name).parts
                content = archive.extractfile(entry) if entry.isreg() else None
                if content is not None and parts == (_NOTE,):
                    directory = Path(json.loads(content.read())["directory"])
                elif parts[:1] == (_FILES,) and not {"..", "/"}.intersection(parts):
                    _write(config_dir.joinpath(*parts[1:]), entry, content)
                else:
                    raise _malformed()
    except (tarfile.TarError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        raise _malformed() from error
    if directory is None:
        raise _malformed()
    return directory


def _malformed() -> WorkspaceError:
    return WorkspaceError("The stored session cannot be read.")


def _write(path: Path, entry: tarfile.TarInfo, content: IO[bytes] | None) -> None:
    if entry.isdir():
        make_dir(path, PRIVATE)
        return
    if content is None:
        raise _malformed()
    with path.open("xb") as file:
        while data := content.read(1 << 20):
            file.write(data)
    path.chmod(0o600 | (entry.mode & 0o100))
    # The newest transcript is the one that counts.
    os.utime(path, (entry.mtime, entry.mtime))


def _entry(path: PurePosixPath, size: int, mode: int, mtime: float) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(str(path))
    entry.size, entry.mode, entry.mtime = size, mode, mtime  # PAX keeps the fraction
    return entry


def _open_files(folder: Path) -> Iterator[tuple[PurePosixPath, IO[bytes] | None, os.stat_result]]:
    """Yield each folder below a folder with None, and each regular file, opened, in the order of their names."""
    for path, folders, names, handle in os.fwalk(folder, follow_symlinks=False):
        folders.sort()
        inner = PurePosixPath(os.path.relpath(path, folder))
        if inner.parts:
            yield inner, None, os.fstat(handle)
        for name in sorted(names):
            with contextlib.suppress(OSError):
                if not stat.S_ISREG(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode):
                    continue
                file = os.fdopen(os.open(name, _FLAGS, dir_fd=handle), "rb")
                status = os.fstat(file.fileno())
                if stat.S_ISREG(status.st_mode):
                    yield inner / name, file, status
                else:
                    file.close()


def signature(config_dir: Path) -> tuple[int, int, int]:
    """Return numbers that change if a file of a config directory does: their count, sizes and times; blocks."""
    count = size = changed = 0
    for _, _, names, handle in os.fwalk(config_dir, follow_symlinks=False):
        for name in names:
            with contextlib.suppress(OSError):
                status = os.stat(name, dir_fd=handle, follow_symlinks=False)
                count, size, changed = count + 1, size + status.st_size, changed + status.st_mtime_ns
    return count, size, changed
