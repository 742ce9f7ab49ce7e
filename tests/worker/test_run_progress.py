"""The progress of a run: stored again and again while its agent works, and never in its way."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from tests.worker.fakes import IN_PLACE

from steadyhand.errors import Conflict, StoreUnavailable
from steadyhand.job import Job
from steadyhand.ports import Checkout, Checkouts, JobPaths
from steadyhand.testing.contracts.samples import make_job
from steadyhand.worker import run_progress
from steadyhand.worker.run_progress import progress_saved

JOB = make_job()
CHECKOUT = Checkout(IN_PLACE, JobPaths(Path("/x")), Path("/x"), Path("/x"), None, None, None)


async def store_at_once() -> None:
    """Store at once."""


@dataclass
class SavingCheckouts:
    """Checkouts that call `save` to store the progress of the job; `holders` has the supervisor of each call."""

    save: Callable[[], Awaitable[None]] = store_at_once
    holders: list[tuple[int, int] | None] = field(default_factory=list)

    async def save_progress(self, job: Job, checkout: Checkout) -> None:
        assert job is JOB
        self.holders.append(checkout.holder)
        await self.save()

    def during(self, seconds: float | None = 0.0) -> AbstractAsyncContextManager[Callable[[int, int], None]]:
        return progress_saved(cast("Checkouts", self), JOB, CHECKOUT, seconds)

    async def called(self, times: int) -> None:
        """Wait for that many calls."""
        while len(self.holders) < times:  # noqa: ASYNC110  # there is no event for each
            await asyncio.sleep(0.001)


@pytest.fixture
def _no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that waited for a processor seems long, and the pause after it is twenty times as long."""
    monkeypatch.setattr(run_progress, "MAX_SHARE", 1e9)


def play(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scene()

    asyncio.run(bounded())


@pytest.mark.usefixtures("_no_share")
def test_nothing_is_stored_before_the_agent_has_started_and_then_again_and_again() -> None:
    async def scene() -> None:
        checkouts = SavingCheckouts()
        async with checkouts.during() as spawned:
            await asyncio.sleep(0.02)
            assert checkouts.holders == []
            spawned(7, 8)
            spawned(9, 9)
            await checkouts.called(3)
        assert set(checkouts.holders) == {(7, 8)}

    play(scene)


def test_on_one_machine_nothing_is_stored_and_no_task_is_there() -> None:
    async def scene() -> None:
        checkouts, before = SavingCheckouts(), asyncio.all_tasks()
        async with checkouts.during(None) as spawned:
            spawned(7, 8)
            await asyncio.sleep(0.02)
            assert asyncio.all_tasks() == before
        assert checkouts.holders == []

    play(scene)


@pytest.mark.usefixtures("_no_share")
@pytest.mark.parametrize(
    "error", [StoreUnavailable("away"), OSError("disk"), ValueError("a bug"), TimeoutError()]
)
def test_a_failure_ends_neither_the_run_nor_the_next_try(error: Exception) -> None:
    async def scene() -> None:
        async def fail() -> None:
            raise error

        checkouts = SavingCheckouts(fail)
        async with checkouts.during() as spawned:
            spawned(7, 8)
            await checkouts.called(2)

    play(scene)


def test_a_run_that_another_node_has_taken_over_is_not_stored_again() -> None:
    async def scene() -> None:
        async def refuse() -> None:
            raise Conflict("A later run of the job has begun.", code="run_is_over")

        checkouts = SavingCheckouts(refuse)
        async with checkouts.during() as spawned:
            spawned(7, 8)
            await checkouts.called(1)
            await asyncio.sleep(0.05)
            assert len(checkouts.holders) == 1

    play(scene)


def test_the_end_of_the_run_waits_until_nothing_works_in_its_checkout() -> None:
    async def scene() -> None:
        inside, left = asyncio.Event(), []

        async def work() -> None:
            inside.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)  # its process is ended
                left.append(True)

        async with SavingCheckouts(work).during() as spawned:
            spawned(7, 8)
            await inside.wait()
        assert left == [True]

    play(scene)


def test_storing_takes_a_small_share_of_the_time() -> None:
    assert run_progress.pause_after(0.01, 5.0) == 5.0
    assert run_progress.pause_after(2.0, 5.0) == pytest.approx(40.0)
