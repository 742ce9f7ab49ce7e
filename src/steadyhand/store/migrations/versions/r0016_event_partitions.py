"""Partitions of the events on Postgres.

The table of before becomes the first partition as it is: no row is copied. With the constraint of
`store.postgres.event_migration` no row is read either. Code of the version before inserts and reads as before. It
deletes jobs without their events, which a trigger notes.
"""

import re

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_RANGE = 100_000
_LIMIT = (
    "SELECT conname FROM pg_constraint WHERE conrelid = 'events'::regclass AND contype = 'c' AND convalidated "
    "AND starts_with(conname, 'ck_events_below_')"
)
_NEWEST = "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('jobs', 'sequence')), 0)"
_FUNCTION = """
CREATE FUNCTION note_leftover_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO leftover_events (job, removed_at)
    SELECT sequence, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint FROM deleted ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$
"""
_TRIGGER = """
CREATE TRIGGER note_leftover_events AFTER DELETE ON jobs REFERENCING OLD TABLE AS deleted
FOR EACH STATEMENT EXECUTE FUNCTION note_leftover_events()
"""


def upgrade() -> None:
    """Let the events lie in ranges of jobs, and note the jobs whose events are left."""
    if op.get_context().dialect.name != "postgresql":
        return
    connection = op.get_bind()
    limits = [
        int(found[1])
        for (name,) in connection.exec_driver_sql(_LIMIT)
        if (found := re.fullmatch(r"ck_events_below_(\d+)", name))
    ]
    newest = connection.exec_driver_sql(_NEWEST).scalar_one()
    end = limits[0] if limits else (newest // _RANGE + 1) * _RANGE
    for statement in (
        "ALTER TABLE events RENAME TO events_0",
        "ALTER TABLE events_0 RENAME CONSTRAINT pk_events TO events_0_pkey",
        "ALTER TABLE events_0 DROP CONSTRAINT fk_events_job",
        "CREATE TABLE events (LIKE events_0, CONSTRAINT pk_events PRIMARY KEY (job, seq)) PARTITION BY RANGE (job)",
        f"ALTER TABLE events ATTACH PARTITION events_0 FOR VALUES FROM (MINVALUE) TO ({end:d})",
        *(f"ALTER TABLE events_0 DROP CONSTRAINT ck_events_below_{limit:d}" for limit in limits),
        f"CREATE TABLE events_{end:d} PARTITION OF events FOR VALUES FROM ({end:d}) TO ({end + _RANGE:d})",
        "CREATE TABLE events_default PARTITION OF events DEFAULT",
    ):
        connection.exec_driver_sql(statement)
    op.create_table(
        "leftover_events",
        sa.Column("job", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("removed_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("job", name="pk_leftover_events"),
    )
    op.create_index("ix_leftover_events_removed_at", "leftover_events", ["removed_at"])
    connection.exec_driver_sql(_FUNCTION)
    connection.exec_driver_sql(_TRIGGER)


def downgrade() -> None:
    """Copy the events into one table again, without those whose job is gone."""
    if op.get_context().dialect.name != "postgresql":
        return
    connection = op.get_bind()
    for statement in (
        "DROP TRIGGER note_leftover_events ON jobs",
        "DROP FUNCTION note_leftover_events",
        "DROP TABLE leftover_events",
        "ALTER TABLE events RENAME TO events_in_partitions",
        "ALTER TABLE events_in_partitions RENAME CONSTRAINT pk_events TO pk_events_in_partitions",
        "CREATE TABLE events (LIKE events_in_partitions)",
        "INSERT INTO events SELECT * FROM events_in_partitions WHERE job IN (SELECT sequence FROM jobs)",
        "ALTER TABLE events ADD CONSTRAINT pk_events PRIMARY KEY (job, seq)",
        "ALTER TABLE events ADD CONSTRAINT fk_events_job FOREIGN KEY (job) REFERENCES jobs ON DELETE CASCADE",
        "DROP TABLE events_in_partitions",
    ):
        connection.exec_driver_sql(statement)
