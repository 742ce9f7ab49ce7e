"""The schema on Postgres: the tables of `store.schema` with the types and indexes that this database needs.

Text has the order of its bytes, as in SQLite, whatever the order of the database is, and no greatest length. An index
of SQLite ends with the primary key of its table; here one of jobs names it. A workspace may be too long for an index,
which has its digest then; other texts in indexes are short.

Events are partitioned; see `event_partitions`.

The first service on a database creates the newest schema at once. A migration has to bring an earlier one to the same:
it asks the context for the dialect where they differ. `tests/store/test_postgres_store.py` compares them.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import TSVECTOR

from steadyhand.errors import StoreError
from steadyhand.store.driver import postgres_words, text_digest, workspace_digest
from steadyhand.store.postgres.event_partitions import create_partitions
from steadyhand.store.postgres.foreign_tables import FOREIGN_REMEDY, TABLES, foreign_tables
from steadyhand.store.schema import METADATA, NEWEST_REVISION, ROWS_OF_INDEX

_LIST_TABLE = "jobs"
_ORDER = "sequence"
_WORKSPACE = "workspace"
"""The column whose texts are too long for an index: it has their digests; see `store.driver`."""


def create_schema(connection: Connection) -> None:
    """Create the newest schema in an empty database. Raise `StoreError` if it has a table of that name already."""
    foreign = foreign_tables(connection.exec_driver_sql(TABLES).all())
    if foreign is not None:
        raise StoreError(f"The database cannot be used: it is one {foreign}. {FOREIGN_REMEDY}")
    create_metadata().create_all(connection, checkfirst=False)
    create_partitions(connection)
    connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)")
    connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": NEWEST_REVISION})


def create_metadata() -> MetaData:
    """Return the tables as Postgres has them."""
    metadata = MetaData(naming_convention=METADATA.naming_convention)
    for table in METADATA.sorted_tables:
        copy = table.to_metadata(metadata)
        for column in copy.columns:
            if isinstance(column.type, String):
                column.type = Text(collation="C")
            elif isinstance(column.type, Integer):
                column.type = BigInteger()
        _limit_indexes(table, copy)
        if table.name == _LIST_TABLE:
            _order_indexes(copy)
    groups = metadata.tables["job_groups"]
    groups.indexes.clear()
    digest = text(workspace_digest(_WORKSPACE))
    Index("uq_job_groups_names", groups.c.api_key_id, groups.c.agent, digest, unique=True)
    _add_texts(metadata)
    _partition_events(metadata)
    return metadata


def _limit_indexes(table: Table, copy: Table) -> None:
    """Limit the indexes of a copy to the rows that those of the table have."""
    conditions = {index.name: index.info.get(ROWS_OF_INDEX) for index in table.indexes}
    for index in copy.indexes:
        condition = conditions[index.name]
        if condition is not None:
            index.dialect_options["postgresql"]["where"] = text(postgres_words(condition))


def _order_indexes(table: Table) -> None:
    """Let each index of jobs have the order of lists."""
    indexes = [index for index in table.indexes if not index.unique]
    for index in sorted(indexes, key=lambda each: str(each.name)):
        table.indexes.remove(index)
        names = [column.name for column in index.columns]
        digest = workspace_digest if index.name == "ix_jobs_group" else text_digest
        columns = [text(digest(name)) if name == _WORKSPACE else table.c[name] for name in names]
        columns += [] if _ORDER in names else [table.c[_ORDER]]
        where = index.dialect_options["postgresql"]["where"]
        Index(index.name, *columns, postgresql_where=where, _table=table)


def _add_texts(metadata: MetaData) -> None:
    Table(
        "job_texts",  # the search index; `search.py` makes the words
        metadata,
        Column(
            "job",
            BigInteger,
            ForeignKey("jobs.sequence", ondelete="CASCADE"),
            primary_key=True,
            autoincrement=False,
        ),
        Column("words", TSVECTOR, nullable=False),
        Index("ix_job_texts_words", "words", postgresql_using="gin"),
    )


def _partition_events(metadata: MetaData) -> None:
    """Let the events lie in ranges of jobs, without a reference to them, beside the jobs whose events are left."""
    events = metadata.tables["events"]
    events.dialect_options["postgresql"]["partition_by"] = "RANGE (job)"
    references = [each for each in events.constraints if isinstance(each, ForeignKeyConstraint)]
    events.constraints.difference_update(references)
    events.foreign_keys.clear()
    events.c.job.foreign_keys.clear()
    Table(
        "leftover_events",
        metadata,
        Column("job", BigInteger, primary_key=True, autoincrement=False),
        Column("removed_at", BigInteger, nullable=False),
        Index("ix_leftover_events_removed_at", "removed_at"),
    )
