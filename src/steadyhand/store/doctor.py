"""The checks of `doctor` for the disk and the database."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from steadyhand.errors import ConfigError
from steadyhand.ports import DoctorCheck
from steadyhand.store.database_url import is_postgres_url, require_psycopg
from steadyhand.store.outage import DISK_FULL, HELD_ELSEWHERE, outage_reason
from steadyhand.store.schema import NEWEST_REVISION
from steadyhand.store.sqlite import create_sqlite_engine, parse_sqlite_url

MIN_FREE_BYTES = 1 << 30
"""Below this free disk space, a checkout or the database may fail in the middle of a job."""

PAUSED_SCHEDULES: Final = (
    "SELECT name, pause_reason FROM schedules "
    "WHERE pause_reason IS NOT NULL AND pause_reason <> 'request' ORDER BY name"
)
"""The query of the schedules that no person has paused, with their reasons."""
_MAX_NAMED = 5


def check_store(url: str, data_directory: Path) -> Sequence[DoctorCheck]:
    """Check the disk and the database without a write, also beside a running service. Blocks."""
    return [_check_disk(data_directory), *_check_database(url)]


def _check_disk(directory: Path) -> DoctorCheck:
    try:
        free = shutil.disk_usage(_existing_ancestor(directory)).free
    except OSError as error:
        return DoctorCheck("disk", False, str(error), "Make the data directory readable.")
    remedy = None if free >= MIN_FREE_BYTES else "Free disk space, or shorten [retention]."
    detail = f"{free / (1 << 30):.1f} GiB free for {directory}"
    return DoctorCheck("disk", free >= MIN_FREE_BYTES, detail, remedy)


def _existing_ancestor(path: Path) -> Path:
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def _check_database(url: str) -> Sequence[DoctorCheck]:
    if is_postgres_url(url):
        return _check_postgres(url)
    try:
        parsed_url = parse_sqlite_url(url)
    except ConfigError as error:
        return [DoctorCheck("database", ok=False, detail=error.detail, remedy="Set database_url.")]
    path = Path(str(parsed_url.database))
    if not path.exists():
        return [DoctorCheck("database", ok=True, detail="does not exist yet; the first start creates it")]
    engine = create_sqlite_engine(parsed_url, connections=1, begin="BEGIN IMMEDIATE")
    try:
        access = _check_access(engine)
        paused = _read_paused(engine) if access.ok else ()
        return [access, _check_journal_mode(engine), *describe_paused(paused)]
    except SQLAlchemyError as error:
        return [_failed_check(path, error)]
    finally:
        engine.dispose()


def _check_postgres(url: str) -> Sequence[DoctorCheck]:
    try:
        require_psycopg()
    except ConfigError as error:
        return [DoctorCheck("database", ok=False, detail=error.detail, remedy="Install the extra.")]
    from steadyhand.store.postgres.server_check import check_postgres  # noqa: PLC0415  # it needs an extra

    found, paused = check_postgres(url)
    return [found, *describe_paused(paused)]


def describe_paused(paused: Sequence[tuple[str, str]]) -> Sequence[DoctorCheck]:
    """Return a warning of the schedules, with their reasons, that no person has paused; nothing without any."""
    if not paused:
        return ()
    named = ", ".join(f"{name} ({reason})" for name, reason in paused[:_MAX_NAMED])
    more = f" and {len(paused) - _MAX_NAMED} more" if len(paused) > _MAX_NAMED else ""
    remedy = "Look at them with `steadyhand schedules show NAME`, then resume or remove them."
    return [DoctorCheck("schedules", True, f"paused by themselves: {named}{more}", remedy, warning=True)]


def _failed_check(path: Path, error: SQLAlchemyError) -> DoctorCheck:
    reason = outage_reason(error)
    remedy = f"Check {path} and its permissions."
    if reason == DISK_FULL:
        remedy = f"Free space on the disk of {path}."
    elif reason == HELD_ELSEWHERE:
        remedy = (
            f"End the program that holds {path}, such as a shell or a backup. The service waits until then."
        )
    return DoctorCheck("database", ok=False, detail=str(error.__cause__ or error), remedy=remedy)


def _check_access(engine: Engine) -> DoctorCheck:
    # BEGIN IMMEDIATE takes the write lock; nothing is written and the lock goes with the rollback.
    with engine.connect() as connection:
        revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        connection.rollback()
    return DoctorCheck(
        "database",
        revision == NEWEST_REVISION,
        f"readable and writable, schema {revision}",
        revision_remedy(revision),
    )


def revision_remedy(revision: str | None) -> str | None:
    """Return the remedy for the schema of a database; None if it is the one of this release."""
    if revision == NEWEST_REVISION:
        return None
    if revision is not None and not revision.isdigit():
        return "Another program made this database: use another one."
    if revision is not None and revision > NEWEST_REVISION:  # they count up, in four digits
        return (
            f"A newer Steadyhand made this schema; this one knows {NEWEST_REVISION}. Install a newer release."
        )
    return "Start the service once: it migrates an older database."


def _read_paused(engine: Engine) -> Sequence[tuple[str, str]]:
    with engine.connect() as connection:
        return [(name, reason) for name, reason in connection.execute(text(PAUSED_SCHEDULES))]


def _check_journal_mode(engine: Engine) -> DoctorCheck:
    with engine.connect() as connection:
        mode = connection.execute(text("PRAGMA journal_mode")).scalar()
        connection.rollback()
    ok = mode == "wal"
    return DoctorCheck(
        "journal", ok, f"journal mode {mode}", None if ok else "Use a local disk: WAL needs one."
    )
