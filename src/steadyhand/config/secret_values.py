"""The secrets that a service has or grants, read from where they are: they never go out with what it tells."""

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from steadyhand.config.settings import SECRET_VARIABLES, Settings
from steadyhand.redact import MIN_SECRET

_SECRET_SUFFIXES = ("KEY", "TOKEN", "SECRET", "PASSWORD")
"""How the names of variables end whose values are secrets."""
MAX_FILE_BYTES = 64 * 1024
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


def read_secrets(settings: Settings) -> list[Secret]:
    """Give every secret that is there now: files may be renewed, or come, while the service runs."""
    return [secret for secret in _iterate_secrets(settings) if secret.value]


def secret_values(settings: Settings) -> list[bytes]:
    """Give what to look for."""
    return [value for secret in read_secrets(settings) for value in (secret.value, *secret.parts)]


def _iterate_secrets(settings: Settings) -> Iterator[Secret]:
    tables = settings.tables
    named_values = {name: settings.environment.get(name) for name in SECRET_VARIABLES}
    # What came by a file named in the environment, or by an option, is in the settings alone.
    named_values |= {"API_BEARER_TOKEN": settings.bearer_token, "STEADYHAND_API_KEY": settings.api_key}
    named_values |= {f"providers.{each.name}": each.secret for each in settings.providers}
    named_values |= {
        f"providers.{each.name}.base_url": _url_password(each.base_url) for each in settings.providers
    }
    named_values["database_url"] = _url_password(tables.service.database_url)
    for name, value in named_values.items():
        if value:
            yield Secret(name, value.encode("utf-8", "surrogateescape"))
    for agent in tables.agents.values():
        for name, value in agent.env.items():
            if name.upper().endswith(_SECRET_SUFFIXES):
                yield Secret(name, value.encode())
    files = {"admin.key": settings.data_dir / "admin.key"}
    files |= {f"providers.{each.name}": each.file for each in settings.providers if each.file is not None}
    for name, path in files.items():
        yield Secret(name, _read_file(path).strip())
    granted_files = [path for agent in tables.agents.values() for path in agent.secrets]
    granted_files += [path for workspace in tables.workspaces.values() for path in workspace.setup_secrets]
    for file in dict.fromkeys(granted_files):
        content = _read_file(Path(file)).strip()
        yield Secret(file, content, tuple(_secret_lines(content)))
    for name, workspace in tables.workspaces.items():
        yield Secret(f"workspaces.{name}.repository", (_url_password(workspace.repository) or "").encode())
    if tables.git.credential_file is not None:
        for line in _read_file(tables.git.credential_file).decode("utf-8", "replace").splitlines():
            password = _url_password(line.strip()) or ""
            yield Secret("git.credential_file", password.encode(), (unquote(password).encode(),))


def _read_file(path: Path) -> bytes:
    """Give the beginning of a regular file; nothing when it cannot be read, which whoever needs it will say."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError:
        return b""


def _secret_lines(content: bytes) -> Iterator[bytes]:
    """Give each line of a text, and of a line `NAME=value` the value as well; marks as of PEM are no secrets."""
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        return
    for line in map(str.strip, lines):
        if line.startswith("-----") and line.endswith("-----"):
            continue
        name, equals, value = line.removeprefix("export ").partition("=")
        candidates = [line] if len(lines) > 1 else []
        if equals and name.isidentifier():
            candidates.append(value.strip().strip("\"'"))
        yield from (candidate.encode() for candidate in candidates if len(candidate) >= MIN_SECRET)


def _url_password(url: str | None) -> str | None:
    try:
        return None if url is None or "@" not in url else urlsplit(url).password
    except ValueError:
        return None
