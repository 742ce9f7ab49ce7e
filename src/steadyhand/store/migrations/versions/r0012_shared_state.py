"""State that nodes share: sessions of browsers, sign-in links, secrets, and the claims of deliveries."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def _string(length: int) -> sa.types.TypeEngine[str]:
    """Return the type of a short text; on Postgres all text has the order of its bytes and no greatest length."""
    return sa.Text(collation="C") if _is_postgres() else sa.String(length)


def _text() -> sa.types.TypeEngine[str]:
    return sa.Text(collation="C") if _is_postgres() else sa.Text()


def _is_postgres() -> bool:
    return op.get_context().dialect.name == "postgresql"


def upgrade() -> None:
    """Create the tables, and the column of a delivery's sender."""
    op.create_table(
        "page_sessions",
        sa.Column("digest", _string(64), nullable=False),
        sa.Column("key_digest", _string(64), nullable=False),
        sa.Column("begun_at", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_page_sessions"),
    )
    op.create_table(
        "sign_in_links",
        sa.Column("digest", _string(64), nullable=False),
        sa.Column("key_digest", _string(64), nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_sign_in_links"),
    )
    op.create_table(
        "shared_secrets",
        sa.Column("name", _string(64), nullable=False),
        sa.Column("value", _text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_shared_secrets"),
    )
    op.add_column("deliveries", sa.Column("claimed_until", sa.BigInteger))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("deliveries", "claimed_until")
    op.drop_table("shared_secrets")
    op.drop_table("sign_in_links")
    op.drop_table("page_sessions")
