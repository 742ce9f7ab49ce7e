"""The ids of the jobs that were deleted lately, for the removal of their files."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    is_postgres = op.get_context().dialect.name == "postgresql"
    op.create_table(
        "deleted_jobs",
        sa.Column("id", sa.Text(collation="C") if is_postgres else sa.String(64), nullable=False),
        sa.Column("deleted_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_deleted_jobs"),
    )
    op.create_index("ix_deleted_jobs_deleted_at", "deleted_jobs", ["deleted_at"])


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("deleted_jobs")
