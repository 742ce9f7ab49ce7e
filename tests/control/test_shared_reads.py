"""Reads of the store that several callers share."""

import asyncio

from steadyhand.control.shared_reads import SharedReads
from steadyhand.errors import StoreUnavailable


class Reader:
    """A read that returns its number when the test lets it, or raises."""

    def __init__(self) -> None:
        self.begun = 0
        self.error: Exception | None = None
        self.may_end = asyncio.Event()

    async def read(self) -> int:
        self.begun += 1
        number = self.begun
        await self.may_end.wait()
        if self.error is not None:
            raise self.error
        return number


async def started(count: int) -> None:
    """Let the event loop take a few steps."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_those_who_ask_at_once_share_a_read_and_nobody_gets_one_that_began_before() -> None:
    async def scene() -> None:
        reads, reader = SharedReads(), Reader()
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            first = [group.create_task(reads.run("job", reader.read)) for _ in range(50)]
            await started(3)
            assert reader.begun == 1
            later = [group.create_task(reads.run("job", reader.read)) for _ in range(50)]
            other = group.create_task(reads.run("another", reader.read))
            await started(3)
            assert reader.begun == 3
            reader.may_end.set()
        assert {task.result() for task in first} == {1}
        assert {task.result() for task in later} == {2}
        assert other.result() == 3
        assert not reads._waiting

    asyncio.run(scene())


def test_a_read_goes_on_for_the_others_if_the_first_who_asked_is_cancelled() -> None:
    async def scene() -> None:
        for steps in (1, 5):  # before the read begins, and while it runs
            reads, reader = SharedReads(), Reader()
            async with asyncio.timeout(20), asyncio.TaskGroup() as group:
                tasks = [group.create_task(reads.run("job", reader.read)) for _ in range(4)]
                await started(steps)
                tasks[0].cancel()
                tasks[1].cancel()
                await started(5)
                reader.may_end.set()
            assert [task.cancelled() for task in tasks] == [True, True, False, False]
            assert tasks[2].result() == tasks[3].result() == reader.begun

    asyncio.run(scene())


def test_an_error_of_a_read_reaches_all_who_share_it() -> None:
    async def scene() -> None:
        reads, reader = SharedReads(), Reader()
        reader.error = StoreUnavailable("The disk is full.")
        reader.may_end.set()
        results = await asyncio.gather(
            *(reads.run("job", reader.read) for _ in range(5)), return_exceptions=True
        )
        assert results == [reader.error] * 5
        assert reader.begun == 1
        reader.error = None
        assert await reads.run("job", reader.read) == 2

    asyncio.run(scene())
