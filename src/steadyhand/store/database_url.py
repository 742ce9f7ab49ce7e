"""The kinds of addresses of a database. Pure; without the driver of any."""

from importlib.util import find_spec
from typing import Final

from steadyhand.errors import ConfigError

DEFAULT_NODE: Final = "node-1"
"""The name of a service in its database, unless `[service] node` has another."""
_POSTGRES_SCHEMES: Final = ("postgresql://", "postgres://")


def is_postgres_url(url: str) -> bool:
    """Return True for an address of a database of Postgres."""
    return url.startswith(_POSTGRES_SCHEMES)


def require_known_scheme(url: str) -> None:
    """Raise `ConfigError` for an address of Postgres whose beginning is that of another program."""
    scheme = url.partition("://")[0]
    if scheme.lower().startswith("postgres"):
        raise ConfigError("database_url: an address of a database of Postgres begins with postgresql://")


def require_psycopg() -> None:
    """Raise `ConfigError` unless the driver of Postgres is installed."""
    if find_spec("psycopg") is None:
        raise ConfigError(
            "database_url: a database of Postgres needs an extra; pip install 'steadyhand[postgres]'"
        )
