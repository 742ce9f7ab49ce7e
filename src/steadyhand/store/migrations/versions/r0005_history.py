"""Indexes and derived tables, so that no query reads more rows for a longer history.

The full-text index is created empty; `store/upkeep.py` fills it from the newest job down while the service runs.
"""

import datetime as dt
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

from steadyhand.store.mapping import metadata_tags

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_RESTARTED = """state = 'interrupted' AND instr(record, '"at_start":"') > 0"""
_UNSTARTED_TURN = """state IN ('queued', 'running') AND instr(record, '"parent_job_id":"') > 0"""
_INDEXES: tuple[tuple[str, tuple[str, ...], str | None], ...] = (
    ("ix_jobs_api_key_id", ("api_key_id",), None),
    ("ix_jobs_agent", ("agent",), None),
    ("ix_jobs_workspace", ("workspace",), "workspace IS NOT NULL"),
    ("ix_jobs_group", ("api_key_id", "agent", "workspace", "state"), None),
    ("ix_jobs_finished_at", ("finished_at",), "finished_at IS NOT NULL"),
    ("ix_jobs_session_id", ("session_id",), "session_id IS NOT NULL"),
    ("ix_jobs_session_name", ("session_name", "api_key_id"), "session_name IS NOT NULL"),
    ("ix_jobs_conversation", ("conversation", "api_key_id"), "conversation IS NOT NULL"),
    ("ix_jobs_at_start", ("sequence",), _RESTARTED),
    ("ix_jobs_turns", ("sequence",), _UNSTARTED_TURN),
)
_REPLACED = ("finished_at", "session_id", "session_name", "conversation")
_SUMS = (
    "calls",
    "input",
    "output",
    "cache_read",
    "cache_write_5m",
    "cache_write_1h",
    "micros",
    "unpriced",
    "incomplete",
)
_ZONE_SIZE = 256
_CHUNK = 1000
_FIRST_MONTH_DAYS = 31


def upgrade() -> None:
    """Create the indexes and tables, and fill them from the rows that are there."""
    for name in _REPLACED:
        op.drop_index(f"ix_jobs_{name}", "jobs")
    for name, columns, condition in _INDEXES:
        where = None if condition is None else sa.text(condition)
        op.create_index(name, "jobs", list(columns), sqlite_where=where, postgresql_where=where)
    op.drop_index("ix_calls_day", "calls")
    op.drop_index("ix_calls_settled", "calls")
    op.create_index("ix_calls_day", "calls", ["day", "at"])
    op.create_index("ix_calls_settled", "calls", ["id"], sqlite_where=sa.text("settled = 0"))
    _make_tables()
    connection = op.get_bind()
    _fill_groups_and_zones(connection)
    _fill_tags(connection)
    _fill_sums(connection)
    newest = connection.execute(sa.text("SELECT max(sequence) FROM jobs")).scalar()
    if op.get_context().dialect.name == "sqlite":
        op.execute(
            "CREATE VIRTUAL TABLE job_texts USING fts5"
            "(title, prompt, scope, content='', tokenize='unicode61 remove_diacritics 2')"
        )
        if newest is not None:
            connection.execute(sa.text("INSERT INTO progress VALUES ('search', :newest)"), {"newest": newest})
        op.execute("PRAGMA analysis_limit = 400")
        op.execute("ANALYZE")


def downgrade() -> None:
    """Drop them."""
    if op.get_context().dialect.name == "sqlite":
        op.drop_table("job_texts")
    for table in ("progress", "usage_sums", "job_zones", "job_tags", "job_groups"):
        op.drop_table(table)
    op.drop_index("ix_calls_day", "calls")
    op.drop_index("ix_calls_settled", "calls")
    op.create_index("ix_calls_day", "calls", ["day"])
    op.create_index("ix_calls_settled", "calls", ["settled"])
    for name, _, _ in _INDEXES:
        op.drop_index(name, "jobs")
    for name in _REPLACED:
        op.create_index(f"ix_jobs_{name}", "jobs", [name])


