"""The columns that find a conversation to continue: its session, a caller's name for it, or its messages."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_LENGTHS = {"session_id": 64, "session_name": 128, "conversation": 64}


def upgrade() -> None:
    """Add the columns to jobs, and copy the session from the records of earlier jobs."""
    for name, length in _LENGTHS.items():
        op.add_column("jobs", sa.Column(name, sa.String(length)))
    postgres = op.get_context().dialect.name == "postgresql"
    said = "record::json ->> 'session_id'" if postgres else "json_extract(record, '$.session_id')"
    op.execute(f"UPDATE jobs SET session_id = {said}")  # noqa: S608  # our own words
    for name in _LENGTHS:
        op.create_index(f"ix_jobs_{name}", "jobs", [name])


def downgrade() -> None:
    """Drop them."""
    for name in _LENGTHS:
        op.drop_index(f"ix_jobs_{name}", "jobs")
    with op.batch_alter_table("jobs") as jobs:
        for name in _LENGTHS:
            jobs.drop_column(name)
