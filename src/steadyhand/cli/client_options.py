"""The client of a command: the service's address, its key, and job ids from their prefixes."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from steadyhand.cli.common_options import create_output, load_settings
from steadyhand.cli.sanitize import one_line
from steadyhand.client import DEFAULT_URL, Client
from steadyhand.config.client import ClientSettings
from steadyhand.errors import InvalidRequest, NotFound

Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="The service to talk to; else STEADYHAND_URL, that of steadyhand.toml, or the local one.",
    ),
]
JobId = Annotated[
    str, typer.Argument(metavar="JOB", help="The job's id, or a beginning of it that is not ambiguous.")
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="LABEL", help="Only on nodes with this label; may be repeated."),
]
NotOnNodes = Annotated[
    list[str] | None,
    typer.Option("--not-on-node", metavar="NODE", help="Not on this node; may be repeated."),
]

_FULL_ID = re.compile(r"[0-9a-f]{12}")
_SHORT_ID = re.compile(r"[0-9a-f]{1,12}")
_URL = re.compile(r"(https?|ssh|git|file)://.+|[A-Za-z0-9_.-]+@[A-Za-z0-9_.-]+:.+")
_MAX_CANDIDATES = 10


@contextmanager
def open_client(server: str | None) -> Iterator[Client]:
    """Yield a client of the named service, or of the local one."""
    client_config = load_settings()
    if server is None and client_config.url is None:
        for note in client_config.notes:
            create_output().print_note(note, "yellow")
    url = server or client_config.url or client_config.file_url or DEFAULT_URL
    with client_for(url, client_config) as client:
        yield client


def client_for(url: str, client_config: ClientSettings) -> Client:
    """Return a client. The key of the local service is never sent to another machine."""
    client = command_client(url, client_config.token)
    if client_config.token_is_local and not client.is_local:
        client.close()
        return command_client(url)
    return client


def command_client(url: str, token: str | None = None) -> Client:
    """Return a client that raises a refusal at once: the person at the command decides about the next try."""
    return Client(url, token, retry_later_seconds=0)


def find_job_id(client: Client, text: str) -> str:
    """Return the whole id of a job from a prefix.

    Raise `NotFound` if no job matches, and `InvalidRequest` with the candidates if several do.
    """
    id_prefix = text.strip().lower()
    if _FULL_ID.fullmatch(id_prefix):
        return id_prefix
    if not _SHORT_ID.fullmatch(id_prefix):
        raise NotFound(f"{one_line(text, 40)!r} is not the id of a job: those are 12 hexadecimal digits.")
    page = client.list(id_prefix=id_prefix, limit=_MAX_CANDIDATES + 1)
    matches = [job.id for job in page.data if job.id.startswith(id_prefix)]
    if not matches:
        raise NotFound(f"There is no job whose id begins with {id_prefix}.")
    if len(matches) > 1:
        more = ", …" if len(matches) > _MAX_CANDIDATES else ""
        names = ", ".join(one_line(name, 20) for name in sorted(matches)[:_MAX_CANDIDATES])
        raise InvalidRequest(f"{id_prefix} is the beginning of several ids: {names}{more}")
    return matches[0]


def resolve_workspace(repo: str | None, workspace: str | None) -> tuple[str | None, bool]:
    """Return the workspace, and true if it is a path of this machine.

    `repo` is a path or a URL; `workspace` is a name unless it looks like one of those. Paths become absolute.
    """
    if repo is not None and workspace is not None:
        raise InvalidRequest("Use --repo or --workspace, not both.")
    source = repo if repo is not None else workspace
    if source is None:
        return None, False
    if _URL.fullmatch(source):
        return source, source.startswith("file:")
    if repo is None and "/" not in source and source not in {".", ".."} and not source.startswith("~"):
        return source, False
    try:
        path = Path(source).expanduser().resolve()
        is_directory = path.is_dir()
        if is_directory and not os.access(path, os.R_OK | os.X_OK):
            raise InvalidRequest(f"{one_line(path)} cannot be read by this user.")
    except (OSError, RuntimeError) as error:  # no permission on the way to it, or no such home
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidRequest(f"{one_line(source)} cannot be read: {one_line(reason)}.") from error
    if not is_directory:
        raise InvalidRequest(f"{one_line(path)} is not a directory.")
    return str(path), True


def reject_remote_path(server: str | None, path: str) -> None:
    """Raise `InvalidRequest` for a path if the service of this command runs on another machine."""
    settings = load_settings()
    with client_for(server or settings.url or settings.file_url or DEFAULT_URL, settings) as client:
        if client.is_local:
            return
        raise InvalidRequest(
            f"{one_line(path)} is a path on this machine, and {client.base_url} runs on another, where it means "
            "something else or nothing. Use the repository's URL or the name of one of its workspaces; with "
            "--with-changes the uncommitted changes and unpushed commits here go along."
        )


def list_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the objects of a list."""
    data = document.get("data")
    return [row for row in data if isinstance(row, dict)] if isinstance(data, list) else []
