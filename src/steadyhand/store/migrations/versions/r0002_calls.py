"""Calls of models, and the limits of a key."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COUNTS = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")


def upgrade() -> None:
    """Create the table of calls, and add the limits to keys."""
    op.create_table(
        "calls",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("api_key_id", sa.String(64), nullable=False),
        sa.Column("agent", sa.String(64), nullable=False),
        sa.Column("provider", sa.String(64), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("day", sa.Integer, nullable=False),
        sa.Column("settled", sa.Integer, nullable=False),
        sa.Column("reserved_micros", sa.BigInteger, nullable=False),
        sa.Column("micros", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _COUNTS),
        sa.Column("priced", sa.Integer, nullable=False),
        sa.Column("complete", sa.Integer, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("source", sa.String(16), nullable=False),
    )
    op.create_index("ix_calls_job_id", "calls", ["job_id"])
    op.create_index("ix_calls_day", "calls", ["day"])
    op.create_index("ix_calls_settled", "calls", ["settled"])
    op.add_column("keys", sa.Column("limits", sa.Text))
    op.add_column("keys", sa.Column("revoked_at", sa.BigInteger))


def downgrade() -> None:
    """Drop them."""
    with op.batch_alter_table("keys") as keys:
        keys.drop_column("limits")
        keys.drop_column("revoked_at")
    op.drop_table("calls")
