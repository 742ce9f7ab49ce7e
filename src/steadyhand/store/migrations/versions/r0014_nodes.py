"""Nodes: those that are drained take no new runs, also after a restart; the oldest code that may use this schema."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def _string(length: int) -> sa.types.TypeEngine[str]:
    """Return the type of a short text; on Postgres all text has the order of its bytes and no greatest length."""
    return sa.Text(collation="C") if _is_postgres() else sa.String(length)


def _is_postgres() -> bool:
    return op.get_context().dialect.name == "postgresql"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "drained_nodes",
        sa.Column("name", _string(128), nullable=False),
        sa.Column("drained_at", sa.BigInteger, nullable=False),
        sa.Column("drained_by", _string(64), nullable=False),
        sa.Column("until_restart", sa.BigInteger if _is_postgres() else sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_drained_nodes"),
    )
    op.create_table(
        "schema_support",
        sa.Column("id", sa.BigInteger if _is_postgres() else sa.Integer, nullable=False, autoincrement=False),
        sa.Column("oldest_revision", _string(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_schema_support"),
    )


def downgrade() -> None:
    """Drop them: all nodes take new runs again."""
    op.drop_table("schema_support")
    op.drop_table("drained_nodes")
