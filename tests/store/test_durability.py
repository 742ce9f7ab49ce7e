"""What was acknowledged survives: `kill -9`, a full disk, a failing neighbour in the same commit."""

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from steadyhand.errors import ConfigError, StoreError, StoreUnavailable
from steadyhand.job import State
from steadyhand.ports import IdempotencyKey, JobFilter
from steadyhand.store import SqlStore, open_store
from steadyhand.testing.contracts.samples import accepted_draft, expect_error, make_job, message_drafts

WRITER = Path(__file__).parent / "crash_writer.py"


@contextmanager
def beside(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the database as another program would."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
        yield connection


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


async def opened(path: Path, linger_seconds: float = 0.02) -> SqlStore:
    return await open_store(f"sqlite:///{path}", linger_seconds=linger_seconds)


@pytest.mark.parametrize("acknowledged", [25, 400])
def test_after_kill_9_every_acknowledged_job_and_event_is_found_again(path: Path, acknowledged: int) -> None:
    child = subprocess.Popen([sys.executable, str(WRITER), str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    told: list[list[str]] = []
    try:
        for line in child.stdout:
            told.append(line.split())
            if len(told) == acknowledged:
                child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait(10)
    assert len(told) >= acknowledged
    told = [words for words in told if len(words) == 3]  # the last line may be cut

    async def look() -> None:
        store = await opened(path)
        try:
            found = {job.id: job for job in await store.list_in_states(frozenset(State))}
            for what, job_id, number in told:
                events = await store.list_events(job_id, limit=10_000)
                assert [event.seq for event in events] == list(range(1, found[job_id].last_event + 1))
                if what == "event":
                    assert events[int(number) - 1].data["text"] == f"{job_id} {number}"
            # An add under way at the kill may be there too, whole; nothing is there twice.
            assert len({job.sequence for job in found.values()}) == len(found)
        finally:
            await store.close()

    asyncio.run(look())


def test_every_connection_waits_for_the_disk_and_checks_references(path: Path) -> None:
    async def scenario() -> dict[str, list[object]]:
        store = await opened(path)
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "query_only")
        try:
            found: dict[str, list[object]] = {"writing": [], "reading": []}
            for pragma in pragmas:
                statement = f"PRAGMA {pragma}"
                wrote = await store._writer.submit(
                    lambda at, text=statement: at.exec_driver_sql(text).scalar()  # type: ignore[misc]  # bound at once
                )
                read = await store._read(
                    lambda at, text=statement: at.exec_driver_sql(text).scalar()  # type: ignore[misc]  # the same
                )
                found["writing"].append(wrote)
                found["reading"].append(read)
            return found
        finally:
            await store.close()

    full = 2
    assert asyncio.run(scenario()) == {
        "writing": ["wal", full, 1, 5000, 0],
        "reading": ["wal", full, 1, 5000, 1],
    }


def test_the_database_is_readable_by_the_service_alone(path: Path) -> None:
    async def scenario() -> list[int]:
        store = await opened(path)
        await store.add(make_job(), accepted_draft())
        modes = [stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()]
        await store.close()
        return modes

    before = os.umask(0)
    try:
        modes = asyncio.run(scenario())
    finally:
        os.umask(before)
    assert len(modes) == 3
    assert set(modes) == {0o600}


def test_one_failing_operation_of_a_batch_harms_none_of_the_others(path: Path) -> None:
    async def scenario() -> None:
        store = await opened(path)
        with beside(path) as other:
            # The second insert of the operation fails, after the first has already been done.
            other.execute(
                "CREATE TRIGGER poison BEFORE INSERT ON events WHEN new.data LIKE '%poison%' "
                "BEGIN SELECT RAISE(ABORT, 'poisoned'); END"
            )
        good, bad = [make_job() for _ in range(9)], make_job()
        duplicate = good[0]
        answers = await asyncio.gather(
            *(store.add(job, accepted_draft()) for job in good[:5]),
            store.add(bad, [*accepted_draft(), *message_drafts("poison")]),
            store.add(duplicate, accepted_draft(), IdempotencyKey("k", "f")),
            *(store.add(job, accepted_draft()) for job in good[5:]),
            return_exceptions=True,
        )
        kinds = [isinstance(answer, StoreError) for answer in answers]
        assert kinds == [False] * 5 + [True, True] + [False] * 4
        assert "poisoned" in str(answers[5].__cause__)  # type: ignore[union-attr]  # an error, as was just seen
        kept = await store.list_in_states(frozenset(State))
        assert [job.id for job in kept] == [job.id for job in good]
        assert await store.get_replayed("k_one", IdempotencyKey("k", "f")) is None
        await store.append_events(good[0].id, message_drafts("still well"))
        await store.close()

    asyncio.run(scenario())


def test_when_the_database_rolls_back_by_itself_nobody_is_told_that_it_was_kept(path: Path) -> None:
    async def scenario() -> None:
        store = await opened(path)
        with beside(path) as other:
            other.execute(
                "CREATE TRIGGER disaster BEFORE INSERT ON events WHEN new.data LIKE '%disaster%' "
                "BEGIN SELECT RAISE(ROLLBACK, 'all gone'); END"
            )
        jobs = [make_job() for _ in range(6)]
        drafts = [accepted_draft()] * 3 + [message_drafts("disaster")] + [accepted_draft()] * 2
        answers = await asyncio.gather(
            *(store.add(job, draft) for job, draft in zip(jobs, drafts, strict=True)), return_exceptions=True
        )
        told = {
            job.id for job, answer in zip(jobs, answers, strict=True) if not isinstance(answer, Exception)
        }
        kept = {job.id for job in await store.list_in_states(frozenset(State))}
        assert isinstance(answers[3], StoreError)
        assert told == kept
        after = make_job()
        await store.add(after, accepted_draft())
        assert await store.get(after.id) is not None
        await store.close()

    asyncio.run(scenario())


def test_a_full_disk_is_told_to_everybody_and_the_store_recovers_when_there_is_room(path: Path) -> None:
    async def scenario() -> None:
        store = await opened(path)
        await store.add(make_job(), accepted_draft())

        async def bound(pages: int) -> None:
            await store._writer.submit(
                lambda at: at.exec_driver_sql(f"PRAGMA max_page_count = {pages}").scalar()
            )

        await bound(
            1
        )  # SQLite takes the present size: not one page more; its errors are those of a full disk
        large = [make_job(prompt="x" * 50_000) for _ in range(4)]
        answers = await asyncio.gather(
            *(store.add(job, accepted_draft()) for job in large), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [StoreUnavailable] * 4
        assert len((await store.list_jobs(JobFilter(), 10)).jobs) == 1
        await bound(1_000_000)
        await store.add(large[0], accepted_draft())
        assert len((await store.list_jobs(JobFilter(), 10)).jobs) == 2
        await store.close()

    asyncio.run(scenario())


def test_a_store_that_another_program_holds_says_so_and_goes_on_afterwards(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steadyhand.store.sqlite.BUSY_TIMEOUT_MS", 50)

    async def scenario() -> None:
        store = await opened(path)
        job = make_job()
        with beside(path) as other:
            other.execute("BEGIN IMMEDIATE")
            error = await expect_error(StoreUnavailable, store.add(job, accepted_draft()))
            assert "locked" in str(error.__cause__)
            assert await store.get(job.id) is None  # reading goes on meanwhile
            other.execute("ROLLBACK")
        await store.add(job, accepted_draft())
        await store.close()

    asyncio.run(scenario())


def test_events_share_commits_and_what_is_urgent_does_not_wait_for_them(path: Path) -> None:
    async def scenario() -> None:
        store = await opened(path, linger_seconds=3600)
        commits = 0
        commit = store._writer._commit

        def counting(batch: object) -> object:
            nonlocal commits
            commits += 1
            return commit(batch)  # type: ignore[arg-type]  # handed on as it came

        store._writer._commit = counting  # type: ignore[method-assign,assignment]  # the real one, counted
        job = make_job()
        await store.add(job, accepted_draft())
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for number in range(64):  # the 64th makes the company complete: no need to wait for the hour
                group.create_task(store.append_events(job.id, message_drafts(str(number))))
        assert commits == 2
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(store.append_events(job.id, message_drafts("waits")))
            await asyncio.sleep(0)
            await store.add(make_job(), accepted_draft())  # takes the event along
        assert commits == 3
        await store.close()

    asyncio.run(scenario())


def test_an_event_that_waits_for_company_is_stored_once_somebody_waits_for_it(path: Path) -> None:
    async def scenario() -> None:
        store = await opened(path, linger_seconds=3600)
        job = make_job()
        await store.add(job, accepted_draft())
        store.hasten()  # nothing waits: the next event waits for company all the same
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            writing = group.create_task(store.append_events(job.id, message_drafts("waits")))
            await asyncio.wait({writing}, timeout=0.05)
            assert not writing.done()
            store.hasten()
        await store.close()

    asyncio.run(scenario())


def test_what_a_caller_gave_up_before_its_turn_is_left_undone_and_numbers_have_no_gap(path: Path) -> None:
    async def scenario() -> None:
        store = await opened(path, linger_seconds=3600)
        job = make_job()
        await store.add(job, accepted_draft())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await store.append_events(job.id, message_drafts("given up"))
        _, (event,) = await store.update_job(
            job.id, frozenset(State), lambda old: old, message_drafts("kept")
        )
        assert event.seq == 2
        assert [each.data.get("text") for each in await store.list_events(job.id)] == [None, "kept"]
        await store.close()

    asyncio.run(scenario())


def test_a_lone_event_does_not_wait_for_company_when_the_last_commit_is_long_ago(path: Path) -> None:
    async def scenario() -> None:
        store = await opened(path, linger_seconds=3600)
        job = make_job()
        await store.add(job, accepted_draft())
        store._writer._committed_at -= 3600  # an hour passes
        async with asyncio.timeout(30):
            assert [event.seq for event in await store.append_events(job.id, message_drafts("alone"))] == [2]
        await store.close()

    asyncio.run(scenario())


def test_while_a_write_waits_for_another_program_the_loop_turns_and_reads_are_answered(path: Path) -> None:
    async def scenario() -> None:
        store = await opened(path)
        job = make_job(prompt="x" * 1_000_000)
        await store.add(job, accepted_draft())
        with beside(path) as other:
            other.execute("BEGIN IMMEDIATE")
            async with asyncio.TaskGroup() as group:
                writing = group.create_task(store.append_events(job.id, message_drafts("x")))
                for _ in range(20):
                    assert await store.get(job.id) is not None
                assert not writing.done()
                other.execute("ROLLBACK")  # were the loop blocked, the write would have failed before this
        assert [event.seq for event in writing.result()] == [2]
        await store.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["", "nonsense", "sqlite://", "sqlite:///:memory:", "mysql://localhost/x"])
def test_a_url_that_names_no_sqlite_file_is_refused(url: str) -> None:
    asyncio.run(_refuses_url(url))


async def _refuses_url(url: str) -> None:
    await expect_error(ConfigError, open_store(url))


def test_a_database_that_cannot_be_opened_is_a_store_error(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_text("this is no database, though it is long enough to look like one" * 100)

    async def scenario() -> None:
        for place in (tmp_path / "missing" / "jobs.db", tmp_path, text):
            await expect_error(StoreError, open_store(f"sqlite:///{place}"))

    asyncio.run(scenario())
    assert text.read_text().startswith("this is no database")
