"""A new database of a test is a copy of one that the migrations have created."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from steadyhand.store import open_store
from steadyhand.testing.new_databases import copy_new_databases, migrate_new_databases


@pytest.fixture
def migrated(tmp_path: Path) -> Path:
    """A new database whose migrations have run."""
    migrate_new_databases()
    try:
        return create(tmp_path / "migrated.db")
    finally:
        copy_new_databases()


def create(path: Path) -> Path:
    async def open_and_close() -> None:
        await (await open_store(f"sqlite:///{path}")).close()

    asyncio.run(open_and_close())
    return path


def contents(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        pragmas = [connection.execute(f"PRAGMA {name}").fetchone() for name in ("journal_mode", "page_size")]
        return [*map(str, pragmas), *sorted(connection.iterdump())]  # indexes are created in any order


def test_a_copy_has_the_tables_and_rows_of_a_database_that_was_migrated(
    migrated: Path, tmp_path: Path
) -> None:
    copied = create(tmp_path / "copied.db")
    assert contents(copied) == contents(migrated)
    assert copied.stat().st_mode == migrated.stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copied.db", "migrated.db"]


def test_a_file_that_exists_is_migrated_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE of_another_program (id)")
    create(path)
    with closing(sqlite3.connect(path)) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    assert {"of_another_program", "jobs"} <= names
