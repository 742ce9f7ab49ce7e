"""The former secret of a key, for its grace period."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the former digest to keys."""
    op.add_column("keys", sa.Column("former_digest", sa.String(64)))
    op.add_column("keys", sa.Column("former_until", sa.BigInteger))


def downgrade() -> None:
    """Drop it."""
    with op.batch_alter_table("keys") as keys:
        keys.drop_column("former_digest")
        keys.drop_column("former_until")
