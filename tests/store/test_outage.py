"""An outage of the store: what is held is written exactly once and in order, everybody else is told at once."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
import structlog
from tests.store.faults import (
    MODES,
    Fault,
    FaultClock,
    FaultMode,
    StandingClock,
    open_failing_store,
)

from steadyhand.errors import NotFound, StoreError, StoreUnavailable
from steadyhand.job import State
from steadyhand.ports import JobFilter
from steadyhand.store import SqlStore
from steadyhand.testing.contracts.samples import accepted_draft, expect_error, make_job, message_drafts

OUTAGE_SECONDS = 20.0
LOST_MODES: tuple[FaultMode, ...] = ("refused", "full", "unwritten")
"""The modes in which the write that fails was not made."""


def in_store(path: Path, fault: Fault, scene: Callable[[SqlStore], Awaitable[None]]) -> None:
    """Play a scene on a store; the fault counts from its begin."""

    async def play() -> None:
        store = open_failing_store(path / "d.db", fault)
        try:
            async with asyncio.timeout(60):
                await scene(store)
        finally:
            await store.close()

    asyncio.run(play())


def arm(fault: Fault, at: int = 1) -> None:
    """Let the next write fail, or one after it."""
    fault.armed, fault.at = True, at


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seconds", [0.0, OUTAGE_SECONDS])
def test_held_writes_are_made_once_and_in_their_order_however_the_store_fails(
    tmp_path: Path, mode: FaultMode, seconds: float
) -> None:
    fault = Fault(FaultClock(), seconds=seconds, mode=mode)

    async def scene(store: SqlStore) -> None:
        job = make_job()
        await store.add(job, accepted_draft())
        arm(fault)
        writes = [store.append_events(job.id, message_drafts(str(n)), hold=True) for n in range(5)]
        for number, (event,) in enumerate(await asyncio.gather(*writes)):
            assert (event.seq, event.data["text"]) == (number + 2, str(number))
        assert [event.seq for event in await store.list_events(job.id)] == [1, 2, 3, 4, 5, 6]
        assert fault.fired
        assert store.outage is None
        assert store.failures == 1

    in_store(tmp_path, fault, scene)


@pytest.mark.parametrize("mode", LOST_MODES)
def test_a_write_that_is_not_held_fails_and_was_not_made(tmp_path: Path, mode: FaultMode) -> None:
    fault = Fault(FaultClock(), seconds=OUTAGE_SECONDS, mode=mode)

    async def scene(store: SqlStore) -> None:
        kept, refused = make_job(), make_job()
        await store.add(kept, accepted_draft())
        arm(fault)
        # Both are of one batch: what is held stays, and what is not is told so.
        held = asyncio.ensure_future(store.append_events(kept.id, message_drafts("held"), hold=True))
        error = await expect_error(StoreUnavailable, store.add(refused, accepted_draft()))
        assert error.code == "unavailable"
        assert len(await held) == 1
        assert [job.id for job in await store.list_in_states(frozenset(State))] == [kept.id]
        await store.add(refused, accepted_draft())
        assert await store.get(refused.id) is not None

    in_store(tmp_path, fault, scene)


def test_a_write_that_was_made_is_a_success_even_if_its_commit_was_reported_as_failed(tmp_path: Path) -> None:
    fault = Fault(FaultClock(), seconds=OUTAGE_SECONDS, mode="written")

    async def scene(store: SqlStore) -> None:
        arm(fault)
        job = make_job()
        added = await store.add(job, accepted_draft())
        assert added.job.sequence == 1
        assert fault.fired
        assert len((await store.list_jobs(JobFilter(), 10)).jobs) == 1

    in_store(tmp_path, fault, scene)


def test_a_batch_in_doubt_waits_until_the_database_can_be_read_again(tmp_path: Path) -> None:
    fault = Fault(FaultClock(), mode="written")

    async def scene(store: SqlStore) -> None:
        arm(fault)
        begins = 0

        def refuse_the_next_begins() -> None:
            nonlocal begins
            begins += 1
            if 1 < begins < 5:
                raise fault._error()

        begin = fault._begin

        def begin_or_refuse() -> None:
            begin()
            refuse_the_next_begins()

        fault._begin = begin_or_refuse  # type: ignore[method-assign]  # of this one alone
        jobs = [make_job(), make_job()]
        first = store.add(jobs[0], accepted_draft())
        while not begins:  # noqa: ASYNC110  # the writer's thread has no event for it
            await asyncio.sleep(0.001)
        held = asyncio.ensure_future(store.append_events(jobs[0].id, message_drafts("later"), hold=True))
        assert (await first).job.last_event == 1
        assert [event.seq for event in await held] == [2]
        assert begins >= 6
        assert [event.seq for event in await store.list_events(jobs[0].id)] == [1, 2]

    in_store(tmp_path, fault, scene)


def test_an_operation_that_is_wrong_fails_at_once_although_it_is_held_and_harms_no_other(
    tmp_path: Path,
) -> None:
    fault = Fault(FaultClock(), seconds=OUTAGE_SECONDS)

    async def scene(store: SqlStore) -> None:
        job = make_job()
        await store.add(job, accepted_draft())
        arm(fault)
        missing = store.append_events("0" * 12, message_drafts("nobody's"), hold=True)
        good = store.append_events(job.id, message_drafts("good"), hold=True)
        answers = await asyncio.gather(missing, good, return_exceptions=True)
        assert isinstance(answers[0], NotFound)
        assert [event.seq for event in answers[1]] == [2]  # type: ignore[union-attr]  # no error, as compared

    in_store(tmp_path, fault, scene)


def test_an_error_of_the_driver_itself_fails_its_own_operation_alone(tmp_path: Path) -> None:
    async def scene(store: SqlStore) -> None:
        first, other = make_job(), make_job()
        await store.add(first, accepted_draft())
        answers = await asyncio.gather(
            store.append_events(first.id, message_drafts("before")),
            store.add(first, accepted_draft()),  # its id is taken
            store.add(other, accepted_draft()),
            return_exceptions=True,
        )
        assert isinstance(answers[1], StoreError)
        assert not isinstance(answers[1], StoreUnavailable)
        assert isinstance(answers[1].__cause__, sqlite3.IntegrityError)
        assert [event.seq for event in await store.list_events(first.id)] == [1, 2]
        assert [event.seq for event in await store.list_events(other.id)] == [1]

    in_store(tmp_path, Fault(FaultClock(), seconds=0.0), scene)


def test_a_held_write_whose_caller_is_gone_is_not_made(tmp_path: Path) -> None:
    fault = Fault(FaultClock(), seconds=OUTAGE_SECONDS)

    async def scene(store: SqlStore) -> None:
        job = make_job()
        await store.add(job, accepted_draft())
        arm(fault)
        gone = asyncio.ensure_future(store.append_events(job.id, message_drafts("gone"), hold=True))
        held = asyncio.ensure_future(store.append_events(job.id, message_drafts("held"), hold=True))
        await asyncio.sleep(0)
        gone.cancel()
        assert [event.data["text"] for event in await held] == ["held"]
        assert len(await store.list_events(job.id)) == 2

    in_store(tmp_path, fault, scene)


def test_the_log_has_one_line_at_the_begin_of_an_outage_and_one_at_its_end(tmp_path: Path) -> None:
    fault = Fault(FaultClock(), seconds=OUTAGE_SECONDS, mode="full")
    lines: list[structlog.typing.EventDict] = []

    def keep(_logger: object, _name: str, line: structlog.typing.EventDict) -> str:
        lines.append(line)
        raise structlog.DropEvent

    async def scene(store: SqlStore) -> None:
        job = make_job()
        await store.add(job, accepted_draft())
        arm(fault)
        held = asyncio.ensure_future(store.append_events(job.id, message_drafts("held"), hold=True))
        error = await expect_error(StoreUnavailable, store.add(make_job(), accepted_draft()))
        assert error.detail == "The store cannot be written: the disk is full."
        await held

    structlog.configure(processors=[keep])
    in_store(tmp_path, fault, scene)
    assert [line["event"] for line in lines] == ["store.unavailable", "store.available"]
    assert lines[0]["reason"] == "the disk is full"
    assert OUTAGE_SECONDS <= lines[1]["seconds"] < OUTAGE_SECONDS + 2


def test_readiness_names_the_reason_while_an_outage_lasts_and_reads_go_on(tmp_path: Path) -> None:
    clock = StandingClock()
    fault = Fault(clock, seconds=1.0, mode="full")

    async def scene(store: SqlStore) -> None:
        job = make_job()
        await store.add(job, accepted_draft())
        await store.check()
        arm(fault)
        held = asyncio.ensure_future(store.append_events(job.id, message_drafts("held"), hold=True))
        while store.outage is None:  # noqa: ASYNC110  # the writer's thread has no event for it
            await asyncio.sleep(0.001)
        error = await expect_error(StoreUnavailable, store.check())
        assert "the disk is full" in error.detail
        assert await store.get(job.id) is not None
        assert not held.done()
        clock.end_outage()
        await held
        await store.check()

    in_store(tmp_path, fault, scene)


def test_the_store_closes_in_the_middle_of_an_outage_and_says_what_is_lost(tmp_path: Path) -> None:
    fault = Fault(FaultClock(real=True), seconds=3600.0)

    async def scene(store: SqlStore) -> None:
        job = make_job()
        await store.add(job, accepted_draft())
        arm(fault)
        held = asyncio.ensure_future(store.append_events(job.id, message_drafts("held"), hold=True))
        while store.outage is None:  # noqa: ASYNC110  # the writer's thread has no event for it
            await asyncio.sleep(0.001)
        await store.close()
        error = await expect_error(StoreError, held)
        assert "stops" in error.detail

    in_store(tmp_path, fault, scene)


def test_a_real_lock_of_another_program_delays_what_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steadyhand.store.sqlite.BUSY_TIMEOUT_MS", 10)
    fault = Fault(FaultClock())

    async def scene(store: SqlStore) -> None:
        job = make_job()
        await store.add(job, accepted_draft())
        with closing(sqlite3.connect(tmp_path / "d.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            held = asyncio.ensure_future(store.append_events(job.id, message_drafts("held"), hold=True))
            error = await expect_error(StoreUnavailable, store.add(make_job(), accepted_draft()))
            assert error.detail == "The store cannot be written: another program holds the database."
            assert not held.done()
            other.execute("ROLLBACK")
        assert [event.seq for event in await held] == [2]

    in_store(tmp_path, fault, scene)
