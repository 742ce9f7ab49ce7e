"""The migrations make what `schema.py` says, the newest one is known by name, and `doctor` looks at the result."""

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

import steadyhand.store
from steadyhand.errors import StoreError
from steadyhand.ports import DoctorCheck
from steadyhand.store import check_store, open_store
from steadyhand.store.schema import METADATA, NEWEST_REVISION
from steadyhand.testing.contracts.samples import accepted_draft, expect_error, make_job
from steadyhand.testing.new_databases import copy_new_databases, migrate_new_databases

MIGRATIONS = Path(steadyhand.store.__file__).parent / "migrations"


@pytest.fixture(autouse=True)
def _run_migrations() -> Iterator[None]:
    """Let a new database run the migrations, of which other tests have a copy."""
    migrate_new_databases()
    yield
    copy_new_databases()


def make(path: Path) -> None:
    async def scenario() -> None:
        store = await open_store(f"sqlite:///{path}")
        await store.add(make_job(), accepted_draft())
        await store.close()

    asyncio.run(scenario())


def test_the_migrations_make_the_tables_of_the_schema(tmp_path: Path) -> None:
    make(tmp_path / "jobs.db")
    engine = create_engine(f"sqlite:///{tmp_path}/jobs.db")
    with engine.connect() as connection:
        # The full-text index is a table of SQLite alone, with tables of its own.
        names = {"compare_type": True, "include_name": lambda name, *_: not str(name).startswith("job_texts")}
        context = MigrationContext.configure(connection, opts=names)
        assert compare_metadata(context, METADATA) == []
        found = inspect(connection)
        for table in METADATA.tables.values():
            assert found.get_pk_constraint(table.name)["constrained_columns"] == list(
                table.primary_key.columns.keys()
            )
            cascades = {each["options"].get("ondelete") for each in found.get_foreign_keys(table.name)}
            # The files of a deleted job are removed a few at a time: they know that they have none.
            assert cascades <= ({"SET NULL"} if table.name == "artifacts" else {"CASCADE"})
    engine.dispose()


def test_the_revision_that_is_opened_without_alembic_is_the_newest() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_current_head() == NEWEST_REVISION


def test_an_up_to_date_database_is_opened_without_loading_alembic(tmp_path: Path) -> None:
    make(tmp_path / "jobs.db")
    program = (
        "import asyncio, sys\n"
        "from steadyhand.store import open_store\n"
        "async def go():\n"
        "    await (await open_store(sys.argv[1])).close()\n"
        "asyncio.run(go())\n"
        "sys.exit('alembic' in sys.modules)\n"
    )
    url = f"sqlite:///{tmp_path}/jobs.db"
    assert subprocess.run([sys.executable, "-c", program, url], timeout=60, check=False).returncode == 0


def test_every_table_can_be_made_on_postgres_too() -> None:
    for table in METADATA.sorted_tables:
        text = str(CreateTable(table).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]  # theirs
        assert f"CREATE TABLE {table.name}" in text


async def _refusal(path: Path) -> StoreError:
    return await expect_error(StoreError, open_store(f"sqlite:///{path}"))


def test_a_migration_that_was_broken_off_leaves_nothing_half_made(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE keys (id)")  # in the way of the second half
    asyncio.run(_refusal(path))
    with closing(sqlite3.connect(path)) as connection:
        names = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        assert names == {"keys"}
        connection.execute("DROP TABLE keys")
    make(path)


def by_name(checks: list[DoctorCheck]) -> dict[str, DoctorCheck]:
    return {check.name: check for check in checks}


def test_the_doctor_finds_nothing_wrong_with_a_good_store_beside_a_running_service(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"

    async def scenario() -> dict[str, DoctorCheck]:
        store = await open_store(url)
        await store.add(make_job(), accepted_draft())
        found = by_name(list(await asyncio.to_thread(check_store, url, tmp_path)))
        await store.add(make_job(), accepted_draft())
        await store.close()
        return found

    found = asyncio.run(scenario())
    assert {name: check.ok for name, check in found.items()} == {
        "disk": True,
        "database": True,
        "journal": True,
    }
    assert "GiB free" in found["disk"].detail


def test_the_doctor_makes_nothing_where_nothing_is(tmp_path: Path) -> None:
    found = by_name(list(check_store(f"sqlite:///{tmp_path}/new/jobs.db", tmp_path / "new")))
    assert all(check.ok for check in found.values())
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_names_what_is_wrong_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "jobs.db"
    path.write_text("this is no database, though it is long enough to look like one" * 100)
    bad_file = by_name(list(check_store(f"sqlite:///{path}", tmp_path)))["database"]
    bad_url = by_name(list(check_store("postgresql://localhost/x", tmp_path)))["database"]
    monkeypatch.setattr("steadyhand.store.doctor.MIN_FREE_BYTES", 1 << 62)
    no_room = by_name(list(check_store(f"sqlite:///{tmp_path}/new.db", tmp_path)))["disk"]
    for check in (bad_file, bad_url, no_room):
        assert not check.ok
        assert check.remedy
    assert "not a database" in bad_file.detail


def test_the_doctor_notices_a_database_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steadyhand.store.sqlite.BUSY_TIMEOUT_MS", 50)
    path = tmp_path / "jobs.db"
    make(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        found = by_name(list(check_store(f"sqlite:///{path}", tmp_path)))["database"]
    assert (found.ok, found.detail) == (False, "database is locked")
    assert f"End the program that holds {path}" in (found.remedy or "")
