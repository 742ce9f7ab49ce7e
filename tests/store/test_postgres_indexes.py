"""The indexes on Postgres: those that serve lists, and the texts for which a row of an index has room."""

from sqlalchemy import create_engine

from steadyhand.store.driver import execute, fetch_all
from steadyhand.testing.postgres import Postgres


def test_the_first_job_of_a_group_is_found_by_its_index(postgres_url: str) -> None:
    statement = (
        "EXPLAIN SELECT sequence FROM jobs INDEXED BY ix_jobs_group WHERE sequence < 9 AND sequence >= 0 "
        "AND api_key_id = 'k' AND agent = 'a' AND workspace IS ? AND state = 'queued' ORDER BY sequence DESC LIMIT 5"
    )
    engine = create_engine(postgres_url.replace("postgresql", "postgresql+psycopg"))
    with engine.connect() as connection:
        for setting in ("seqscan", "bitmapscan", "sort"):
            execute(connection, f"SET LOCAL enable_{setting} = off")
        # An empty table has no best index. Nothing here is committed.
        execute(connection, "DROP INDEX ix_jobs_api_key_id, ix_jobs_agent, ix_jobs_state")
        for workspace in (None, "infra"):
            plan = " ".join(row[0] for row in fetch_all(connection, statement, (workspace,)))
            assert "ix_jobs_group" in plan
            assert "Filter" not in plan
            assert "Sort" not in plan
    engine.dispose()


def test_the_jobs_of_a_workspace_are_found_by_its_index(postgres_url: str) -> None:
    statement = (
        "EXPLAIN SELECT sequence FROM jobs INDEXED BY ix_jobs_workspace WHERE sequence < 9 AND sequence >= 0 "
        "AND workspace = ? ORDER BY sequence DESC LIMIT 5"
    )
    engine = create_engine(postgres_url.replace("postgresql", "postgresql+psycopg"))
    with engine.connect() as connection:
        for setting in ("seqscan", "bitmapscan", "sort"):
            execute(connection, f"SET LOCAL enable_{setting} = off")
        execute(connection, "DROP INDEX ix_jobs_api_key_id, ix_jobs_agent, ix_jobs_state, ix_jobs_group")
        plan = " ".join(row[0] for row in fetch_all(connection, statement, ("infra",)))
        assert "ix_jobs_workspace" in plan
        assert "Filter" not in plan
        assert "Sort" not in plan
    engine.dispose()


_SHORT_TEXTS = {
    "alembic_version": "version_num",
    "artifacts": "name",
    "callback_endpoints": "name",
    "calls": "id job_id",
    "deleted_jobs": "id",
    "deliveries": "circuit id schedule state",
    "drained_nodes": "name",
    "idempotency": "api_key_id key",
    "job_groups": "agent api_key_id",
    "jobs": "agent api_key_id conversation id session_id session_name state",
    "keys": "id",
    "page_sessions": "digest",
    "progress": "name",
    "saved_items": "api_key_id kind name",
    "schedule_ticks": "job_id schedule",
    "schedules": "id name",
    "shared_secrets": "name",
    "sign_in_links": "digest",
    "usage_sums": "agent api_key_id model provider workspace",
}
"""The texts in indexes. All of one row together have to fit into 2,704 bytes, whatever a caller sends."""


def test_indexes_have_no_texts_but_those_that_are_known_to_be_short(
    postgres: Postgres, postgres_url: str
) -> None:
    found = postgres.execute(
        "SELECT relname, string_agg(DISTINCT attname, ' ' ORDER BY attname) FROM pg_index "
        "JOIN pg_class ON pg_class.oid = indrelid JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey) "
        "JOIN pg_am ON pg_am.oid = (SELECT relam FROM pg_class WHERE oid = indexrelid) "
        "WHERE relnamespace = 'public'::regnamespace AND amname = 'btree' "
        "AND atttypid IN ('text'::regtype, 'varchar'::regtype) GROUP BY relname",
        postgres_url.rpartition("/")[2],
    )
    assert dict(found) == {table: " ".join(sorted(names.split())) for table, names in _SHORT_TEXTS.items()}
