"""Jobs, their runs, events and outputs; keys and idempotency."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _job_reference(table: str) -> list[sa.Column[int] | sa.ForeignKeyConstraint]:
    return [
        sa.Column("job", _SEQUENCE, nullable=False, autoincrement=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.sequence"], name=f"fk_{table}_job", ondelete="CASCADE"),
    ]


def upgrade() -> None:
    """Create the first tables."""
    _make_jobs()
    _make_parts_of_jobs()
    _make_keys()


def downgrade() -> None:
    """Drop them."""
    for table in ("run_outputs", "idempotency", "keys", "events", "runs", "jobs"):
        op.drop_table(table)


def _make_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("sequence", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("api_key_id", sa.String(64), nullable=False),
        sa.Column("agent", sa.String(64), nullable=False),
        sa.Column("workspace", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("finished_at", sa.BigInteger),
        sa.Column("metadata", sa.Text),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("structured_output", sa.Text),
        sa.Column("history", sa.Text),
        sa.Column("answer", sa.Text),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_jobs"),
        sqlite_autoincrement=True,
    )
    op.create_index("uq_jobs_id", "jobs", ["id"], unique=True)
    op.create_index("ix_jobs_state", "jobs", ["state"])
    op.create_index("ix_jobs_finished_at", "jobs", ["finished_at"])


def _make_parts_of_jobs() -> None:
    op.create_table(
        "runs",
        *_job_reference("runs"),
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("outcome", sa.Text),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("finished_at", sa.BigInteger),
        sa.Column("exit_code", sa.BigInteger),
        sa.Column("node", sa.Text),
        sa.Column("supervisor", sa.BigInteger),
        sa.Column("supervisor_started", sa.BigInteger),
        sa.PrimaryKeyConstraint("job", "number", name="pk_runs"),
    )
    op.create_table(
        "events",
        *_job_reference("events"),
        sa.Column("seq", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("job", "seq", name="pk_events"),
    )
    op.create_table(
        "run_outputs",
        *_job_reference("run_outputs"),
        sa.Column("run", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("output", sa.Text, nullable=False),
        sa.Column("stderr", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("job", "run", name="pk_run_outputs"),
    )


def _make_keys() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
    )
    op.create_table(
        "idempotency",
        sa.Column("api_key_id", sa.String(64), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        *_job_reference("idempotency"),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("api_key_id", "key", name="pk_idempotency"),
    )
    op.create_index("ix_idempotency_created_at", "idempotency", ["created_at"])
    op.create_index("ix_idempotency_job", "idempotency", ["job"])
