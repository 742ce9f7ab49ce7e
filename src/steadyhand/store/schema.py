"""The tables for SQLAlchemy Core. `migrations/` creates them, and a test checks that both agree.

SQLite and Postgres share one schema. Times are integers (microseconds since 1970 in UTC). Fields that no query
filters on are JSON text in ASCII, which keeps even a lone surrogate. No type belongs to one database only. The number
of a job's newest event is the greatest `events.seq`, not a column: otherwise each new event would rewrite the job's
row, which may hold a prompt of megabytes.
"""

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
)

NEWEST_REVISION = "0004"
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
    Index("ix_jobs_finished_at", "finished_at"),
    Index("ix_jobs_session_id", "session_id"),
    Index("ix_jobs_session_name", "session_name"),
    Index("ix_jobs_conversation", "conversation"),
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
    Index("ix_calls_day", "day"),
    Index("ix_calls_settled", "settled"),
)
