"""The secrets that the service has or grants, read from their sources. Redaction removes them from all output."""

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from steadyhand.config.file_schema import Tables
from steadyhand.config.settings import SECRET_VARIABLES, Settings
from steadyhand.redact import MIN_SECRET

_SECRET_SUFFIXES = ("KEY", "TOKEN", "SECRET", "PASSWORD")
"""The last part of the names of variables that hold secrets."""
_MIN_TOKEN = 16
"""The length from which a part of a notifier's address is taken for a secret: not its host or its topic."""
_TELEMETRY_HEADERS = (
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_METRICS_HEADERS",
)
_DATABASE_PASSWORD = re.compile(r"^\w+://[^:@/]*:([^@/]+)@|[?&](?:ssl)?password=([^&]+)")
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
    named_values["PGPASSWORD"] = settings.environment.get("PGPASSWORD")
    for name, value in named_values.items():
        if value:
            yield Secret(name, value.encode("utf-8", "surrogateescape"))
    yield from _database_secrets("database_url", tables.service.database_url)
    yield from _database_secrets("database_listen_url", tables.service.database_listen_url)
    variables = [agent.env for agent in tables.agents.values()]
    for name, value in [
        each for table in (*variables, tables.artifacts.object_options) for each in table.items()
    ]:
        if name.upper().endswith(_SECRET_SUFFIXES):
            yield Secret(name, value.encode())
    files = {"admin.key": settings.data_dir / "admin.key"}
    files["callbacks.key"] = tables.callbacks.secret_file or settings.data_dir / "callbacks.key"
    files |= {f"providers.{each.name}": each.file for each in settings.providers if each.file is not None}
    for name, path in files.items():
        yield Secret(name, _read_file(path).strip())
    yield from _receiver_secrets(tables)
    yield from _telemetry_headers(settings)
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


def _receiver_secrets(tables: Tables) -> Iterator[Secret]:
    for name, endpoint in tables.callbacks.endpoints.items():
        yield Secret(f"callbacks.endpoints.{name}.url", endpoint.url.encode())
        content = _read_file(endpoint.secret_file).strip()
        yield Secret(str(endpoint.secret_file), content, tuple(_secret_lines(content)))
    for name, notifier in tables.notify.items():
        yield _notifier_secret(name, notifier.url, notifier.url_file)


def _notifier_secret(name: str, url: str | None, file: Path | None) -> Secret:
    """Return the address of a notifier, and each part of it that may be a token or a password."""
    address = (url or "").encode() if file is None else _read_file(file).strip()
    parts = re.split(rb"[/:@?&=]+", address)[1:]
    decoded = [unquote(part.decode("utf-8", "replace")).encode() for part in parts]
    tokens = [each for each in dict.fromkeys([*parts, *decoded]) if len(each) >= _MIN_TOKEN]
    return Secret(f"notify.{name}.url", address, tuple(tokens))


def _telemetry_headers(settings: Settings) -> Iterator[Secret]:
    """Return the values of the headers for the receiver of OpenTelemetry."""
    for name in _TELEMETRY_HEADERS:
        for pair in settings.environment.get(name, "").split(","):
            value = pair.partition("=")[2].strip()
            yield Secret(name, value.encode("utf-8", "surrogateescape"), (unquote(value).encode(),))
    headers_file = settings.tables.telemetry.headers_file
    if headers_file is not None:
        for line in _read_file(headers_file).splitlines():  # of bytes, so at newlines alone
            yield Secret("telemetry.headers_file", line.partition(b":")[2].strip())


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


def _database_secrets(name: str, url: str | None) -> Iterator[Secret]:
    for password in _database_passwords(url or ""):
        yield Secret(name, password.encode(), (unquote(password).encode(),))


def _database_passwords(url: str) -> list[str]:
    """Return the passwords of an address of a database as it has them; libpq takes more characters than a URL has."""
    return [one or other for one, other in _DATABASE_PASSWORD.findall(url)]


def _url_password(url: str | None) -> str | None:
    try:
        return None if url is None or "@" not in url else urlsplit(url).password
    except ValueError:
        return None
