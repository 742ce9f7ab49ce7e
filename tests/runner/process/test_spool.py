"""The reader of a held run's output moves bytes ahead of who reads them, up to a bound, and loses none."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.async_tests import in_loop

from steadyhand.runner.process import spool
from steadyhand.runner.process.spool import SpoolReader

AHEAD = 1 << 18
MOST_AHEAD = AHEAD + (1 << 16)


class Ends:
    """The writing end of a pipe that does not block, and the reader of the other end."""

    def __init__(self, folder: Path) -> None:
        pipe, self.pipe = os.pipe()
        os.set_blocking(self.pipe, False)
        self.path = folder / "spool"
        self.full = 0
        self.reader = SpoolReader(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), pipe, self._count)

    def _count(self) -> None:
        self.full += 1

    def fill(self) -> int:
        """Write until the pipe takes no more; return the number of bytes."""
        written = 0
        while True:
            try:
                written += os.write(self.pipe, b"x" * 4096)
            except BlockingIOError:
                return written


@contextmanager
def open_ends(folder: Path) -> Iterator[Ends]:
    made = Ends(folder)
    try:
        yield made
    finally:
        made.reader.close()
        os.close(made.pipe)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # the loop moves the bytes meanwhile
            await asyncio.sleep(0)


async def read_all(reader: SpoolReader, count: int) -> bytes:
    found = b""
    async with asyncio.timeout(20):
        while len(found) < count:
            found += await reader.read(1000)
    return found


@in_loop
async def test_what_nobody_reads_is_moved_up_to_a_bound_and_then_waits_in_the_pipe(tmp_path: Path) -> None:
    with open_ends(tmp_path) as ends:
        reading = asyncio.ensure_future(ends.reader.read(1))
        await asyncio.sleep(0)
        written = os.write(ends.pipe, b"x")
        assert await reading == b"x"
        while True:
            written += (more := ends.fill())
            for _ in range(100):
                await asyncio.sleep(0)
            if more == 0:
                break
        assert AHEAD <= ends.path.stat().st_size <= MOST_AHEAD + 1
        rest = written - 1
        assert await read_all(ends.reader, rest) == b"x" * rest
        assert ends.path.stat().st_size == written
        assert os.write(ends.pipe, b"and goes on") == 11
        assert await read_all(ends.reader, 11) == b"and goes on"


@in_loop
async def test_past_the_limit_of_the_file_the_output_is_read_from_the_pipe_and_said_to_be_in_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "MAX_SPOOL_BYTES", 4)
    with open_ends(tmp_path) as ends:
        reading = asyncio.ensure_future(ends.reader.read(100))
        await asyncio.sleep(0)
        os.write(ends.pipe, b"first")
        assert await reading == b"first"
        assert ends.full == 0
        os.write(ends.pipe, b"second")
        assert await read_all(ends.reader, 6) == b"second"
        assert ends.full == 1
        assert ends.path.read_bytes() == b"first"


@in_loop
async def test_the_output_of_the_next_run_begins_with_an_empty_file(tmp_path: Path) -> None:
    with open_ends(tmp_path) as ends:
        reading = asyncio.ensure_future(ends.reader.read(100))
        await asyncio.sleep(0)
        os.write(ends.pipe, b"one")
        assert await reading == b"one"
        assert ends.reader.restart() == 0
        os.write(ends.pipe, b"two")
        await until(lambda: ends.path.read_bytes() == b"two")
        assert ends.reader.restart() == 0  # nobody has read it: it is a part of the next run
        assert await read_all(ends.reader, 3) == b"two"
