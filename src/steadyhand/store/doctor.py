"""What `doctor` wants to know of the store."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from steadyhand.errors import ConfigError
from steadyhand.ports import Check
from steadyhand.store.schema import REVISION
from steadyhand.store.sqlite import database_url, sqlite_engine

LEAST_FREE_BYTES = 1 << 30
"""Below this much free disk a checkout or a database may fail in the middle of a job."""


def check_store(url: str, data_directory: Path) -> Sequence[Check]:
    """Look at the disk and the database; writes no data, and works beside a running service. Blocks."""
    return [_disk(data_directory), *_database(url)]


def _disk(directory: Path) -> Check:
    try:
        free = shutil.disk_usage(_nearest(directory)).free
    except OSError as error:
        return Check("disk", False, str(error), "Make the data directory readable.")
    remedy = None if free >= LEAST_FREE_BYTES else "Make room, or shorten [retention]."
    return Check("disk", free >= LEAST_FREE_BYTES, f"{free / (1 << 30):.1f} GiB free", remedy)


def _nearest(path: Path) -> Path:
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def _database(url: str) -> Sequence[Check]:
    try:
        place = database_url(url)
    except ConfigError as error:
        return [Check("database", ok=False, detail=error.detail, remedy="Set database_url.")]
    path = Path(str(place.database))
    if not path.exists():
        return [Check("database", ok=True, detail="not there yet; the first start makes it")]
    engine = sqlite_engine(place, connections=1, begin="BEGIN IMMEDIATE")
    try:
        return [_readable_and_writable(engine), _journal(engine)]
    except SQLAlchemyError as error:
        detail = str(error.__cause__ or error)
        return [Check("database", ok=False, detail=detail, remedy=f"Look at {path} and its rights.")]
    finally:
        engine.dispose()


def _readable_and_writable(engine: Engine) -> Check:
    # BEGIN IMMEDIATE takes the write lock; nothing is written and the lock goes with the rollback.
    with engine.connect() as connection:
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        connection.rollback()
    ok = found == REVISION
    remedy = None if ok else "Start the service once: it migrates an older database."
    return Check("database", ok, f"readable and writable, schema {found}", remedy)


def _journal(engine: Engine) -> Check:
    with engine.connect() as connection:
        mode = connection.execute(text("PRAGMA journal_mode")).scalar()
        connection.rollback()
    ok = mode == "wal"
    return Check("journal", ok, f"journal mode {mode}", None if ok else "Use a local disk: WAL needs one.")
