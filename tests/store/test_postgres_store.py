"""What the store does on Postgres alone: its lock, outages of the server, texts that it cannot store, its schema."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine

from steadyhand.errors import ConfigError, DatabaseBusy, QueryTooSlow, StoreError, StoreUnavailable
from steadyhand.events import EventDraft, Message
from steadyhand.job import State
from steadyhand.ports import DoctorCheck, JobFilter, RunOutput, SavedItem, UsageQuery
from steadyhand.store import SqlStore, check_store, open_store
from steadyhand.store.commit_marks import PostgresMarks
from steadyhand.store.driver import fetch_all, postgres_text
from steadyhand.store.postgres.connections import escape, unescape
from steadyhand.store.postgres.postgres_tables import create_metadata
from steadyhand.store.readers import CONNECTIONS
from steadyhand.store.schema import NEWEST_REVISION
from steadyhand.testing.contracts.samples import NOON, accepted_draft, expect_error, make_call, make_job
from steadyhand.testing.postgres import Postgres

HOSTILE = (
    "nul \x00 in it",
    "half \ud800 of one",
    "\ue000",
    "\ue0000000",
    "\x00\ue000\udfff",
    "\U0001f600 ok",
)
QUICK = (HOSTILE[0], HOSTILE[4])
"""Those of `make test`."""
SECONDS = 60


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(SECONDS):
            await scenario()

    asyncio.run(bounded())


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    """A server that tests stop."""
    with Postgres() as server:
        yield server


@pytest.fixture
def own_url(own_postgres: Postgres) -> Iterator[str]:
    name = own_postgres.create_database()
    yield own_postgres.url(name)
    own_postgres.drop_database(name)


def message(text: str) -> EventDraft:
    return EventDraft(1, NOON, Message("m1", text))


# --- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [each if each in QUICK else pytest.param(each, marks=pytest.mark.long) for each in HOSTILE]
)
def test_a_text_that_postgres_refuses_comes_back_as_it_was(postgres_url: str, text: str) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        job = make_job(prompt=f"say {text}", session_name=text, metadata={"name": text})
        await store.add(job, [*accepted_draft(), message(text)])
        await store.save_output(job.id, 1, RunOutput((text,), text))
        await store.save_call(make_call(job_id=job.id, model=text, micros=3))
        await store.save_item("k", SavedItem("view", text, text, NOON), 10)
        kept = await store.get(job.id)
        assert kept is not None
        assert kept.spec == job.spec
        (*_, event) = await store.list_events(job.id)
        assert event.data["text"] == text
        assert await store.get_output(job.id) == RunOutput((text,), text)
        (call,) = await store.list_calls(job.id, 5)
        assert call.model == text
        (row,) = await store.usage(UsageQuery(by=("model",), model=text))
        assert (row.group["model"], row.total.micros) == (text, 3)
        (item,) = await store.list_saved("k", "view")
        assert (item.name, item.content) == (text, text)
        page = await store.list_jobs(JobFilter(session_name=text, metadata={"name": text}), 5)
        assert [each.id for each in page.jobs] == [job.id]
        await store.list_jobs(JobFilter(search="say"), 5)
        await store.close()

    run(scenario)


@pytest.mark.parametrize("text", [*HOSTILE, "plain", "\ue000\ue000"])
def test_no_two_texts_are_stored_as_the_same(text: str) -> None:
    stored = escape(text)
    assert "\x00" not in stored
    stored.encode("utf-8")
    assert unescape(stored) == text


# --- one service ----------------------------------------------------------------------------------


def test_a_second_service_on_a_database_is_refused_and_told_of_the_first(postgres_url: str) -> None:
    async def scenario() -> None:
        first = await open_store(postgres_url)
        error = await expect_error(DatabaseBusy, open_store(postgres_url))
        assert "The database is in use by process " in str(error)
        await first.add(make_job(), accepted_draft())
        await first.close()
        await (await open_store(postgres_url)).close()

    run(scenario)


def end_backends(postgres: Postgres, url: str, purpose: str) -> None:
    name = url.rpartition("/")[2]
    ended = postgres.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "  # noqa: S608
        f"WHERE datname = '{name}' AND application_name LIKE 'steadyhand {purpose}%'"
    )
    assert ended


def test_a_lock_that_was_lost_is_taken_again_before_the_next_write(
    postgres: Postgres, postgres_url: str
) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        end_backends(postgres, postgres_url, "lock")
        await store.add(make_job(), accepted_draft())
        await expect_error(DatabaseBusy, open_store(postgres_url))
        assert store.failures == 0
        await store.close()

    run(scenario)


def test_a_service_whose_lock_another_one_took_writes_nothing(postgres: Postgres, postgres_url: str) -> None:
    async def scenario() -> None:
        store, first = await open_store(postgres_url), make_job()
        await store.add(first, accepted_draft())
        end_backends(postgres, postgres_url, "lock")
        other = await open_store(postgres_url)
        job = make_job()
        error = await expect_error(StoreUnavailable, store.add(job, accepted_draft()))
        assert "another service uses the database" in str(error)
        assert await other.get(job.id) is None
        await other.close()
        await store.append_events(first.id, [message("held meanwhile")], hold=True)
        await store.add(job, accepted_draft())
        await store.close()

    run(scenario)


# --- outages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGQUIT])
def test_a_restart_of_the_server_between_two_operations_fails_none(
    own_postgres: Postgres, own_url: str, how: signal.Signals
) -> None:
    async def scenario() -> None:
        store = await open_store(own_url)
        job = make_job()
        await store.add(job, accepted_draft())
        own_postgres.restart(how)
        assert await store.get(job.id) is not None
        await store.append_events(job.id, [message("after")])
        assert [event.seq for event in await store.list_events(job.id)] == [1, 2]
        assert store.failures == 0
        await store.close()

    run(scenario)


def test_while_the_server_is_away_writes_are_held_or_refused_and_then_go_on(
    own_postgres: Postgres, own_url: str
) -> None:
    async def scenario() -> None:
        store = await open_store(own_url)
        job = make_job()
        await store.add(job, accepted_draft())
        own_postgres.stop()
        held = [
            asyncio.ensure_future(store.append_events(job.id, [message(str(number))], hold=True))
            for number in range(20)
        ]
        refused = make_job()
        error = await expect_error(StoreUnavailable, store.add(refused, accepted_draft()))
        assert "the database cannot be reached" in str(error)
        await expect_error(StoreUnavailable, store.check())
        await expect_error(StoreUnavailable, store.get(job.id))
        own_postgres.start()
        added = await asyncio.gather(*held)
        assert [event.seq for (event,) in added] == list(range(2, 22))
        await store.check()
        events = await store.list_events(job.id)
        assert [event.seq for event in events] == list(range(1, 22))
        assert await store.get(refused.id) is None
        await store.add(refused, accepted_draft())
        await store.close()

    run(scenario)


@pytest.mark.parametrize("was_written", [True, False])
def test_a_commit_whose_answer_was_lost_is_neither_repeated_nor_forgotten(
    postgres_url: str,
    was_written: bool,  # noqa: FBT001
) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        job = make_job()
        await store.add(job, accepted_draft())
        engine = store._write_engine
        commit = engine.dialect.do_commit
        commits = []

        def failing_commit(connection: Any) -> None:
            commits.append(connection)
            if len(commits) > 1:
                commit(connection)
                return
            driver = connection.dbapi_connection
            if was_written:
                driver.commit()
            driver.close()
            raise psycopg.OperationalError("the answer of the test is lost")

        engine.dialect.do_commit = failing_commit  # type: ignore[method-assign,assignment]
        (event,) = await store.append_events(job.id, [message("once")], hold=True)
        assert event.seq == 2
        assert len(commits) > 1
        assert [each.seq for each in await store.list_events(job.id)] == [1, 2]
        await store.close()

    run(scenario)


def test_a_commit_that_has_not_ended_is_waited_for(postgres_url: str) -> None:
    engine = create_engine(postgres_url.replace("postgresql", "postgresql+psycopg"))
    marks = PostgresMarks()
    with engine.connect() as one, engine.begin() as other:
        transaction = one.begin()
        number = marks.mark(one)
        with pytest.raises(StoreError, match="has not ended"):
            marks.was_committed(other, number)
        transaction.commit()
        assert marks.was_committed(other, number)
        transaction = one.begin()
        undone = marks.mark(one)
        transaction.rollback()
        assert not marks.was_committed(other, undone)
        assert not marks.was_committed(other, undone + 1_000_000)
    engine.dispose()


# --- queries --------------------------------------------------------------------------------------


def test_a_query_that_takes_too_long_is_cut_off(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steadyhand.store.readers.QUERY_SECONDS", 0.2)

    async def scenario() -> None:
        store = await open_store(postgres_url)
        slow = store._readers.query(lambda at: fetch_all(at, "SELECT pg_sleep(60)"))
        await expect_error(QueryTooSlow, slow)
        assert await store.get("none") is None
        await store.close()

    run(scenario)


def test_what_fails_fails_alone_in_its_batch(postgres_url: str) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        job = make_job()
        await store.add(job, accepted_draft())
        others = [make_job() for _ in range(40)]
        results = await asyncio.gather(
            *(store.add(each, accepted_draft()) for each in (*others[:20], job, *others[20:])),
            return_exceptions=True,
        )
        assert [isinstance(each, StoreError) for each in results] == [number == 20 for number in range(41)]
        assert store.outage is None
        for each in others:
            assert [one.seq for one in await store.list_events(each.id)] == [1]
        await store.close()

    run(scenario)


def test_no_statement_is_prepared_on_the_server_and_no_setting_outlives_its_transaction(
    postgres: Postgres, postgres_url: str
) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        for _ in range(10):
            await store.add(make_job(), accepted_draft())
            await store.list_jobs(JobFilter(), 5)
        found = await store._writer.submit(
            lambda at: fetch_all(at, "SELECT count(*) FROM pg_prepared_statements")
        )
        assert found == [(0,)]
        found = await store._readers.read(
            lambda at: fetch_all(
                at, "SELECT current_setting('statement_timeout'), count(*) FROM pg_prepared_statements"
            )
        )
        assert found == [("0", 0)]
        await store.close()

    run(scenario)


def test_a_read_of_one_statement_commits_by_itself_and_one_of_several_sees_one_state(
    postgres_url: str,
) -> None:
    tries: list[int] = []

    def isolation(at: Connection) -> str:
        return str(fetch_all(at, "SHOW transaction_isolation")[0][0])

    def read_two(at: Connection) -> tuple[int, int]:
        tries.append(1)
        before = at.exec_driver_sql("SELECT count(*) FROM jobs").scalar_one()
        with psycopg.connect(postgres_url) as other:
            other.execute("DELETE FROM jobs")
        return before, fetch_all(at, "SELECT count(*) FROM jobs")[0][0]

    async def scenario() -> None:
        store = await open_store(postgres_url)
        for _ in range(CONNECTIONS):
            assert await store._readers.read_alone(isolation) == "read committed"
            assert await store._readers.read(isolation) == "repeatable read"
        await store.add(make_job(), accepted_draft())
        assert await store._readers.read_alone(read_two) == (0, 0), "the first try has deleted them"
        await store.add(make_job(), accepted_draft())
        assert await store._readers.read(read_two) == (1, 1)
        assert tries == [1, 1, 1]
        with pytest.raises(StoreError):
            await store._readers.read_alone(lambda at: fetch_all(at, "SELECT nothing"))
        assert await store._readers.read(isolation) == "repeatable read"
        await store.close()

    run(scenario)


# --- doctor ---------------------------------------------------------------------------------------


def look(url: str, directory: Path) -> DoctorCheck:
    (found,) = [check for check in check_store(url, directory) if check.name == "database"]
    return found


def test_the_doctor_names_the_database_and_changes_nothing(
    postgres: Postgres, postgres_url: str, postgres_database: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        found = await asyncio.to_thread(look, postgres_url, tmp_path)
        assert found.ok
        assert found.detail.endswith(
            f"database {postgres_url.rpartition('/')[2]} on 127.0.0.1, schema {NEWEST_REVISION}"
        )
        assert postgres.password not in found.detail
        await store.add(make_job(), accepted_draft())
        await store.close()

    run(scenario)
    empty = look(postgres.url(postgres_database), tmp_path)
    assert empty.ok
    assert "empty; the first start creates its tables" in empty.detail
    assert postgres.execute("SELECT to_regclass('jobs')", postgres_database) == [(None,)]


def test_the_doctor_tells_the_remedy(
    postgres: Postgres, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = postgres_url.rpartition("/")[2]
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    read_only = look(postgres_url, tmp_path)
    postgres.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    old_schema = postgres.execute("UPDATE alembic_version SET version_num = '0001'", name)
    assert old_schema == []
    older = look(postgres_url, tmp_path)
    away = look(postgres_url.replace("127.0.0.1", "127.0.0.2"), tmp_path)
    not_one = look("postgresql://h/x?nonsense=1", tmp_path)
    monkeypatch.setattr("steadyhand.store.database_url.find_spec", lambda _: None)
    no_extra = look(postgres_url, tmp_path)
    for check, told in (
        (read_only, "read-only"),
        (older, "schema 0001"),
        (away, "refused"),
        (not_one, "not a URL"),
        (no_extra, "steadyhand[postgres]"),
    ):
        assert not check.ok
        assert check.remedy
        assert told in check.detail


# --- schema ---------------------------------------------------------------------------------------


FIRST_SCHEMA = Path(__file__).with_name("postgres_0009.sql")
"""The schema of the first release with Postgres, as `pg_dump --schema-only` wrote it."""


@pytest.fixture(params=["new", "migrated"])
def any_url(request: pytest.FixtureRequest, postgres: Postgres) -> Iterator[str]:
    """The address of a database that is new, and of one that was made by the first release with Postgres."""
    name = postgres.create_database()
    if request.param == "migrated":
        with psycopg.connect(postgres.url(name)) as connection:
            connection.execute(FIRST_SCHEMA.read_bytes())
            connection.execute("INSERT INTO alembic_version VALUES ('0009')")

    async def open_once() -> None:
        store = await open_store(postgres.url(name))
        await store.add(make_job(), accepted_draft())
        await store.close()

    run(open_once)
    yield postgres.url(name)
    postgres.drop_database(name)


def test_a_database_has_the_tables_of_the_schema_also_after_migrations(any_url: str) -> None:
    engine = create_engine(any_url.replace("postgresql", "postgresql+psycopg"))
    with engine.connect() as connection:
        # The partitions have the columns of their table.
        names = {"compare_type": True, "include_name": lambda name, *_: not str(name).startswith("events_")}
        context = MigrationContext.configure(connection, opts=names)
        assert compare_metadata(context, create_metadata()) == []
    engine.dispose()


def test_text_is_in_the_order_of_its_bytes_and_of_any_length(postgres: Postgres, any_url: str) -> None:
    name = any_url.rpartition("/")[2]
    found = postgres.execute(
        "SELECT table_name, column_name, collation_name, data_type FROM information_schema.columns "
        "WHERE table_schema = 'public' AND data_type IN ('text', 'character varying', 'integer') "
        "AND table_name <> 'alembic_version'",
        name,
    )
    assert found
    assert [each for each in found if each[2:] != ("C", "text")] == []


def test_a_statement_of_sqlite_is_translated() -> None:
    assert postgres_text(
        "SELECT '50%' FROM a INDEXED BY ix_a WHERE x = ? AND y = ? AND instr(r, ':\"') > 0"
    ) == (
        b"SELECT '50%' FROM a WHERE x = $1 AND y = $2 AND strpos(r, ':\"') > 0",
        (),
    )
    text, _ = postgres_text("a = ? AND workspace IS ?")
    column, value = (
        f"sha256(replace(coalesce({each}, ''), chr(92), repeat(chr(92), 2))::bytea)"
        for each in ("workspace", "$2")
    )
    assert text.decode() == f"a = $1 AND {column} = {value}"
    assert postgres_text("x = :name AND y = CAST(z AS text)::xid8 AND a = :other AND b = :name") == (
        b"x = $1 AND y = CAST(z AS text)::xid8 AND a = $2 AND b = $1",
        ("name", "other"),
    )


def test_a_database_of_a_newer_version_is_refused(postgres: Postgres, postgres_url: str) -> None:
    for change in (
        "UPDATE alembic_version SET version_num = '9999'",
        "UPDATE schema_support SET oldest_revision = '9999'",
    ):
        postgres.execute(change, postgres_url.rpartition("/")[2])

    async def scenario() -> None:
        error = await expect_error(StoreError, open_store(postgres_url))
        assert "too old for the database's schema, 9999" in str(error)
        error = await expect_error(StoreError, open_store(postgres_url))  # the lock is free again
        assert "too old for the database's schema, 9999" in str(error)

    run(scenario)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("steadyhand:", "nobody:"), "password authentication failed"),
        (("127.0.0.1", "127.0.0.2"), "refused"),
        (("/test_", "/none_"), "does not exist"),
    ],
)
def test_a_database_that_cannot_be_opened_is_told_without_the_password(
    postgres: Postgres, postgres_url: str, change: tuple[str, str], told: str
) -> None:
    async def scenario() -> None:
        error = await expect_error(StoreError, open_store(postgres_url.replace(*change)))
        assert told in str(error)
        assert postgres.password not in str(error)

    run(scenario)


def test_without_the_extra_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steadyhand.store.database_url.find_spec", lambda _: None)

    async def scenario() -> None:
        error = await expect_error(ConfigError, open_store("postgresql://localhost/x"))
        assert "pip install 'steadyhand[postgres]'" in str(error)

    run(scenario)


def test_it_works_behind_pgbouncer_in_transaction_mode(pgbouncer_url: str) -> None:
    async def scenario() -> None:
        store: SqlStore = await open_store(pgbouncer_url)
        await expect_error(DatabaseBusy, open_store(pgbouncer_url))
        jobs = [make_job() for _ in range(30)]
        await asyncio.gather(*(store.add(job, accepted_draft()) for job in jobs))
        for job in jobs:
            await store.append_events(job.id, [message("one")])
            await store.update_job(job.id, frozenset({State.QUEUED}), lambda each: each)
        page = await store.list_jobs(JobFilter(), 50)
        assert {job.id for job in page.jobs} == {job.id for job in jobs}
        assert store.failures == 0
        await store.close()
        await (await open_store(pgbouncer_url)).close()

    run(scenario)
