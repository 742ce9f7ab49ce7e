"""Copies an agent's own record of its session. Its folders belong to the agent, so no symlink in them is followed."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from steadyhand.job import JobWarning
from steadyhand.job_warnings import WarningCode
from steadyhand.redact import Redactor

RECORD_BYTES = 64 * 1024 * 1024
"""The most that is copied of a record."""
MAX_ENTRIES = 1000
"""The most entries of a folder that are looked at."""
CHUNK_BYTES = 1 << 16
DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK opening a FIFO would wait for a writer.
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextlib.contextmanager
def opened(path: Path | str, folder: int | None, flags: int) -> Iterator[int]:
    """Open a file or a folder, below another one that is open, for the length of the block. Raise `OSError`."""
    fd = os.open(path, flags, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)


def is_record(info: os.stat_result, owner: int | None, since: float) -> bool:
    """Return True for a regular file of `owner` (None is any) that changed after `since`, seconds since the epoch."""
    is_owned = owner is None or info.st_uid == owner
    return stat.S_ISREG(info.st_mode) and is_owned and info.st_mtime >= since


def record_lost(error: OSError) -> JobWarning:
    """Return the warning about a record that could not be copied."""
    return JobWarning(WarningCode.TRANSCRIPT_LOST, f"The transcript could not be kept: {error.strerror}.")


def copy_redacted(folder: int, name: str, target: Path, redactor: Redactor) -> JobWarning | None:
    """Copy a file of an open folder without live secrets; one above 64 MiB is cut. Raise `OSError`."""
    with opened(name, folder, FILE_FLAGS) as source:
        if not stat.S_ISREG(os.fstat(source).st_mode):
            return None
        part = target.with_name(f"{target.name}.part")
        bytes_left = RECORD_BYTES
        lines = redactor.line_stream()
        with part.open("wb") as file:
            while bytes_left > 0 and (chunk := os.read(source, min(CHUNK_BYTES, bytes_left))):
                file.write(lines.feed(chunk))
                bytes_left -= len(chunk)
            truncated = bytes_left == 0 and os.read(source, 1) != b""
            file.write(lines.end(torn=truncated))
        part.replace(target)
    return (
        JobWarning(WarningCode.TRANSCRIPT_CUT, "The agent's own record was cut at 64 MiB.")
        if truncated
        else None
    )
