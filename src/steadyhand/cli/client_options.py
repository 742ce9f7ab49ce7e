"""From what the user said to a service: its address, its key, a job by the beginning of its id."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from steadyhand.cli.console import Screen
from steadyhand.cli.sanitize import one_line
from steadyhand.client import DEFAULT_URL, Client
from steadyhand.config.client import ClientSettings
from steadyhand.config.client import client as client_settings
from steadyhand.errors import InvalidRequest, NotFound

Server = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="URL", help="The service to talk to; else STEADYHAND_URL, else the local one."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JobId = Annotated[
    str, typer.Argument(metavar="JOB", help="The job's id, or a beginning of it that is not ambiguous.")
]

_FULL_ID = re.compile(r"[0-9a-f]{12}")
_SHORT_ID = re.compile(r"[0-9a-f]{1,12}")
_URL = re.compile(r"(https?|ssh|git|file)://.+|[A-Za-z0-9_.-]+@[A-Za-z0-9_.-]+:.+")
_SHOWN_CANDIDATES = 10


def settings() -> ClientSettings:
    """Read what the environment says to a client."""
    return client_settings()


def screen() -> Screen:
    """Give the streams of this command."""
    return Screen(no_color=settings().no_color)


@contextmanager
def connected(server: str | None) -> Iterator[Client]:
    """Give a client for the service that was named, or the local one."""
    known = settings()
    with client_for(server or known.url or DEFAULT_URL, known) as client:
        yield client


def client_for(url: str, known: ClientSettings) -> Client:
    """Make a client; the key of the local service is never sent to another machine."""
    client = Client(url, known.token)
    if known.token_is_local and not client.local:
        client.close()
        return Client(url)
    return client


def find(client: Client, given: str) -> str:
    """Give the whole id for the beginning of one.

    Raises `NotFound`, and `InvalidRequest` with the candidates when there are several.
    """
    short = given.strip().lower()
    if _FULL_ID.fullmatch(short):
        return short
    if not _SHORT_ID.fullmatch(short):
        raise NotFound(f"{one_line(given, 40)!r} is not the id of a job: those are 12 hexadecimal digits.")
    page = client.list(id_prefix=short, limit=_SHOWN_CANDIDATES + 1)
    found = [str(job["id"]) for job in page.get("data", []) if str(job.get("id", "")).startswith(short)]
    if not found:
        raise NotFound(f"There is no job whose id begins with {short}.")
    if len(found) > 1:
        more = ", …" if len(found) > _SHOWN_CANDIDATES else ""
        names = ", ".join(one_line(name, 20) for name in sorted(found)[:_SHOWN_CANDIDATES])
        raise InvalidRequest(f"{short} is the beginning of several ids: {names}{more}")
    return found[0]


def workspace_of(repo: str | None, workspace: str | None) -> tuple[str | None, bool]:
    """Say which workspace is meant, and whether it is a path of this machine.

    `repo` is a path or a URL; `workspace` is a name unless it looks like one of those. Paths become absolute.
    """
    if repo is not None and workspace is not None:
        raise InvalidRequest("Give --repo or --workspace, not both.")
    given = repo if repo is not None else workspace
    if given is None:
        return None, False
    if _URL.fullmatch(given):
        return given, given.startswith("file:")
    if repo is None and "/" not in given and given not in {".", ".."} and not given.startswith("~"):
        return given, False
    path = Path(given).expanduser().resolve()
    if not path.is_dir():
        raise InvalidRequest(f"{one_line(path)} is not a directory.")
    return str(path), True


def refuse_path_on(client: Client, workspace: str, *, is_path: bool) -> None:
    """Raise `InvalidRequest` for a path on a service that runs on another machine."""
    if is_path and not client.local:
        raise InvalidRequest(
            f"{one_line(workspace)} is a path on this machine, and {client.base_url} runs on another, where it means "
            "something else or nothing. Give the repository's URL or the name of one of its workspaces."
        )


def rows_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the objects of a list."""
    data = document.get("data")
    return [row for row in data if isinstance(row, dict)] if isinstance(data, list) else []
