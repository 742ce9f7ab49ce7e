"""The settings of a client. Each command imports this module, so it imports little."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """Return the default data directory: below /var/lib for root, so that agents can reach their part of it."""
    if os.geteuid() == 0:
        return Path("/var/lib/steadyhand")
    base = environ.get("XDG_DATA_HOME") or str(Path(environ.get("HOME", "/")) / ".local/share")
    return Path(base) / "steadyhand"


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """The settings of a client of the service; `url` is `None` if no address is configured."""

    url: str | None
    token: str | None = field(repr=False)
    data_dir: Path
    no_color: bool = False
    token_is_local: bool = False
    """The token is the local service's own and must not be sent to another machine."""


def load_client_settings(environ: Mapping[str, str] | None = None) -> ClientSettings:
    """Return the client's settings. The default of the token is the local `admin.key`, if it can be read."""
    environ = os.environ if environ is None else environ
    data_dir = Path(environ.get("STEADYHAND_DATA_DIR") or default_data_dir(environ))
    token = environ.get("STEADYHAND_TOKEN") or None
    is_local = token is None
    if token is None:
        try:
            token = (data_dir / "admin.key").read_text("ascii").strip() or None
        except (OSError, UnicodeDecodeError):
            token = None
    return ClientSettings(
        environ.get("STEADYHAND_URL") or None,
        token,
        data_dir,
        no_color=bool(environ.get("NO_COLOR")),
        token_is_local=is_local,
    )
