"""The tables for SQLAlchemy Core. `migrations/` creates them, and a test checks that both agree.

SQLite and Postgres share one schema; `store/postgres/postgres_tables.py` has what differs there. Times are integers
(microseconds since 1970 in UTC). Fields that no query filters on are JSON text in ASCII, which keeps even a lone
surrogate. No type belongs to one database only. The number of a job's newest event is the greatest `events.seq`, not a
column: otherwise each new event would rewrite the job's row, which may hold a prompt of megabytes.

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
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

from steadyhand.store.driver import POSTGRES

OLDEST_REVISION = "0014"
"""The newest revision of the oldest code that works with this schema.

A migration that only adds leaves it alone: nodes of the version before go on beside this one. One that takes something
away, once no such code reads or writes it, raises it. See CONTRIBUTING.md.
"""
NEWEST_REVISION = "0016"
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

ROWS_OF_INDEX = "where"
"""The key of the condition in the `info` of an index of some rows alone, as SQLite writes it."""
IS_RESTARTED = """state = 'interrupted' AND instr(record, '"at_start":"') > 0"""
"""The condition that the next start queues an interrupted job again, or that its record has such a text elsewhere."""
IS_UNSTARTED_TURN = """state IN ('queued', 'running') AND instr(record, '"parent_job_id":"') > 0"""
"""The same for a turn that may still need the session of its parent; see `Store.list_awaited`."""


def _where(condition: str) -> dict[str, Any]:
    """Return the arguments of an index of those rows alone.

    Another database takes the condition from `info`: an argument named after it would load its dialect at each start.
    """
    return {"sqlite_where": text(condition), "info": {ROWS_OF_INDEX: condition}}


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

deliveries = Table(
    "deliveries",  # the outbox of callbacks
    METADATA,
    Column("sequence", _SEQUENCE_TYPE, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False),
    Column(
        "job", _SEQUENCE_TYPE, ForeignKey("jobs.sequence", ondelete="CASCADE")
    ),  # null if it is of a schedule
    Column("schedule", String(32), ForeignKey("schedules.id", ondelete="CASCADE")),
    Column("endpoint", String(64)),  # null for the address that the job names
    Column("circuit", Text, nullable=False),
    Column("type", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("behind", Integer, nullable=False),  # 1 while an earlier one of its job and receiver is pending
    Column("created_at", BigInteger, nullable=False),
    Column("due_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("attempted_at", BigInteger),
    Column("status", Integer),
    Column("error", Text),
    Column("url", Text),
    Column("body", Text, nullable=False),
    Column("claimed_until", BigInteger),  # while a node sends it; on one node null
    Index("uq_deliveries_id", "id", unique=True),
    Index("ix_deliveries_job", "job", "state"),
    Index("ix_deliveries_schedule", "schedule", **_where("schedule IS NOT NULL")),
    Index("ix_deliveries_due", "circuit", "due_at", **_where("state = 'pending' AND behind = 0")),
    sqlite_autoincrement=True,
)

callback_endpoints = Table(
    "callback_endpoints",  # those that are made by the API
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("url", Text, nullable=False),
    Column("events", Text, nullable=False),  # JSON lists
    Column("agents", Text, nullable=False),
    Column("body", String(16), nullable=False),
    Column("secrets", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

saved_items = Table(
    "saved_items",  # the views and prompts that a key saves
    METADATA,
    Column("api_key_id", String(64), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("content", Text, nullable=False),
    Column("saved_at", BigInteger, nullable=False),
)

deleted_jobs = Table(
    "deleted_jobs",  # those of the last days: their files may be left, here or on another node
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("deleted_at", BigInteger, nullable=False),
    Index("ix_deleted_jobs_deleted_at", "deleted_at"),
)

page_sessions = Table(
    "page_sessions",  # those of browsers, on many nodes
    METADATA,
    Column("digest", String(64), primary_key=True),
    Column("key_digest", String(64), nullable=False),
    Column("begun_at", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
)

sign_in_links = Table(
    "sign_in_links",  # on many nodes
    METADATA,
    Column("digest", String(64), primary_key=True),
    Column("key_digest", String(64), nullable=False),
    Column("until", BigInteger, nullable=False),
)

shared_secrets = Table(
    "shared_secrets",  # those that the nodes of one database make for themselves
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

artifacts = Table(
    "artifacts",  # the files that jobs leave, where they are shared between nodes; see `artifact_rows`
    METADATA,
    Column("sequence", _SEQUENCE_TYPE, primary_key=True, autoincrement=True),
    Column(
        "job", _SEQUENCE_TYPE, ForeignKey("jobs.sequence", ondelete="SET NULL")
    ),  # null once it is deleted
    Column("name", String(32), nullable=False),
    Column("run", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("object_key", String(255)),  # null if its chunks are in the database
    Column("at", BigInteger, nullable=False),
    Index("ix_artifacts_job", "job", "name"),
    Index("ix_artifacts_unused", "sequence", **_where("job IS NULL OR state <> 'stored'")),
    sqlite_autoincrement=True,
)

artifact_chunks = Table(
    "artifact_chunks",
    METADATA,
    Column(
        "artifact",
        _SEQUENCE_TYPE,
        ForeignKey("artifacts.sequence", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

schedules = Table(
    "schedules",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("api_key_id", String(64), nullable=False),
    Column("origin", String(16), nullable=False),
    Column("spec", Text, nullable=False),  # JSON
    Column("created_at", BigInteger, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("next_at", BigInteger),  # null while it is paused
    Column("paused_at", BigInteger),
    Column("pause_reason", String(32)),
    Column("pause_detail", Text),
    Column("runs", BigInteger, nullable=False),
    Column("spent_micros", BigInteger, nullable=False),
    Column("failures", Integer, nullable=False),  # in a row
    Column("failures_since", BigInteger, nullable=False),  # the ticks up to this one do not count as failures
    Index("uq_schedules_name", "name", unique=True),
    Index("ix_schedules_next_at", "next_at"),
)

schedule_ticks = Table(
    "schedule_ticks",  # the history of schedules; its unique key is the claim of a tick
    METADATA,
    Column("sequence", _SEQUENCE_TYPE, primary_key=True, autoincrement=True),
    Column("schedule", String(32), ForeignKey("schedules.id", ondelete="CASCADE"), nullable=False),
    Column("tick", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("result", String(16), nullable=False),
    Column("reason", String(64)),
    Column("detail", Text),
    Column("count", Integer, nullable=False),
    Column("job_id", String(64)),  # no reference: the history outlives a job
    Column("budget_micros", BigInteger, nullable=False),
    Column("outcome", String(32)),
    Column("failed", Integer, nullable=False),  # 0 or 1; 2 if its job was cancelled
    Column("settled", Integer, nullable=False),  # 0 or 1
    Column("micros", BigInteger, nullable=False),
    Index("uq_schedule_ticks_tick", "schedule", "tick", unique=True),
    Index("ix_schedule_ticks_history", "schedule", "sequence"),
    Index("ix_schedule_ticks_job_id", "job_id"),
    Index("ix_schedule_ticks_open", "schedule", "sequence", **_where("settled = 0")),
    sqlite_autoincrement=True,
)

schema_support = Table(
    "schema_support",  # one row: what the newest migration says to code that does not know it
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),  # 1
    Column("oldest_revision", String(32), nullable=False),  # as `OLDEST_REVISION`
)

drained_nodes = Table(
    "drained_nodes",  # those that take no new runs, whether they are there or not
    METADATA,
    Column("name", String(128), primary_key=True),
    Column("drained_at", BigInteger, nullable=False),
    Column("drained_by", String(64), nullable=False),
    Column("until_restart", Integer, nullable=False),  # 0 or 1
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
    Column("workspace", Text, nullable=False, server_default=""),  # empty without one, or if it is not known
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
    Column("workspace", Text, primary_key=True, server_default=""),
    *(Column(name, BigInteger, nullable=False) for name in SUM_NAMES),
    sqlite_with_rowid=False,
)

progress = Table(
    "progress",  # of work on older rows that is done a piece at a time
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

for _table in METADATA.tables.values():
    for _column in _table.columns:
        # A value that SQLite takes is never too long or too great for a parameter of a statement.
        if isinstance(_column.type, String):
            _column.type = _column.type.with_variant(Text(), POSTGRES)
        elif type(_column.type) is Integer:
            _column.type = _column.type.with_variant(BigInteger(), POSTGRES)
