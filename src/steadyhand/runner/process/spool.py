"""The output of a held run: moved from the agent's pipe to a file, and read from there.

The kernel moves the bytes from the pipe to the file in one step (`splice`). So a byte is in one of the two at any time,
also if the service is killed, and the file has all that was ever read.
"""

import asyncio
import os
from collections.abc import Callable

MAX_SPOOL_BYTES = 128 << 20
"""The output of a run that is kept for a later service. A run with more ends with the service."""
_SPLICE_BYTES = 1 << 16


class SpoolReader(asyncio.StreamReader):
    """Reads one output of a held run from its beginning; of a stream's methods it has `read` alone.

    `pipe` is the end of the agent's pipe, None if nothing more comes. Both descriptors are closed by `close`.
    """

    def __init__(self, file: int, pipe: int | None, on_full: Callable[[], None], position: int = 0) -> None:
        """Create it, from a position in the file on. `on_full` is called before the first byte that is not in it."""
        super().__init__()
        self._file = file
        self._pipe = pipe
        self._on_full = on_full
        self._position = position
        self._is_full = False
        if pipe is not None:
            os.set_blocking(pipe, False)

    async def read(self, n: int = -1) -> bytes:
        """Return the next bytes, at most `n`; empty at the end."""
        size = n if n >= 0 else _SPLICE_BYTES
        while True:
            if not self._is_full and (data := os.pread(self._file, size, self._position)):
                self._position += len(data)
                return data
            if self._pipe is None:
                return b""
            try:
                if self._is_full:
                    return os.read(self._pipe, size)
                if self._move(self._pipe) == 0:
                    return b""
            except BlockingIOError:
                await self._wait_for_pipe(self._pipe)

    def restart(self) -> int:
        """Begin the output of the next run with what comes now; return its position. Raises `OSError`."""
        if self._position >= os.fstat(self._file).st_size:
            os.ftruncate(self._file, 0)
            self._position, self._is_full = 0, False
        return self._position

    def _move(self, pipe: int) -> int | None:
        """Move bytes from the pipe to the file; return their number, 0 at the end, None if the file takes no more."""
        size = os.fstat(self._file).st_size
        if size < MAX_SPOOL_BYTES:
            try:
                return os.splice(pipe, self._file, _SPLICE_BYTES, offset_dst=size)
            except BlockingIOError:
                raise
            except OSError:
                pass  # the disk is full: the run goes on, and ends with the service
        self._on_full()
        self._is_full = True
        return None

    async def _wait_for_pipe(self, pipe: int) -> None:
        loop = asyncio.get_running_loop()
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(pipe, _resolve, readable)
        try:
            await readable
        finally:
            loop.remove_reader(pipe)

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self._file)
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
