"""The workspace of a call, and sums of usage by workspace. Calls of deleted jobs have none."""

import datetime as dt
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_NAMES = ("api_key_id", "agent", "model", "provider")
_SUMS = (
    "calls",
    "input",
    "output",
    "cache_read",
    "cache_write_5m",
    "cache_write_1h",
    "micros",
    "unpriced",
    "incomplete",
)
_WITH_ALL_NAMES, _BY_WORKSPACE, _BY_KEY_AND_WORKSPACE, _MONTHS = 8, 9, 10, 4
_FIRST_MONTH_DAYS = 31


def upgrade() -> None:
    """Add the column, the key of the sums and the new sums."""
    op.add_column("calls", sa.Column("workspace", sa.Text, nullable=False, server_default=""))
    connection = op.get_bind()
    _fill_calls(connection)
    op.rename_table("usage_sums", "usage_sums_before")
    _make_sums(with_workspace=True)
    _copy(connection, "usage_sums_before", "usage_sums", "WHERE true")
    op.drop_table("usage_sums_before")
    _fill_sums(connection)


def downgrade() -> None:
    """Remove them."""
    connection = op.get_bind()
    op.rename_table("usage_sums", "usage_sums_before")
    _make_sums(with_workspace=False)
    _copy(connection, "usage_sums_before", "usage_sums", f"WHERE level < {_WITH_ALL_NAMES}")
    op.drop_table("usage_sums_before")
    with op.batch_alter_table("calls") as batch:
        batch.drop_column("workspace")


def _make_sums(*, with_workspace: bool) -> None:
    names = ["level", "api_key_id", "start", "agent", "model", "provider"]
    columns: list[sa.Column[Any]] = [
        sa.Column("level", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("api_key_id", sa.String(64), nullable=False),
        sa.Column("start", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("agent", sa.String(64), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("provider", sa.String(64), nullable=False),
    ]
    if with_workspace:
        columns.append(sa.Column("workspace", sa.Text, nullable=False, server_default=""))
        names.append("workspace")
    op.create_table(
        "usage_sums",
        *columns,
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _SUMS),
        sa.PrimaryKeyConstraint(*names, name="pk_usage_sums"),
        sqlite_with_rowid=False,
    )


def _copy(connection: sa.Connection, source: str, target: str, where: str) -> None:
    columns = ", ".join(("level", "api_key_id", "start", *_NAMES[1:], *_SUMS))
    connection.execute(
        sa.text(f"INSERT INTO {target} ({columns}) SELECT {columns} FROM {source} {where}")  # noqa: S608  # our own words
    )


def _fill_calls(connection: sa.Connection) -> None:
    """Set the workspaces of calls whose jobs are there. A URL goes in without its credential."""
    found = connection.execute(
        sa.text("SELECT DISTINCT workspace FROM job_groups WHERE workspace IS NOT NULL")
    ).scalars()
    names = {name: _without_secret(name) for name in found}
    if not names:
        return
    connection.execute(sa.text("CREATE TEMPORARY TABLE workspace_names (raw TEXT PRIMARY KEY, name TEXT)"))
    connection.execute(
        sa.text("INSERT INTO workspace_names VALUES (:raw, :name)"),
        [{"raw": raw, "name": name} for raw, name in names.items()],
    )
    connection.execute(
        sa.text(
            "UPDATE calls SET workspace = coalesce((SELECT name FROM jobs JOIN workspace_names "
            "ON raw = jobs.workspace WHERE jobs.id = calls.job_id), '')"
        )
    )
    connection.execute(sa.text("DROP TABLE workspace_names"))


def _without_secret(name: str) -> str:
    if "://" not in name:
        return name
    try:
        parts = urlsplit(name)
    except ValueError:
        return ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _fill_sums(connection: sa.Connection) -> None:
    """Add up the settled calls by day with all names, by workspace and by key and workspace, and these by month."""
    columns = ", ".join(("level", "api_key_id", "start", *_NAMES[1:], "workspace", *_SUMS))
    counts = ", ".join(f"sum({name})" for name in _SUMS[1:7])
    sums = ", ".join(f"sum({name})" for name in _SUMS)
    insert = f"INSERT INTO usage_sums ({columns}) "  # our own words
    connection.execute(
        sa.text(
            f"{insert} SELECT {_WITH_ALL_NAMES}, api_key_id, day, agent, model, provider, workspace, "  # noqa: S608
            f"count(*), {counts}, sum(1 - priced), sum(1 - complete) FROM calls WHERE settled = 1 "
            "GROUP BY api_key_id, day, agent, model, provider, workspace"
        )
    )
    for level, key, by in ((_BY_WORKSPACE, "''", ""), (_BY_KEY_AND_WORKSPACE, "api_key_id", "api_key_id, ")):
        connection.execute(
            sa.text(
                f"{insert} SELECT {level}, {key}, start, '', '', '', workspace, {sums} "  # noqa: S608
                f"FROM usage_sums WHERE level = {_WITH_ALL_NAMES} GROUP BY {by}start, workspace"
            )
        )
    days = connection.execute(
        sa.text(f"SELECT DISTINCT start FROM usage_sums WHERE level = {_BY_WORKSPACE}")  # noqa: S608
    ).scalars()
    for first, last in sorted({_month_of(day) for day in days}):
        connection.execute(
            sa.text(
                f"{insert} SELECT level + {_MONTHS}, api_key_id, :first, agent, model, provider, workspace, {sums} "  # noqa: S608
                f"FROM usage_sums WHERE level BETWEEN {_WITH_ALL_NAMES} AND {_BY_KEY_AND_WORKSPACE} "
                "AND start >= :first AND start < :last "
                "GROUP BY level, api_key_id, agent, model, provider, workspace"
            ),
            {"first": first, "last": last},
        )


def _month_of(day: int) -> tuple[int, int]:
    """Return the first day of a day's month and of the next one, as numbers since 1970."""
    epoch = dt.date(1970, 1, 1)
    first = (epoch + dt.timedelta(days=day)).replace(day=1)
    return (first - epoch).days, ((first + dt.timedelta(days=_FIRST_MONTH_DAYS)).replace(day=1) - epoch).days
