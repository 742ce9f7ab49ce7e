"""A database of Postgres that one test after the other uses is before each as its template is."""

import psycopg
from tests.postgres_fixtures import ReusedDatabase

from steadyhand.testing.postgres import Postgres


def test_rows_counters_and_the_connections_of_others_are_gone(
    postgres: Postgres, store_template: str
) -> None:
    database = ReusedDatabase(postgres, store_template)
    url = database.prepare()
    with psycopg.connect(url) as connection:
        before = connection.execute("SELECT * FROM schema_support").fetchall()
    left = psycopg.connect(url, autocommit=True)
    try:
        left.execute("INSERT INTO sign_in_links VALUES ('a', 'b', 1)")
        left.execute("SELECT nextval(pg_get_serial_sequence('artifacts', 'sequence'))")
        left.execute("DELETE FROM schema_support")
        left.execute("BEGIN")
        left.execute("LOCK TABLE jobs")
        assert database.prepare() == url
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT count(*) FROM sign_in_links").fetchone() == (0,)
            query = "SELECT nextval(pg_get_serial_sequence('artifacts', 'sequence'))"
            assert connection.execute(query).fetchone() == (1,)
            assert connection.execute("SELECT * FROM schema_support").fetchall() == before
    finally:
        left.close()


def test_a_database_whose_schema_or_settings_were_changed_is_made_anew(
    postgres: Postgres, store_template: str
) -> None:
    database = ReusedDatabase(postgres, store_template)
    for statement in (
        "ALTER TABLE jobs ADD COLUMN more text",
        "DROP INDEX uq_jobs_id",
        "CREATE TABLE more (id integer)",
        "ALTER DATABASE {name} SET timezone = 'Asia/Kathmandu'",
        "GRANT SELECT ON jobs TO pg_monitor",
        "DROP DATABASE {name} WITH (FORCE)",
    ):
        name = database.prepare().rpartition("/")[2]
        postgres.execute(statement.format(name=name), "postgres" if "DATABASE" in statement else name)
        assert database.prepare().rpartition("/")[2] != name, statement
