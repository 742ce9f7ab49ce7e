"""The files that jobs leave, where every node of a service reaches them."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_SEQUENCE_TYPE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables."""
    is_postgres = op.get_context().dialect.name == "postgresql"
    integer = sa.BigInteger() if is_postgres else sa.Integer()

    def string(length: int) -> sa.types.TypeEngine[str]:
        return sa.Text(collation="C") if is_postgres else sa.String(length)

    op.create_table(
        "artifacts",
        sa.Column("sequence", _SEQUENCE_TYPE, nullable=False, autoincrement=True),
        sa.Column("job", _SEQUENCE_TYPE),
        sa.Column("name", string(32), nullable=False),
        sa.Column("run", integer, nullable=False),
        sa.Column("state", string(16), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("digest", string(64), nullable=False),
        sa.Column("object_key", string(255)),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_artifacts"),
        sa.ForeignKeyConstraint(["job"], ["jobs.sequence"], name="fk_artifacts_job", ondelete="SET NULL"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_artifacts_job", "artifacts", ["job", "name"])
    is_unused = sa.text("job IS NULL OR state <> 'stored'")
    op.create_index(
        "ix_artifacts_unused",
        "artifacts",
        ["sequence"],
        sqlite_where=is_unused,
        postgresql_where=is_unused,
    )
    op.create_table(
        "artifact_chunks",
        sa.Column("artifact", _SEQUENCE_TYPE, nullable=False),
        sa.Column("number", integer, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("artifact", "number", name="pk_artifact_chunks"),
        sa.ForeignKeyConstraint(
            ["artifact"], ["artifacts.sequence"], name="fk_artifact_chunks_artifact", ondelete="CASCADE"
        ),
    )


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("artifact_chunks")
    op.drop_table("artifacts")
