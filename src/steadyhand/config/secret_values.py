"""The secrets that the service has or grants, read from their sources. Redaction removes them from all output."""

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from steadyhand.config.settings import SECRET_VARIABLES, Settings
from steadyhand.redact import MIN_SECRET

_SECRET_SUFFIXES = ("KEY", "TOKEN", "SECRET", "PASSWORD")
"""The last part of the names of variables that hold secrets."""
MAX_FILE_BYTES = 64 * 1024
"""The size of the part of a secret file that redaction searches for."""


@dataclass(frozen=True, slots=True)
class Secret:
    """One secret; `name` identifies it for people. If it is a file with several lines, `parts` has each of them too."""

    name: str
    value: bytes
    parts: tuple[bytes, ...] = ()

    @property
    def is_short(self) -> bool:
        """Return true if the secret is too short to search for."""
        return len(self.value) < MIN_SECRET


def read_secrets(settings: Settings) -> list[Secret]:
    """Return all secrets that exist now. Files may be renewed or created while the service runs."""
    return [secret for secret in _iterate_secrets(settings) if secret.value]


def secret_values(settings: Settings) -> list[bytes]:
    """Return the bytes to search for."""
    return [value for secret in read_secrets(settings) for value in (secret.value, *secret.parts)]


def _iterate_secrets(settings: Settings) -> Iterator[Secret]:
    tables = settings.tables
    named_values = {name: settings.environment.get(name) for name in SECRET_VARIABLES}
    # A secret from a file of the environment, or from an option, is in the settings only.
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
        for line in _read_file(tables.git.credential_file).splitlines():  # of bytes, so at newlines alone
            password = _url_password(line.decode("utf-8", "replace").strip()) or ""
            yield Secret("git.credential_file", password.encode(), (unquote(password).encode(),))


def _read_file(path: Path) -> bytes:
    """Return the beginning of a regular file; empty if it is unreadable, which its user reports."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError:
        return b""


def _secret_lines(content: bytes) -> Iterator[bytes]:
    """Return each line of a text, and the value of each line `NAME=value`; PEM marks are no secrets."""
    lines = content.splitlines()  # of bytes, so at newlines alone: a secret may hold any other character
    for line in map(bytes.strip, lines):
        if line.startswith(b"-----") and line.endswith(b"-----"):
            continue
        name, equals, value = line.removeprefix(b"export ").partition(b"=")
        candidates = [line] if len(lines) > 1 else []
        if equals and name.decode("utf-8", "replace").isidentifier():
            candidates.append(value.strip().strip(b"\"'"))
        yield from (candidate for candidate in candidates if len(candidate) >= MIN_SECRET)


def _url_password(url: str | None) -> str | None:
    try:
        return None if url is None or "@" not in url else urlsplit(url).password
    except ValueError:
        return None
