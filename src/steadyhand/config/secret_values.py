"""The secrets that a service has or grants, read from where they are: they never go out with what it tells."""

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from steadyhand.config.settings import SECRETS, Settings
from steadyhand.redact import MIN_SECRET

_SECRET_NAMES = ("KEY", "TOKEN", "SECRET", "PASSWORD")
"""How the names of variables end whose values are secrets."""
FILE_BYTES = 64 * 1024
"""The most of a secret file that is looked for."""


@dataclass(frozen=True, slots=True)
class Secret:
    """One secret; `name` says which, for people. Of a file with several lines `parts` has each as well."""

    name: str
    value: bytes
    parts: tuple[bytes, ...] = ()

    @property
    def is_short(self) -> bool:
        """Whether it is too short to be looked for."""
        return len(self.value) < MIN_SECRET


def secrets_of(settings: Settings) -> list[Secret]:
    """Give every secret that is there now: files may be renewed, or come, while the service runs."""
    return [secret for secret in _all(settings) if secret.value]


def values_of(settings: Settings) -> list[bytes]:
    """Give what to look for."""
    return [value for secret in secrets_of(settings) for value in (secret.value, *secret.parts)]


def _all(settings: Settings) -> Iterator[Secret]:
    tables = settings.tables
    known = {name: settings.inherited.get(name) for name in SECRETS}
    # What came by a file named in the environment, or by an option, is in the settings alone.
    known |= {"API_BEARER_TOKEN": settings.bearer_token, "STEADYHAND_API_KEY": settings.api_key}
    known |= {f"providers.{each.name}": each.secret for each in settings.providers}
    known |= {f"providers.{each.name}.base_url": _password(each.base_url) for each in settings.providers}
    known["database_url"] = _password(tables.service.database_url)
    for name, value in known.items():
        if value:
            yield Secret(name, value.encode("utf-8", "surrogateescape"))
    for agent in tables.agents.values():
        for name, value in agent.env.items():
            if name.upper().endswith(_SECRET_NAMES):
                yield Secret(name, value.encode())
    files = {"admin.key": settings.data_dir / "admin.key"}
    files |= {f"providers.{each.name}": each.file for each in settings.providers if each.file is not None}
    for name, path in files.items():
        yield Secret(name, _content(path).strip())
    granted = [path for agent in tables.agents.values() for path in agent.secrets]
    granted += [path for workspace in tables.workspaces.values() for path in workspace.setup_secrets]
    for file in dict.fromkeys(granted):
        content = _content(Path(file)).strip()
        yield Secret(file, content, tuple(_lines(content)))
    for name, workspace in tables.workspaces.items():
        yield Secret(f"workspaces.{name}.repository", (_password(workspace.repository) or "").encode())
    if tables.git.credential_file is not None:
        for line in _content(tables.git.credential_file).decode("utf-8", "replace").splitlines():
            password = _password(line.strip()) or ""
            yield Secret("git.credential_file", password.encode(), (unquote(password).encode(),))


def _content(path: Path) -> bytes:
    """Give the beginning of a regular file; nothing when it cannot be read, which whoever needs it will say."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(FILE_BYTES)
    except OSError:
        return b""


def _lines(content: bytes) -> Iterator[bytes]:
    """Give each line of a text, and of a line `NAME=value` the value as well; marks as of PEM are no secrets."""
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        return
    for line in map(str.strip, lines):
        if line.startswith("-----") and line.endswith("-----"):
            continue
        name, equals, value = line.removeprefix("export ").partition("=")
        found = [line] if len(lines) > 1 else []
        if equals and name.isidentifier():
            found.append(value.strip().strip("\"'"))
        yield from (each.encode() for each in found if len(each) >= MIN_SECRET)


def _password(url: str | None) -> str | None:
    try:
        return None if url is None or "@" not in url else urlsplit(url).password
    except ValueError:
        return None
