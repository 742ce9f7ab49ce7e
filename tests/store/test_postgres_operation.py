"""What an operator meets: a database, a user or an address that is not as the store needs it."""

import asyncio
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from steadyhand.errors import ConfigError, DatabaseBusy, StoreError, StoreUnavailable
from steadyhand.ports import DoctorCheck, JobFilter
from steadyhand.store import check_store, open_store
from steadyhand.store.driver import fetch_all
from steadyhand.testing.contracts.samples import accepted_draft, expect_error, make_job
from steadyhand.testing.postgres import USER, Postgres

SECONDS = 60


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(SECONDS):
            await scenario()

    asyncio.run(bounded())


def look(url: str, directory: Path) -> DoctorCheck:
    (found,) = [check for check in check_store(url, directory) if check.name == "database"]
    return found


async def write_and_read(url: str) -> None:
    store = await open_store(url)
    job = make_job(prompt="hé 漢字 \x00", workspace="ä")
    await store.add(job, accepted_draft())
    kept = await store.get(job.id)
    assert kept is not None
    assert kept.spec == job.spec
    page = await store.list_jobs(JobFilter(workspace="ä", search="漢字"), 5)
    assert page.jobs[0].id == job.id
    await store.close()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_of_another_encoding_is_refused_before_a_table_is_made(
    postgres: Postgres, tmp_path: Path, encoding: str
) -> None:
    name = f"of_{encoding.lower()}"
    postgres.execute(
        f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )

    async def scenario() -> None:
        error = await expect_error(StoreError, open_store(postgres.url(name)))
        assert f"has the encoding {encoding}; create one with: createdb --encoding UTF8" in str(error)

    run(scenario)
    assert postgres.execute("SELECT to_regclass('jobs')", name) == [(None,)]
    found = look(postgres.url(name), tmp_path)
    assert not found.ok
    assert f"encoding {encoding}" in found.detail
    postgres.drop_database(name)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE jobs (id integer)",
        "CREATE VIEW keys AS SELECT 1 AS one",
        "CREATE TABLE procrastinate_jobs (id integer)",
    ],
)
def test_a_database_with_a_table_of_another_program_is_refused_and_stays_as_it_is(
    postgres: Postgres, tmp_path: Path, statement: str
) -> None:
    name = postgres.create_database()
    postgres.execute(statement, name)
    found = look(postgres.url(name), tmp_path)
    assert not found.ok
    table = statement.split()[2]
    assert (
        f"which has a table of another program with a name that Steadyhand needs: `{table}`" in found.detail
    )
    assert found.remedy == "Use an empty database."

    async def scenario() -> None:
        error = await expect_error(StoreError, open_store(postgres.url(name)))
        assert f"needs: `{table}`. Use an empty database." in str(error)

    run(scenario)
    assert postgres.execute("SELECT to_regclass('alembic_version'), to_regclass('events')", name) == [
        (None, None)
    ]
    postgres.drop_database(name)


def test_a_database_with_the_migrations_of_another_program_is_refused_with_that_reason(
    postgres: Postgres, postgres_database: str, tmp_path: Path
) -> None:
    url = postgres.url(postgres_database)
    postgres.execute("CREATE TABLE alembic_version AS SELECT 'ae1027a6acf' AS version_num", postgres_database)
    postgres.execute("CREATE TABLE jobs (id integer)", postgres_database)
    found = look(url, tmp_path)
    assert (found.ok, found.remedy) == (False, "Another program made this database: use another one.")

    async def scenario() -> None:
        error = await expect_error(StoreError, open_store(url))
        assert str(error) == "The database was made by another program and this one cannot read it."

    run(scenario)
    assert postgres.execute("SELECT to_regclass('events')", postgres_database) == [(None,)]


def test_the_doctor_says_that_a_newer_release_made_the_schema(
    postgres: Postgres, postgres_url: str, tmp_path: Path
) -> None:
    name = postgres_url.rpartition("/")[2]
    postgres.execute("UPDATE alembic_version SET version_num = '9999'", name)
    found = look(postgres_url, tmp_path)
    assert not found.ok
    assert found.remedy is not None
    assert found.remedy.startswith("A newer Steadyhand made this schema")
    postgres.execute("UPDATE alembic_version SET version_num = '0001'", name)
    found = look(postgres_url, tmp_path)
    assert (found.ok, found.remedy) == (False, "Start the service once: it migrates an older database.")


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param("timezone = 'Asia/Kathmandu'", marks=pytest.mark.long),
        pytest.param("datestyle = 'German'", marks=pytest.mark.long),
        "standard_conforming_strings = off",
        "default_transaction_isolation = 'serializable'",
        pytest.param("lock_timeout = '10ms'", marks=pytest.mark.long),
        "client_encoding = 'LATIN1'",
        pytest.param("bytea_output = 'escape'", marks=pytest.mark.long),
    ],
)
def test_the_settings_of_a_database_change_no_answer(
    postgres: Postgres, postgres_url: str, setting: str
) -> None:
    postgres.execute(f"ALTER DATABASE {postgres_url.rpartition('/')[2]} SET {setting}")
    run(lambda: write_and_read(postgres_url))


def test_the_encoding_of_the_environment_and_of_the_address_change_no_answer(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "SQL_ASCII")
    run(lambda: write_and_read(postgres_url))
    run(lambda: write_and_read(f"{postgres_url}?client_encoding=latin1"))


