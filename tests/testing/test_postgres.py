"""The private Postgres of the tests."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from steadyhand.testing.postgres import Postgres, find_binaries
from steadyhand.testing.service import wait_until

START_ONE = """
import sys, time
from pathlib import Path
from steadyhand.testing.postgres import Postgres
server = Postgres(Path(sys.argv[1])).start()
print(server.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


def test_databases_have_nothing_in_common(postgres: Postgres, postgres_database: str) -> None:
    other = postgres.create_database()
    postgres.execute("CREATE TABLE here (number integer)", postgres_database)
    assert postgres.execute("SELECT to_regclass('here')", postgres_database) == [("here",)]
    assert postgres.execute("SELECT to_regclass('here')", other) == [(None,)]
    postgres.drop_database(other)


def test_a_database_is_a_copy_of_its_template(postgres: Postgres, postgres_database: str) -> None:
    postgres.execute("CREATE TABLE here AS SELECT 7 AS number", postgres_database)
    copy = postgres.create_database(postgres_database)
    assert postgres.execute("SELECT number FROM here", copy) == [(7,)]
    postgres.drop_database(copy)


def test_it_asks_for_its_password(postgres: Postgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres.url().replace(postgres.password, "guessed"))


@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGQUIT])
def test_what_was_committed_is_there_after_a_restart(own_postgres: Postgres, how: signal.Signals) -> None:
    name = own_postgres.create_database()
    own_postgres.execute("CREATE TABLE here AS SELECT 7 AS number", name)
    before = own_postgres.pid
    own_postgres.restart(how)
    assert own_postgres.pid != before
    assert own_postgres.execute("SELECT number FROM here", name) == [(7,)]


def test_it_does_not_run_as_root(own_postgres: Postgres) -> None:
    assert Path(f"/proc/{own_postgres.pid}").stat().st_uid != 0


def test_it_ends_with_the_process_that_started_it(world_dir: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", START_ONE, world_dir], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_the_newest_server_is_taken() -> None:
    assert (find_binaries() / "postgres").is_file()
