"""The lock of a data directory: one process owns it. The kernel releases the lock when the process dies."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from steadyhand.errors import DataDirectoryBusy

_FILE_NAME = "lock"


class DataDirectoryLock:
    """A lock on `<data-dir>/lock`, held while the context is entered; the file contains the owner's pid."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _FILE_NAME
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Lock the directory, which must exist.

        Raise `DataDirectoryBusy` with the owner's pid if another process holds the lock.
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
                "Stop it first, or use another data directory for this service."
            ) from error
        except BaseException:  # nobody else has the descriptor, and an open one would keep the lock
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Release the lock, if it is held. The file stays: its removal would race with the next owner."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        """Acquire the lock."""
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        self.release()
