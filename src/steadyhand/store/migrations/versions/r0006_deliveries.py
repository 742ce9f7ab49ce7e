"""The outbox of callbacks: one row for each message to a receiver about an event of a job."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "deliveries",
        sa.Column("sequence", _SEQUENCE, nullable=False, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("job", _SEQUENCE, nullable=False, autoincrement=False),
        sa.Column("endpoint", sa.String(64)),
        sa.Column("circuit", sa.Text, nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("behind", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("attempted_at", sa.BigInteger),
        sa.Column("status", sa.Integer),
        sa.Column("error", sa.Text),
        sa.Column("url", sa.Text),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_deliveries"),
        sa.ForeignKeyConstraint(["job"], ["jobs.sequence"], name="fk_deliveries_job", ondelete="CASCADE"),
        sqlite_autoincrement=True,
    )
    op.create_index("uq_deliveries_id", "deliveries", ["id"], unique=True)
    op.create_index("ix_deliveries_job", "deliveries", ["job", "state"])
    op.create_index(
        "ix_deliveries_due",
        "deliveries",
        ["circuit", "due_at"],
        sqlite_where=sa.text("state = 'pending' AND behind = 0"),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("deliveries")
