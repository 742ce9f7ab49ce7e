"""New databases of SQLite for tests: copies of one that the migrations have created.

The migrations take longer than most tests do, and nearly every test has a database of its own. A process that calls
`copy_new_databases` runs them once. A file that exists is left alone, so a database of an earlier version is migrated
as in production.
"""

import functools
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from sqlalchemy import URL

from steadyhand.store import sqlite

_CREATE_FILE: Final = sqlite.create_private_file


def copy_new_databases() -> None:
    """Let each database of SQLite that this process creates from here on begin as a copy.

    The original is created when it is first needed.
    """
    sqlite.create_private_file = _create_copy


def migrate_new_databases() -> None:
    """Let each database that this process creates from here on run the migrations, as in production."""
    sqlite.create_private_file = _CREATE_FILE


@functools.cache
def migrated_database() -> bytes:
    """Return the file of an empty database, created by the migrations at the first call."""
    with tempfile.TemporaryDirectory(prefix="sh-database-") as folder:
        path = Path(folder) / "new.db"
        _CREATE_FILE(path)  # so it exists, and is migrated
        for engine in sqlite.open_sqlite_engines(URL.create("sqlite", database=str(path))):
            engine.dispose()
        return path.read_bytes()


def _create_copy(path: Path) -> None:
    with suppress(OSError):  # the store itself meets what is wrong with the place
        if not path.exists():
            _write_copy(path)
    _CREATE_FILE(path)


def _write_copy(path: Path) -> None:
    """Create the file whole: another process may be creating it, too."""
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(migrated_database())
        os.link(name, path)
    finally:
        Path(name).unlink()