def _make_tables() -> None:
    op.create_table(
        "job_groups",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("api_key_id", sa.String(64), nullable=False),
        sa.Column("agent", sa.String(64), nullable=False),
        sa.Column("workspace", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_job_groups"),
    )
    op.create_index("ix_job_groups_names", "job_groups", ["api_key_id", "agent", "workspace"])
    op.create_table(
        "job_tags",
        sa.Column("tag", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("group_id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("job", _SEQUENCE, nullable=False, autoincrement=False),
        sa.PrimaryKeyConstraint("tag", "group_id", "job", name="pk_job_tags"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "job_zones",
        sa.Column("zone", _SEQUENCE, nullable=False, autoincrement=False),
        sa.Column("first_created", sa.BigInteger, nullable=False),
        sa.Column("last_created", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("zone", name="pk_job_zones"),
    )
    op.create_table(
        "usage_sums",
        sa.Column("level", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("api_key_id", sa.String(64), nullable=False),
        sa.Column("start", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("agent", sa.String(64), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("provider", sa.String(64), nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _SUMS),
        sa.PrimaryKeyConstraint(
            "level", "api_key_id", "start", "agent", "model", "provider", name="pk_usage_sums"
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "progress",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_progress"),
    )


def _fill_groups_and_zones(connection: sa.Connection) -> None:
    connection.execute(
        sa.text(
            "INSERT INTO job_groups (api_key_id, agent, workspace) "
            "SELECT DISTINCT api_key_id, agent, workspace FROM jobs"
        )
    )
    connection.execute(
        sa.text(
            "INSERT INTO job_zones SELECT sequence / :size, min(created_at), max(created_at) "
            "FROM jobs GROUP BY sequence / :size"
        ),
        {"size": _ZONE_SIZE},
    )


def _fill_tags(connection: sa.Connection) -> None:
    groups = {
        (row.api_key_id, row.agent, row.workspace): row.id
        for row in connection.execute(sa.text("SELECT * FROM job_groups"))
    }
    insert = sa.text("INSERT INTO job_tags (tag, group_id, job) VALUES (:tag, :group_id, :job)")
    for rows in _jobs_with_metadata(connection):
        tags = [
            {"tag": tag, "group_id": groups[row.api_key_id, row.agent, row.workspace], "job": row.sequence}
            for row in rows
            for tag in metadata_tags(row.metadata)
        ]
        if tags:
            connection.execute(insert, sorted(tags, key=lambda each: each["tag"]))


def _jobs_with_metadata(connection: sa.Connection) -> Iterator[Any]:
    query = sa.text(
        "SELECT sequence, api_key_id, agent, workspace, metadata FROM jobs "
        "WHERE sequence > :after AND metadata IS NOT NULL ORDER BY sequence LIMIT :most"
    )
    after = 0
    while rows := connection.execute(query, {"after": after, "most": _CHUNK}).all():
        yield rows
        after = rows[-1].sequence


def _fill_sums(connection: sa.Connection) -> None:
    """Add up the settled calls by day, these without the key, by the key alone and without names, and all by month."""
    names = "api_key_id, day, agent, model, provider"
    counts = ", ".join(f"sum({name})" for name in _SUMS[1:7])
    connection.execute(
        sa.text(
            f"INSERT INTO usage_sums SELECT 0, {names}, count(*), {counts}, sum(1 - priced), sum(1 - complete) "  # noqa: S608  # our own words
            f"FROM calls WHERE settled = 1 GROUP BY {names}"
        )
    )
    sums = ", ".join(f"sum({name})" for name in _SUMS)
    for level, source, columns in (
        (1, 0, "'', start, agent, model, provider"),
        (2, 0, "api_key_id, start, '', '', ''"),
        (3, 2, "'', start, '', '', ''"),
    ):
        by = columns.replace("'', ", "").replace(", ''", "")
        connection.execute(
            sa.text(
                f"INSERT INTO usage_sums SELECT {level}, {columns}, {sums} "  # noqa: S608
                f"FROM usage_sums WHERE level = {source} GROUP BY {by}"
            )
        )
    days = connection.execute(sa.text("SELECT DISTINCT start FROM usage_sums WHERE level = 2")).scalars()
    for first, last in sorted({_month_of(day) for day in days}):
        connection.execute(
            sa.text(
                f"INSERT INTO usage_sums SELECT level + 4, api_key_id, :first, agent, model, provider, {sums} "  # noqa: S608
                "FROM usage_sums WHERE level < 4 AND start >= :first AND start < :last "
                "GROUP BY level, api_key_id, agent, model, provider"
            ),
            {"first": first, "last": last},
        )


def _month_of(day: int) -> tuple[int, int]:
    """Return the first day of a day's month and of the next one, as numbers since 1970."""
    epoch = dt.date(1970, 1, 1)
    first = (epoch + dt.timedelta(days=day)).replace(day=1)
    return (first - epoch).days, ((first + dt.timedelta(days=_FIRST_MONTH_DAYS)).replace(day=1) - epoch).days
