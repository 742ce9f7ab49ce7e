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
_MAX_AHEAD_BYTES = 1 << 18


class SpoolReader(asyncio.StreamReader):
    """Reads one output of a held run from its beginning; of a stream's methods it has `read` alone.

    `pipe` is the end of the agent's pipe, None if nothing more comes. Both descriptors are closed by `close`. From the
    first wait for bytes on, the event loop moves them to the file as they come, a little ahead of who reads them.
    """

    def __init__(self, file: int, pipe: int | None, on_full: Callable[[], None], position: int = 0) -> None:
        """Create it, from a position in the file on. `on_full` is called before the first byte that is not in it."""
        super().__init__()
        self._file = file
        self._pipe = pipe
        self._on_full = on_full
        self._position = position
        self._size = os.fstat(file).st_size
        self._is_full = False
        self._has_ended = pipe is None
        self._loop_with_pipe: asyncio.AbstractEventLoop | None = None
        self._arrival: asyncio.Future[None] | None = None
        if pipe is not None:
            os.set_blocking(pipe, False)

    async def read(self, n: int = -1) -> bytes:
        """Return the next bytes, at most `n`; empty at the end."""
        size = n if n >= 0 else _SPLICE_BYTES
        while True:
            if self._position < self._size:
                data = os.pread(self._file, min(size, self._size - self._position), self._position)
                self._position += len(data)
                return data
            if self._has_ended or self._pipe is None:
                return b""
            if self._is_full:
                try:
                    return os.read(self._pipe, size)
                except BlockingIOError:
                    pass
            await self._wait_for_pipe(self._pipe)

    def restart(self) -> int:
        """Begin the output of the next run with what comes now; return its position. Raises `OSError`."""
        if self._position >= self._size:
            os.ftruncate(self._file, 0)
            self._position, self._size, self._is_full = 0, 0, False
        return self._position

    async def _wait_for_pipe(self, pipe: int) -> None:
        loop = asyncio.get_running_loop()
        if self._loop_with_pipe is None:
            loop.add_reader(pipe, self._take, pipe)
            self._loop_with_pipe = loop
        self._arrival = loop.create_future()
        await self._arrival

    def _take(self, pipe: int) -> None:
        """Move what has come to the file, unless nobody has read much of it, or the file takes no more."""
        if self._is_full or self._size - self._position >= _MAX_AHEAD_BYTES:
            self._ignore_pipe()  # `read` looks at it again
        else:
            try:
                moved = self._move(pipe)
            except BlockingIOError:
                return
            if moved is not None:
                self._size += moved
            if not moved:
                self._has_ended = moved == 0
                self._ignore_pipe()
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def _move(self, pipe: int) -> int | None:
        """Move bytes from the pipe to the file; return their number, 0 at the end, None if the file takes no more."""
        if self._size < MAX_SPOOL_BYTES:
            try:
                return os.splice(pipe, self._file, _SPLICE_BYTES, offset_dst=self._size)
            except BlockingIOError:
                raise
            except OSError:
                pass  # the disk is full: the run goes on, and ends with the service
        self._on_full()
        self._is_full = True
        return None

    def _ignore_pipe(self) -> None:
        if self._loop_with_pipe is not None and self._pipe is not None:
            self._loop_with_pipe.remove_reader(self._pipe)
            self._loop_with_pipe = None

    def close(self) -> None:
        """Close the descriptors."""
        self._ignore_pipe()
        os.close(self._file)
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
