"""The tables for SQLAlchemy Core. `migrations/` creates them, and a test checks that both agree.

SQLite and Postgres share one schema. Times are integers (microseconds since 1970 in UTC). Fields that no query
filters on are JSON text in ASCII, which keeps even a lone surrogate. No type belongs to one database only. The number
of a job's newest event is the greatest `events.seq`, not a column: otherwise each new event would rewrite the job's
row, which may hold a prompt of megabytes.

A list is ordered by `jobs.sequence`. An index of SQLite ends with the primary key of its table, so each index of jobs
also has that order; another database needs the column in the index. The tables after `calls` are derived from the
others in the same transaction, so that no query reads more rows for a longer history. The full-text index of SQLite is
not here: `store/search.py` and its migration have it.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

NEWEST_REVISION = "0005"
"""The newest migration. A database with this revision opens without Alembic."""

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite counts up by itself only in a column that is spelled INTEGER.
_SEQUENCE_TYPE = BigInteger().with_variant(Integer(), "sqlite")

IS_RESTARTED = """state = 'interrupted' AND instr(record, '"at_start":"') > 0"""
"""The condition that the next start queues an interrupted job again, or that its record has such a text elsewhere."""
IS_UNSTARTED_TURN = """state IN ('queued', 'running') AND instr(record, '"parent_job_id":"') > 0"""
"""The same for a turn that may still need the session of its parent; see `Store.list_awaited`."""


def _where(condition: str) -> dict[str, Any]:
    """Return the arguments of an index of those rows alone."""
    return {"sqlite_where": text(condition)}


def _job_column(*, primary_key: bool = False) -> Column[int]:
    return Column(
        "job",
        _SEQUENCE_TYPE,
        ForeignKey("jobs.sequence", ondelete="CASCADE"),
        primary_key=primary_key,
        nullable=False,
        autoincrement=False,
    )


jobs = Table(
    "jobs",
    METADATA,
    Column("sequence", _SEQUENCE_TYPE, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("api_key_id", String(64), nullable=False),
    Column("agent", String(64), nullable=False),
    Column("workspace", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    Column("metadata", Text),  # the JSON object, or null
    Column(
        "session_id", String(64)
    ),  # as in the record; this and the two below find a conversation to continue
    Column("session_name", String(128)),
    Column("conversation", String(64)),
    Column("record", Text, nullable=False),  # the JSON object of every small field without a column
    # Large columns come last: SQLite then reads the columns above without them.
    Column("structured_output", Text),  # JSON
    Column("history", Text),  # JSON
    Column("answer", Text),  # a JSON string
    Column("prompt", Text, nullable=False),
    Index("uq_jobs_id", "id", unique=True),
    Index("ix_jobs_state", "state"),
    Index("ix_jobs_api_key_id", "api_key_id"),
    Index("ix_jobs_agent", "agent"),
    Index("ix_jobs_workspace", "workspace", **_where("workspace IS NOT NULL")),
    Index("ix_jobs_group", "api_key_id", "agent", "workspace", "state"),
    Index("ix_jobs_finished_at", "finished_at", **_where("finished_at IS NOT NULL")),
    Index("ix_jobs_session_id", "session_id", **_where("session_id IS NOT NULL")),
    Index("ix_jobs_session_name", "session_name", "api_key_id", **_where("session_name IS NOT NULL")),
    Index("ix_jobs_conversation", "conversation", "api_key_id", **_where("conversation IS NOT NULL")),
    Index("ix_jobs_at_start", "sequence", **_where(IS_RESTARTED)),
    Index("ix_jobs_turns", "sequence", **_where(IS_UNSTARTED_TURN)),
    sqlite_autoincrement=True,
)

runs = Table(
    "runs",
    METADATA,
    _job_column(primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("outcome", Text),  # JSON
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("exit_code", BigInteger),
    Column("node", Text),
    Column("supervisor", BigInteger),
    Column("supervisor_started", BigInteger),
)

events = Table(
    "events",
    METADATA,
    _job_column(primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("run", Integer, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("type", String(32), nullable=False),
    Column("data", Text, nullable=False),  # the JSON object
)

keys = Table(
    "keys",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("scopes", Text, nullable=False),  # a JSON list
    Column("created_at", BigInteger, nullable=False),
    Column("limits", Text),  # the JSON object of the limits, or null
    Column("revoked_at", BigInteger),
    Column("former_digest", String(64)),
    Column("former_until", BigInteger),
)

idempotency = Table(
    "idempotency",
    METADATA,
    Column("api_key_id", String(64), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    _job_column(),
    Column("created_at", BigInteger, nullable=False),
    Index("ix_idempotency_created_at", "created_at"),
    Index("ix_idempotency_job", "job"),
)

run_outputs = Table(
    "run_outputs",
    METADATA,
    _job_column(primary_key=True),
    Column("run", Integer, primary_key=True, autoincrement=False),
    Column("output", Text, nullable=False),  # a JSON list of lines
    Column("stderr", Text, nullable=False),  # a JSON string
)

# Without a reference to the job: the cost is kept after the job is deleted.
calls = Table(
    "calls",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("job_id", String(64), nullable=False),
    Column("run", Integer, nullable=False),
    Column("api_key_id", String(64), nullable=False),
    Column("agent", String(64), nullable=False),
    Column("provider", String(64), nullable=False),
    Column("model", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("day", Integer, nullable=False),  # since 1970, in UTC
    Column("settled", Integer, nullable=False),  # 0 or 1, as the flags below
    Column("reserved_micros", BigInteger, nullable=False),
    Column("micros", BigInteger, nullable=False),
    Column("input", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    Column("cache_read", BigInteger, nullable=False),
    Column("cache_write_5m", BigInteger, nullable=False),
    Column("cache_write_1h", BigInteger, nullable=False),
    Column("priced", Integer, nullable=False),
    Column("complete", Integer, nullable=False),
    Column("status", Integer),
    Column("source", String(16), nullable=False),
    Index("ix_calls_job_id", "job_id"),
    Index("ix_calls_day", "day", "at"),
    Index("ix_calls_settled", "id", **_where("settled = 0")),
)

# --- derived ---------------------------------------------------------------------------------------

job_groups = Table(
    "job_groups",  # each combination of the three that a job has
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("api_key_id", String(64), nullable=False),
    Column("agent", String(64), nullable=False),
    Column("workspace", Text),
    Index("ix_job_groups_names", "api_key_id", "agent", "workspace"),
)

# Without references: SQLite would search the whole table for each job that is deleted.
job_tags = Table(
    "job_tags",  # the metadata of jobs
    METADATA,
    Column(
        "tag", BigInteger, primary_key=True, autoincrement=False
    ),  # `mapping.metadata_tag` of a name and a value
    Column("group_id", Integer, primary_key=True, autoincrement=False),
    Column("job", _SEQUENCE_TYPE, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)

ZONE_SIZE = 256
"""The jobs in a zone: those whose `sequence`, divided by this, is the number of the zone."""

job_zones = Table(
    "job_zones",  # the range of `jobs.created_at` in each zone; wider than it need be once jobs are deleted
    METADATA,
    Column("zone", _SEQUENCE_TYPE, primary_key=True, autoincrement=False),
    Column("first_created", BigInteger, nullable=False),
    Column("last_created", BigInteger, nullable=False),
)

SUM_NAMES = (
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
"""The sums in a row of `usage_sums`; the last two are numbers of calls."""

usage_sums = Table(
    "usage_sums",  # of settled calls; `usage_sums.py` has the levels
    METADATA,
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column(
        "api_key_id", String(64), primary_key=True
    ),  # this and the names below are empty on a level without them
    Column(
        "start", Integer, primary_key=True, autoincrement=False
    ),  # the first day of the period, as `calls.day`
    Column("agent", String(64), primary_key=True),
    Column("model", Text, primary_key=True),
    Column("provider", String(64), primary_key=True),
    *(Column(name, BigInteger, nullable=False) for name in SUM_NAMES),
    sqlite_with_rowid=False,
)

progress = Table(
    "progress",  # of work on older rows that is done a piece at a time
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
