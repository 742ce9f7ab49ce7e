"""A table of events becomes the first partition as it is, beside nodes that are at work."""

import asyncio
import threading
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine
from tests.store.nodes import run, until

import steadyhand.store
from steadyhand.errors import StoreError
from steadyhand.store import SqlStore, open_store
from steadyhand.store.postgres import event_migration
from steadyhand.store.postgres.engines import _begin_migration
from steadyhand.testing.contracts.samples import accepted_draft, expect_error, make_job, message_drafts

MIGRATIONS = Path(steadyhand.store.__file__).parent / "migrations"
JOBS = 30


def query(url: str, text: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        cursor = connection.execute(text.encode())
        return cursor.fetchall() if cursor.description else []


def constraints(url: str) -> list[str]:
    found = query(
        url,
        "SELECT conname FROM pg_constraint WHERE conrelid IN (SELECT oid FROM pg_class WHERE relname LIKE 'events%') "
        "AND contype IN ('c', 'f') ORDER BY 1",
    )
    return [name for (name,) in found]


def partitions(url: str) -> dict[str, str]:
    return dict(
        query(
            url,
            "SELECT relname, pg_get_expr(relpartbound, oid) FROM pg_inherits JOIN pg_class ON oid = inhrelid "
            "WHERE inhparent = 'events'::regclass",
        )
    )


PARTITIONS = {
    "events_0": "FOR VALUES FROM (MINVALUE) TO ('1100000')",
    "events_1100000": "FOR VALUES FROM ('1100000') TO ('1200000')",
    "events_default": "DEFAULT",
}


def downgrade(url: str) -> None:
    """Bring a database back to the schema of the version before."""
    engine = create_engine(url.replace("postgresql", "postgresql+psycopg"))
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.downgrade(config, "0015")
    engine.dispose()


@pytest.fixture
def old_url(postgres_url: str) -> str:
    """The address of a database with jobs and events, and the schema of the version before."""

    async def fill() -> None:
        store = await open_store(postgres_url)
        for number in range(JOBS):
            await store.add(make_job(), [*accepted_draft(), *message_drafts(*map(str, range(number)))])
        await store.close()

    run(fill)
    downgrade(postgres_url)
    assert constraints(postgres_url) == ["fk_events_job"]
    return postgres_url


def events(url: str) -> list[tuple[Any, ...]]:
    return query(url, "SELECT * FROM events ORDER BY job, seq")


def file_of(url: str, table: str) -> tuple[Any, ...]:
    return query(url, f"SELECT '{table}'::regclass::oid, pg_relation_filenode('{table}')")[0]


def test_each_event_is_kept_and_none_is_copied(old_url: str) -> None:
    before, file_before = events(old_url), file_of(old_url, "events")
    index_before = file_of(old_url, "pk_events")

    async def scenario() -> None:
        store = await open_store(old_url)
        assert events(old_url) == before
        assert len(before) == JOBS + sum(range(JOBS))
        assert file_of(old_url, "events_0") == file_before
        assert file_of(old_url, "events_0_pkey") == index_before
        assert partitions(old_url) == PARTITIONS
        assert constraints(old_url) == []
        added = await store.add(make_job(), accepted_draft())
        assert added.job.sequence == JOBS + 1
        await store.close()
        await (await open_store(old_url)).close()
        assert partitions(old_url) == PARTITIONS

    run(scenario)


def test_the_table_is_not_read_while_it_is_locked(old_url: str) -> None:
    """The server says in its log that a constraint made a search needless."""
    query(
        old_url,
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET client_min_messages = debug1', current_database()); END $$",
    )
    notices: list[str] = []
    real = event_migration._migrate

    def listening(at: Connection, *arguments: Any) -> bool:
        driver: Any = at.connection.dbapi_connection
        driver.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        return real(at, *arguments)

    async def scenario() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(event_migration, "_migrate", listening)
            await (await open_store(old_url)).close()
        assert any('"events_0" is implied by existing constraints' in each for each in notices), notices

    run(scenario)


def test_nodes_that_start_at_once_migrate_one_time(old_url: str) -> None:
    before = events(old_url)

    async def scenario() -> None:
        stores = await asyncio.gather(*(open_store(old_url, node=name) for name in ("one", "two", "three")))
        assert partitions(old_url) == PARTITIONS
        assert events(old_url) == before
        for store in stores:
            await store.add(make_job(), accepted_draft())
            await store.close()

    run(scenario)


def test_nodes_at_work_insert_and_read_while_another_one_migrates(old_url: str) -> None:
    """The statements are those of the version before: they name no partition."""
    stop = threading.Event()
    numbers: list[int] = []

    def work() -> None:
        with psycopg.connect(old_url) as connection:
            while not stop.is_set() or len(numbers) < 50:
                with connection.transaction():
                    connection.execute("SELECT 1 FROM jobs WHERE sequence = 1 FOR NO KEY UPDATE")
                    row = connection.execute(
                        "SELECT coalesce(max(seq), 0) + 1 FROM events JOIN jobs ON sequence = job WHERE sequence = 1"
                    ).fetchone()
                    assert row is not None
                    connection.execute(
                        "INSERT INTO events (job, seq, run, at, type, data) VALUES (1, %s, 1, 1, 'x', '{}')",
                        row,
                    )
                numbers.append(row[0])

    async def scenario() -> None:
        working = asyncio.create_task(asyncio.to_thread(work))
        try:
            await until(lambda: len(numbers) > 5 or working.done())
            store = await open_store(old_url)
        finally:
            stop.set()
            await working
        await store.close()
        assert partitions(old_url) == PARTITIONS
        found = query(old_url, "SELECT seq FROM events WHERE job = 1 ORDER BY seq")
        assert [seq for (seq,) in found] == list(range(1, len(found) + 1))
        assert numbers == list(range(2, len(found) + 1))

    run(scenario)


def test_a_long_read_puts_the_migration_off_and_holds_up_nobody(
    old_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_migration, "PAUSE_SECONDS", 0.05)
    tries: list[int] = []
    real = event_migration._limit_locks

    def counting(at: Connection) -> None:
        tries.append(1)
        real(at)

    monkeypatch.setattr(event_migration, "_limit_locks", counting)

    async def scenario() -> None:
        with psycopg.connect(old_url) as backup:
            backup.execute("SELECT count(*) FROM events")
            opening: asyncio.Task[SqlStore] = asyncio.create_task(open_store(old_url))
            await until(lambda: len(tries) > 2 or opening.done())
            assert not opening.done()
            query(
                old_url, "INSERT INTO events (job, seq, run, at, type, data) VALUES (1, 2, 1, 1, 'x', '{}')"
            )
        store = await opening
        assert partitions(old_url) == PARTITIONS
        await store.close()

    run(scenario)


def test_a_migration_that_fails_says_so_and_leaves_no_limit_of_the_jobs(
    old_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_migration, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(event_migration, "TRIES", 2)
    real = event_migration._check_limit
    backups: list[psycopg.Connection[Any]] = []

    def begin_backup(at: Connection) -> None:
        real(at)
        backups.append(psycopg.connect(old_url))
        backups[-1].execute("SELECT count(*) FROM events")

    monkeypatch.setattr(event_migration, "_check_limit", begin_backup)
    removals: list[int] = []
    remove = event_migration._remove_limits

    def end_backup(at: Connection) -> None:
        removals.append(1)
        for backup in backups:
            backup.close()
        remove(at)

    async def scenario() -> None:
        monkeypatch.setattr(event_migration, "_remove_limits", end_backup)
        error = await expect_error(StoreError, open_store(old_url))
        assert "while another program, such as a backup, uses its events" in str(error)
        assert constraints(old_url) == ["fk_events_job"]
        monkeypatch.setattr(event_migration, "_check_limit", real)
        await (await open_store(old_url)).close()
        assert partitions(old_url) == PARTITIONS

    run(scenario)


def test_a_start_goes_on_where_one_was_killed(old_url: str) -> None:
    engine = create_engine(old_url.replace("postgresql", "postgresql+psycopg"))
    begin = partial(_begin_migration, engine)
    with begin() as connection:
        event_migration._add_limit(connection)
    engine.dispose()
    assert constraints(old_url) == ["ck_events_below_1100000", "fk_events_job"]
    query(old_url, "SELECT setval('jobs_sequence_seq', 850000)")
    run(lambda: _open_once(old_url))
    assert partitions(old_url) == PARTITIONS, "the limit of the first start is far enough"


def test_a_limit_of_a_killed_start_that_is_near_by_now_is_made_anew(old_url: str) -> None:
    query(old_url, "ALTER TABLE events ADD CONSTRAINT ck_events_below_200000 CHECK (job < 200000) NOT VALID")
    query(old_url, "SELECT setval('jobs_sequence_seq', 150000)")
    run(lambda: _open_once(old_url))
    assert list(partitions(old_url)) == ["events_0", "events_1200000", "events_default"]
    assert constraints(old_url) == []


async def _open_once(url: str) -> None:
    store = await open_store(url)
    await store.add(make_job(), accepted_draft())
    await store.close()
