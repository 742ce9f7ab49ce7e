"""A list reads the rows of a job only if a transaction may have changed it."""

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from tests.async_tests import in_loop

from steadyhand.job import Job, State
from steadyhand.ports import JobFilter
from steadyhand.store import brief_jobs, changed_jobs, open_store, writes
from steadyhand.store.changed_jobs import ChangedJobs, take_changed
from steadyhand.store.sql_store import SqlStore
from steadyhand.testing.contracts.samples import change_job, make_job, message_drafts

ANY = frozenset(State)
RUNNING = partial(change_job, state=State.RUNNING)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqlStore]:
    store = await open_store(f"sqlite:///{path}/jobs.db")
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def read_jobs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the jobs whose rows were read, as they are read."""
    read: list[int] = []
    read_rows = brief_jobs._read_rows

    def spy(connection: Connection, sequences: Any) -> Any:
        read.extend(sequences)
        return read_rows(connection, sequences)

    monkeypatch.setattr(brief_jobs, "_read_rows", spy)
    return read


async def stored(store: SqlStore, count: int) -> list[Job]:
    return [(await store.add(make_job(id=f"{number:012x}"), ())).job for number in range(count)]


async def listed(store: SqlStore) -> list[Job]:
    return list((await store.list_jobs(JobFilter(), 200)).jobs)


@contextmanager
def snapshot(store: SqlStore) -> Iterator[Connection]:
    """Return a connection that sees the store as it is now, whatever is written later."""
    with store._read_engine.begin() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM jobs").scalar()
        yield connection


@in_loop
async def test_the_rows_of_jobs_that_did_not_change_are_read_once(
    tmp_path: Path, read_jobs: list[int]
) -> None:
    async with opened(tmp_path) as store:
        jobs = await stored(store, 3)
        first = await listed(store)
        assert sorted(read_jobs) == [job.sequence for job in jobs]
        read_jobs.clear()
        assert await listed(store) == first
        assert read_jobs == []


@pytest.mark.parametrize("change", ["state", "event"])
@in_loop
async def test_of_a_job_that_was_changed_the_rows_are_read_again_and_of_no_other(
    change: str, tmp_path: Path, read_jobs: list[int]
) -> None:
    async with opened(tmp_path) as store:
        jobs = await stored(store, 3)
        before = await listed(store)
        read_jobs.clear()
        if change == "state":
            await store.update_job(jobs[1].id, ANY, RUNNING)
        else:
            await store.append_events(jobs[1].id, message_drafts("more"))
        after = await listed(store)
        assert read_jobs == [jobs[1].sequence]
        assert after[1] != before[1]
        assert (after[0], after[2]) == (before[0], before[2])


@in_loop
async def test_a_list_has_the_jobs_of_its_own_snapshot_whatever_others_have_read(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        (job,) = await stored(store, 1)

        def state_in(connection: Connection) -> State:
            return store._brief_jobs.read(connection, [job.sequence])[0].state

        with snapshot(store) as old:
            assert state_in(old) is State.QUEUED
            await store.update_job(job.id, ANY, RUNNING)
            with snapshot(store) as new:
                assert state_in(new) is State.RUNNING
                assert state_in(old) is State.QUEUED
                assert state_in(new) is State.RUNNING


@in_loop
async def test_what_a_transaction_is_about_to_commit_is_not_kept_as_unchanged(tmp_path: Path) -> None:
    """Between the word of the writer and its commit, a reader still sees the job as it was."""
    async with opened(tmp_path) as store:
        (job,) = await stored(store, 1)
        (before,) = await listed(store)
        with store._write_engine.begin() as connection:
            writes.update_job(connection, job.id, ANY, RUNNING, ())
            connection.exec_driver_sql("PRAGMA user_version = 4711")
            changes = store._brief_jobs._changes
            assert changes is not None
            changes.publish(4711, take_changed(connection))
            assert await listed(store) == [before]
        assert [each.state for each in await listed(store)] == [State.RUNNING]


@pytest.mark.parametrize(
    ("most_changed", "most_transactions"),
    [
        pytest.param(10_000, 1_000, marks=pytest.mark.long),
        pytest.param(2, 1_000, marks=pytest.mark.long),
        (10_000, 2),
        (1, 1),
    ],
)
@in_loop
async def test_lists_in_any_snapshots_are_as_without_memory_however_little_is_remembered(
    most_changed: int, most_transactions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changed_jobs, "MAX_CHANGED", most_changed)
    monkeypatch.setattr(changed_jobs, "MAX_TRANSACTIONS", most_transactions)
    chance = random.Random(most_changed * 31 + most_transactions)  # noqa: S311  # the same in each run
    async with opened(tmp_path) as store:
        jobs = await stored(store, 6)
        snapshots: list[tuple[Any, Connection]] = []
        for number in range(60):
            job = chance.choice(jobs)
            match chance.randrange(5):
                case 0:
                    await store.update_job(job.id, ANY, partial(change_job, title=f"turn {number}"))
                case 1:
                    await store.append_events(job.id, message_drafts("more"))
                case 2 if len(snapshots) < 3:
                    context = snapshot(store)
                    snapshots.append((context, context.__enter__()))
                case 3 if snapshots:
                    context, _ = snapshots.pop(chance.randrange(len(snapshots)))
                    context.__exit__(None, None, None)
            for _, connection in snapshots:
                sequences = [each.sequence for each in chance.sample(jobs, 4)]
                fresh = brief_jobs.read_brief_jobs(connection, sequences)
                assert store._brief_jobs.read(connection, sequences) == fresh
            assert await listed(store) == [await store.get(each.id) for each in reversed(jobs)]
        for context, _ in snapshots:
            context.__exit__(None, None, None)


@in_loop
async def test_a_store_whose_writer_does_not_tell_of_changes_compares_the_rows(
    tmp_path: Path, read_jobs: list[int]
) -> None:
    async with opened(tmp_path) as store:
        (job,) = await stored(store, 1)
        memory = brief_jobs.BriefJobs()
        with snapshot(store) as connection:
            first = memory.read(connection, [job.sequence])
            assert memory.read(connection, [job.sequence])[0] is first[0]
        assert read_jobs == [job.sequence] * 2


@in_loop
async def test_a_marker_that_is_not_known_says_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await stored(store, 1)
        changes = ChangedJobs()
        with snapshot(store) as connection:
            assert changes.snapshot(connection) == 0  # nothing was published yet
            changes.publish(1, ())
            assert changes.snapshot(connection) == 0
        await store.add(make_job(id="f" * 12), ())
        with snapshot(store) as connection:
            assert changes.snapshot(connection) is None
