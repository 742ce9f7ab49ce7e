"""Schedules with their histories, and deliveries that are about a schedule in place of a job."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_SEQUENCE_TYPE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _string(length: int) -> sa.types.TypeEngine[str]:
    """Return the type of a short text; on Postgres all text has the order of its bytes and no greatest length."""
    return sa.Text(collation="C") if _is_postgres() else sa.String(length)


def _text() -> sa.types.TypeEngine[str]:
    return sa.Text(collation="C") if _is_postgres() else sa.Text()


def _integer() -> sa.types.TypeEngine[int]:
    return sa.BigInteger() if _is_postgres() else sa.Integer()


def _is_postgres() -> bool:
    return op.get_context().dialect.name == "postgresql"


def upgrade() -> None:
    """Create the tables, and let a delivery have no job."""
    op.create_table(
        "schedules",
        sa.Column("id", _string(32), nullable=False),
        sa.Column("name", _string(64), nullable=False),
        sa.Column("api_key_id", _string(64), nullable=False),
        sa.Column("origin", _string(16), nullable=False),
        sa.Column("spec", _text(), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("revision", _integer(), nullable=False),
        sa.Column("next_at", sa.BigInteger),
        sa.Column("paused_at", sa.BigInteger),
        sa.Column("pause_reason", _string(32)),
        sa.Column("pause_detail", _text()),
        sa.Column("runs", sa.BigInteger, nullable=False),
        sa.Column("spent_micros", sa.BigInteger, nullable=False),
        sa.Column("failures", _integer(), nullable=False),
        sa.Column("failures_since", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_schedules"),
    )
    op.create_index("uq_schedules_name", "schedules", ["name"], unique=True)
    op.create_index("ix_schedules_next_at", "schedules", ["next_at"])
    op.create_table(
        "schedule_ticks",
        sa.Column("sequence", _SEQUENCE_TYPE, nullable=False, autoincrement=True),
        sa.Column("schedule", _string(32), nullable=False),
        sa.Column("tick", sa.BigInteger, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("kind", _string(16), nullable=False),
        sa.Column("result", _string(16), nullable=False),
        sa.Column("reason", _string(64)),
        sa.Column("detail", _text()),
        sa.Column("count", _integer(), nullable=False),
        sa.Column("job_id", _string(64)),
        sa.Column("budget_micros", sa.BigInteger, nullable=False),
        sa.Column("outcome", _string(32)),
        sa.Column("failed", _integer(), nullable=False),
        sa.Column("settled", _integer(), nullable=False),
        sa.Column("micros", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_schedule_ticks"),
        sa.ForeignKeyConstraint(
            ["schedule"], ["schedules.id"], name="fk_schedule_ticks_schedule", ondelete="CASCADE"
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("uq_schedule_ticks_tick", "schedule_ticks", ["schedule", "tick"], unique=True)
    op.create_index("ix_schedule_ticks_history", "schedule_ticks", ["schedule", "sequence"])
    op.create_index("ix_schedule_ticks_job_id", "schedule_ticks", ["job_id"])
    is_open = sa.text("settled = 0")
    op.create_index(
        "ix_schedule_ticks_open",
        "schedule_ticks",
        ["schedule", "sequence"],
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
    _let_deliveries_be_of_schedules()


def _let_deliveries_be_of_schedules() -> None:
    with op.batch_alter_table("deliveries", table_kwargs={"sqlite_autoincrement": True}) as batch:
        batch.alter_column("job", existing_type=_SEQUENCE_TYPE, nullable=True)
        batch.add_column(sa.Column("schedule", _string(32)))
        batch.create_foreign_key(
            "fk_deliveries_schedule", "schedules", ["schedule"], ["id"], ondelete="CASCADE"
        )
    is_of_schedule = sa.text("schedule IS NOT NULL")
    op.create_index(
        "ix_deliveries_schedule",
        "deliveries",
        ["schedule"],
        sqlite_where=is_of_schedule,
        postgresql_where=is_of_schedule,
    )


def downgrade() -> None:
    """Drop the tables; deliveries about schedules go."""
    op.execute("DELETE FROM deliveries WHERE job IS NULL")
    op.drop_index("ix_deliveries_schedule", "deliveries")
    with op.batch_alter_table("deliveries", table_kwargs={"sqlite_autoincrement": True}) as batch:
        batch.drop_constraint("fk_deliveries_schedule", type_="foreignkey")
        batch.drop_column("schedule")
        batch.alter_column("job", existing_type=_SEQUENCE_TYPE, nullable=False)
    op.drop_table("schedule_ticks")
    op.drop_table("schedules")
