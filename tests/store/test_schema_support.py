"""Versions side by side on one database: what an older and a newer one do with its schema."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from steadyhand import __version__
from steadyhand.cli.app import print_error
from steadyhand.cli.exit_codes import ExitCode, exit_code_for_error
from steadyhand.errors import SchemaInUse, SchemaTooNew
from steadyhand.store import open_store
from steadyhand.store.schema import NEWEST_REVISION, OLDEST_REVISION
from steadyhand.testing.contracts.samples import accepted_draft, expect_error, make_job
from steadyhand.testing.postgres import Postgres

FIRST_SCHEMA = Path(__file__).with_name("postgres_0009.sql")
LIVING_NODE = """
    CREATE TABLE queue_nodes (node text, version text, schema_revision text, lost_at timestamptz,
        lease_at timestamptz DEFAULT now());
    INSERT INTO queue_nodes VALUES ('build-1', '0.0.9', '0009', NULL), ('build-2', '0.0.9', '0009', now());
"""


@pytest.fixture
def old_postgres_url(postgres: Postgres) -> Iterator[str]:
    """The address of a database with the schema 0009."""
    name = postgres.create_database()
    with psycopg.connect(postgres.url(name)) as connection:
        connection.execute(FIRST_SCHEMA.read_bytes())
        connection.execute("INSERT INTO alembic_version VALUES ('0009')")
    yield postgres.url(name)
    postgres.drop_database(name)


async def make(url: str) -> None:
    """Open a database and put a job in."""
    store = await open_store(url)
    await store.add(make_job(), accepted_draft())
    await store.close()


def migrate_as_a_newer_version(path: Path, oldest: str) -> None:
    """Change a database as a later version would, whose schema works with code from `oldest` on."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute("UPDATE schema_support SET oldest_revision = ?", (oldest,))
        connection.execute("CREATE TABLE later (id INTEGER)")
        connection.execute("ALTER TABLE jobs ADD COLUMN later TEXT")


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def test_a_new_database_names_the_oldest_code_that_works_with_it(tmp_path: Path) -> None:
    asyncio.run(make(f"sqlite:///{tmp_path}/jobs.db"))
    assert rows(tmp_path / "jobs.db", "SELECT * FROM schema_support") == [(1, OLDEST_REVISION)]
    assert OLDEST_REVISION <= NEWEST_REVISION


def test_a_version_goes_on_with_a_newer_schema_that_only_adds(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    asyncio.run(make(f"sqlite:///{path}"))
    migrate_as_a_newer_version(path, NEWEST_REVISION)
    asyncio.run(make(f"sqlite:///{path}"))
    assert rows(path, "SELECT count(*) FROM jobs") == [(2,)]
    assert rows(path, "SELECT version_num FROM alembic_version") == [("9999",)]


def test_a_version_stays_out_of_a_newer_schema_that_it_is_too_old_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "jobs.db"
    asyncio.run(make(f"sqlite:///{path}"))
    migrate_as_a_newer_version(path, "9999")
    error = asyncio.run(expect_error(SchemaTooNew, open_store(f"sqlite:///{path}")))
    assert str(error) == f"Steadyhand {__version__} is too old for the database's schema, 9999."
    assert exit_code_for_error(error) is ExitCode.USAGE, "at which systemd does not start it again"
    print_error(error)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "  Upgrade this node. Nodes of the newer version go on meanwhile."
    assert max(map(len, lines)) <= 80
    assert rows(path, "SELECT count(*) FROM jobs") == [(1,)]


def test_a_newer_schema_that_names_no_oldest_code_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    asyncio.run(make(f"sqlite:///{path}"))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute("DROP TABLE schema_support")
    asyncio.run(expect_error(SchemaTooNew, open_store(f"sqlite:///{path}")))


def test_a_migration_waits_until_no_node_is_at_work_that_is_too_old_for_it(old_postgres_url: str) -> None:
    with psycopg.connect(old_postgres_url) as connection:
        connection.execute(LIVING_NODE)
    error = asyncio.run(expect_error(SchemaInUse, open_store(old_postgres_url)))
    assert str(error) == f"Nodes too old for the schema of {__version__} are at work: build-1 (0.0.9)."
    assert exit_code_for_error(error) is ExitCode.TRY_LATER
    with psycopg.connect(old_postgres_url) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("0009",)]
        connection.execute("UPDATE queue_nodes SET lease_at = now() - interval '1 minute'")
    asyncio.run(make(old_postgres_url))
    with psycopg.connect(old_postgres_url) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [
            (NEWEST_REVISION,)
        ]
        assert connection.execute("SELECT * FROM schema_support").fetchall() == [(1, OLDEST_REVISION)]
