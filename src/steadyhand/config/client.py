"""The settings of a client. Each command imports this module, so it imports little.

The file of `--config` or STEADYHAND_CONFIG, and the user's own, are trusted. A `steadyhand.toml` in the working
directory may come from a hostile repository: from it only a loopback address and a data directory that the user owns
are taken.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steadyhand.config.locate import (
    FILE_NAME,
    named_config_file,
    read_config_file,
    read_local_key,
    user_config_file,
)
from steadyhand.errors import ConfigError

_LOOPBACK = {
    "127.0.0.1": "127.0.0.1",
    "localhost": "127.0.0.1",
    "0.0.0.0": "127.0.0.1",  # noqa: S104  # where a service that listens everywhere is found from here
    "::1": "[::1]",
    "::": "[::1]",
}
_DEFAULT_PORT = 8080
_MAX_PORT = 65_535


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """Return the default data directory: below /var/lib for root, so that agents can reach their part of it."""
    if os.geteuid() == 0:
        return Path("/var/lib/steadyhand")
    base = environ.get("XDG_DATA_HOME") or str(Path(environ.get("HOME", "/")) / ".local/share")
    return Path(base) / "steadyhand"


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """The settings of a client of the service; `url` is `None` if STEADYHAND_URL is not set."""

    url: str | None
    token: str | None = field(repr=False)
    data_dir: Path
    no_color: bool = False
    token_is_local: bool = False
    """The token is the local service's own and must not be sent to another machine."""
    file_url: str | None = None
    """The address of the service of the configuration file, used if no other is named."""
    notes: tuple[str, ...] = ()
    """Sentences for the user about settings of the file in the working directory that were not read."""


@dataclass(frozen=True, slots=True)
class _FileSettings:
    """The settings of one file for a client."""

    url: str | None = None
    data_dir: Path | None = None
    notes: tuple[str, ...] = ()
    untrusted_data_dir: Path | None = None


def load_client_settings(
    environ: Mapping[str, str] | None = None, config_file: Path | None = None, directory: Path | None = None
) -> ClientSettings:
    """Return the client's settings. The default of the token is the local `admin.key`, if it can be read.

    `config_file` is that of `--config`, `directory` the working directory. Raise `ConfigError` for an invalid file
    that is trusted.
    """
    environ = os.environ if environ is None else environ
    file_settings = _load_files(environ, config_file, directory or Path())
    configured = environ.get("STEADYHAND_DATA_DIR") or environ.get("STEADYHAND_SERVICE__DATA_DIR")
    data_dir = Path(configured) if configured else file_settings.data_dir or default_data_dir(environ)
    token = environ.get("STEADYHAND_TOKEN") or None
    is_local = token is None
    return ClientSettings(
        environ.get("STEADYHAND_URL") or None,
        token or read_local_key(data_dir / "admin.key", owned=data_dir == file_settings.untrusted_data_dir),
        data_dir,
        no_color=bool(environ.get("NO_COLOR")),
        token_is_local=is_local,
        file_url=file_settings.url,
        notes=file_settings.notes,
    )


def _load_files(environ: Mapping[str, str], config_file: Path | None, directory: Path) -> _FileSettings:
    named = named_config_file(config_file, environ)
    if named is not None:
        return _from_trusted_file(named)
    own_file = user_config_file(environ)
    own = _FileSettings() if own_file is None else _from_trusted_file(own_file)
    local = _from_working_directory(directory / FILE_NAME)
    return _FileSettings(local.url or own.url, local.data_dir or own.data_dir, local.notes, local.data_dir)


def _from_trusted_file(path: Path) -> _FileSettings:
    tables = read_config_file(path)
    host, port = _address(tables)
    url = None
    if host is not None or port is not None:
        name = _LOOPBACK.get(host or "127.0.0.1") or (f"[{host}]" if ":" in str(host) else host)
        url = f"http://{name}:{port or _DEFAULT_PORT}"
    return _FileSettings(url, _data_dir(tables))


def _from_working_directory(path: Path) -> _FileSettings:
    if not path.is_file():
        return _FileSettings()
    try:
        tables = read_config_file(path)
    except ConfigError as error:
        return _FileSettings(notes=(f"{error.detail}; it is not used.",))
    notes: list[str] = []
    host, port = _address(tables)
    url = None
    if host is not None and host not in _LOOPBACK:
        notes.append(
            f"{FILE_NAME} here names an address of another machine: use --config {FILE_NAME} to take it."
        )
    elif host is not None or port is not None:
        url = f"http://{_LOOPBACK[host or '127.0.0.1']}:{port or _DEFAULT_PORT}"
    data_dir = _data_dir(tables)
    if data_dir is not None and not _is_own_directory(data_dir):
        notes.append(
            f"{FILE_NAME} here names a data directory that is not yours: use --config {FILE_NAME} to take it."
        )
        data_dir = None
    return _FileSettings(url, data_dir, tuple(notes))


def _address(tables: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """Return host and port of [server]; `None` for each that is not set or has another type. Port 0 is no address."""
    server = tables.get("server")
    if not isinstance(server, Mapping):
        return None, None
    host, port = server.get("host"), server.get("port")
    is_port = isinstance(port, int) and not isinstance(port, bool) and 0 < port <= _MAX_PORT
    return host if isinstance(host, str) and host else None, port if is_port else None


def _data_dir(tables: Mapping[str, Any]) -> Path | None:
    service = tables.get("service")
    value = service.get("data_dir") if isinstance(service, Mapping) else None
    return Path(value) if isinstance(value, str) and value and "\0" not in value else None


def _is_own_directory(path: Path) -> bool:
    try:
        return path.is_dir() and path.stat().st_uid == os.geteuid()
    except OSError:
        return False
