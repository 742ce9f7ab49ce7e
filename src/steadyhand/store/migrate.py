"""Migration of a database to the newest schema, in this process, when it is opened."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from steadyhand.errors import StoreError
from steadyhand.store.schema import NEWEST_REVISION


def migrate(connection: Connection) -> None:
    """Migrate the schema inside the connection's transaction; an up-to-date schema needs one query.

    Raise `StoreError` if a newer Steadyhand made the database.
    """
    if _revision(connection) == NEWEST_REVISION:
        return
    # Imported only when there is something to do: Alembic costs a cold start 0.1 s and more.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StoreError(
            "The database was made by another version of Steadyhand and this one cannot read it."
        ) from error


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision
