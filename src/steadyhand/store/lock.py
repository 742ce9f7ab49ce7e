"""One process owns a data directory: a lock on a file in it, which the kernel lets go of when the process dies."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from steadyhand.errors import DataDirectoryBusy

_FILE_NAME = "lock"


class DataDirectoryLock:
    """Holds `<data-dir>/lock` for as long as it is entered; the file has the owner's pid in it."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _FILE_NAME
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the directory, which must exist.

        Raises `DataDirectoryBusy` when another process has it, naming that process.
        """
        # Opened close-on-exec (Python's default), so no agent inherits the lock and keeps it past our death.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            who = f"process {owner}" if owner else "another process"
            raise DataDirectoryBusy(
                f"The data directory {self._path.parent} is in use by {who}. "
                "Stop it first, or give this one a data directory of its own."
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go; harmless when it is not held. The file stays: removing it would race with the next owner."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        """Take the directory."""
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of it."""
        self.release()
