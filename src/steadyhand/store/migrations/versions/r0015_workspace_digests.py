"""Indexes with digests of workspaces on Postgres: a row of an index there has no room for a long path."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_NAME = "coalesce(workspace, '')"
_IS_SET = sa.text("workspace IS NOT NULL")


def upgrade() -> None:
    """Create the indexes with digests in place of those with the names."""
    _create_again(_digest("workspace"), _digest(_NAME))


def downgrade() -> None:
    """Create those with the names. It fails if one is too long."""
    _create_again("workspace", _NAME)


def _digest(expression: str) -> str:
    return f"sha256(replace({expression}, chr(92), repeat(chr(92), 2))::bytea)"


def _create_again(workspace: str, workspace_or_empty: str) -> None:
    if op.get_context().dialect.name != "postgresql":
        return
    op.drop_index("ix_jobs_workspace", "jobs")
    op.drop_index("ix_jobs_group", "jobs")
    op.drop_index("uq_job_groups_names", "job_groups")
    op.create_index("ix_jobs_workspace", "jobs", [sa.text(workspace), "sequence"], postgresql_where=_IS_SET)
    group = sa.text(workspace_or_empty)
    op.create_index("ix_jobs_group", "jobs", ["api_key_id", "agent", group, "state", "sequence"])
    op.create_index("uq_job_groups_names", "job_groups", ["api_key_id", "agent", group], unique=True)