def test_a_limit_of_time_of_the_user_ends_no_write_and_no_wait_for_the_lock(
    postgres: Postgres, postgres_url: str
) -> None:
    postgres.execute(f"ALTER DATABASE {postgres_url.rpartition('/')[2]} SET statement_timeout = '150ms'")

    async def scenario() -> None:
        store = await open_store(postgres_url)
        error = await expect_error(DatabaseBusy, open_store(postgres_url))
        assert "in use by process" in str(error)
        await store._writer.submit(lambda at: fetch_all(at, "SELECT pg_sleep(0.3)"))
        await store._readers.read(lambda at: fetch_all(at, "SELECT pg_sleep(0.3)"))
        assert store.failures == 0
        await store.close()

    run(scenario)


def test_a_read_that_the_server_ends_is_a_store_that_cannot_be_read(postgres_url: str) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        ended = store._readers.read(
            lambda at: fetch_all(at, "SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(1)")
        )
        error = await expect_error(StoreUnavailable, ended)
        assert "the server ended a statement" in str(error)
        await store.close()

    run(scenario)


def test_a_user_who_loses_a_right_is_told_so_and_writes_are_held_until_it_is_back(
    postgres: Postgres, postgres_url: str, tmp_path: Path
) -> None:
    name = postgres_url.rpartition("/")[2]
    postgres.execute("CREATE ROLE reader LOGIN PASSWORD 'of-reader'")
    postgres.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader", name)
    url = f"postgresql://reader:of-reader@127.0.0.1:{postgres.port}/{name}"

    async def scenario() -> None:
        store = await open_store(url)
        job = make_job()
        error = await expect_error(StoreUnavailable, store.add(job, accepted_draft()))
        assert "the database's user lacks a right" in str(error)
        found = await asyncio.to_thread(look, url, tmp_path)
        assert not found.ok
        assert "the user may not INSERT, UPDATE, DELETE" in found.detail
        for kind in ("TABLES", "SEQUENCES"):
            grant = f"GRANT ALL ON ALL {kind} IN SCHEMA public TO reader"
            await asyncio.to_thread(postgres.execute, grant, name)
        await store.add(job, accepted_draft())
        await store.close()

    run(scenario)
    assert look(url, tmp_path).ok
    postgres.execute("DROP OWNED BY reader", name)
    postgres.execute("DROP ROLE reader")


def test_a_search_path_without_a_schema_is_a_failed_check(
    postgres: Postgres, postgres_database: str, tmp_path: Path
) -> None:
    postgres.execute(f"ALTER DATABASE {postgres_database} SET search_path = 'nope'")
    found = look(postgres.url(postgres_database), tmp_path)
    assert found.ok is False
    assert "may not create tables" in found.detail


@pytest.mark.parametrize(
    "password", ["a@sup3r", "1@sup3r/b", "a/sup3r", "a%sup3r", "a%zzsup3r", "a%00sup3r", "a sup3r", "a#sup3r"]
)
def test_no_part_of_a_password_is_in_an_error_or_its_cause(
    postgres: Postgres, tmp_path: Path, password: str
) -> None:
    url = f"postgresql://me:{password}@127.0.0.1:{postgres.port}/x"

    async def scenario() -> None:
        try:
            await open_store(url)
        except (ConfigError, StoreError) as error:
            told = "".join(traceback.format_exception(error))
        assert "sup3r" not in told

    run(scenario)
    found = look(url, tmp_path)
    assert not found.ok
    assert "sup3r" not in found.detail


def test_a_password_with_special_characters_works_as_a_url_has_it(
    postgres: Postgres, postgres_url: str
) -> None:
    name = postgres_url.rpartition("/")[2]
    postgres.execute("CREATE ROLE special LOGIN SUPERUSER PASSWORD 'p@ss/w%rd:?#&x'")
    for password in ("p%40ss%2Fw%25rd%3A%3F%23%26x", "p%40ss%2Fw%25rd:?#&x"):
        url = f"postgresql://special:{password}@127.0.0.1:{postgres.port}/{name}"
        run(lambda url=url: write_and_read(url))  # type: ignore[misc]
    postgres.execute("DROP ROLE special")


@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "POSTGRESQL", "postgres+asyncpg"])
def test_an_address_for_another_program_is_told_how_to_begin(scheme: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        error = await expect_error(ConfigError, open_store(f"{scheme}://me:sup3r@localhost/x"))
        assert "begins with postgresql://" in str(error)

    run(scenario)
    assert "begins with postgresql://" in look(f"{scheme}://me@localhost/x", tmp_path).detail


def test_a_user_with_too_few_connections_is_told_so_by_the_doctor_and_by_each_refusal(
    postgres: Postgres, postgres_database: str, tmp_path: Path
) -> None:
    postgres.execute("CREATE ROLE few LOGIN PASSWORD 'of-few' CONNECTION LIMIT 3")
    postgres.execute(f"ALTER DATABASE {postgres_database} OWNER TO few")
    url = f"postgresql://few:of-few@127.0.0.1:{postgres.port}/{postgres_database}"
    found = look(url, tmp_path)
    assert not found.ok
    assert "at most 3 connections" in found.detail
    assert "11" in (found.remedy or "")

    async def scenario() -> None:
        store = await open_store(url)
        reads = [store._readers.read(lambda at: fetch_all(at, "SELECT pg_sleep(0.3)")) for _ in range(3)]
        results = await asyncio.gather(*reads, return_exceptions=True)
        refused = [str(each) for each in results if isinstance(each, StoreUnavailable)]
        assert refused
        assert all("lacks room, memory or connections" in each for each in refused)
        await store.close()

    run(scenario)
    postgres.execute("ALTER ROLE few CONNECTION LIMIT 11")
    assert look(url, tmp_path).ok
    postgres.execute(f"REASSIGN OWNED BY few TO {USER}", postgres_database)
    postgres.execute("DROP ROLE few")
