"""`steadyhand run`: ask for work, watch it being done, print the answer."""

import json
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from steadyhand.cli import client_options
from steadyhand.cli.app import Terminated, app
from steadyhand.cli.client_options import AsJson, Server
from steadyhand.cli.console import Screen
from steadyhand.cli.exit_codes import Exit
from steadyhand.cli.jobs import finish
from steadyhand.cli.progress import Narrator, Progress, view_for
from steadyhand.cli.sanitize import first_line, one_line
from steadyhand.client import DEFAULT_URL, ENDED_STATES, Client
from steadyhand.errors import ConfigError, InvalidRequest, SteadyhandError, Unreachable

CANCEL_SECONDS = 10.0
"""How long a cancelled job is watched; the contract gives a running one two seconds to be gone."""

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_TITLE_LENGTH = 80


@app.command()
def run(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="What to do; `-`, or nothing, reads it from stdin."),
    ] = None,
    *,
    repo: Annotated[
        str | None, typer.Option(metavar="PATH|URL", help="The repository to work on; `.` is the one here.")
    ] = None,
    workspace: Annotated[
        str | None, typer.Option("--workspace", "-w", metavar="NAME", help="A workspace of the service.")
    ] = None,
    agent: Annotated[
        str | None, typer.Option("--agent", "-a", metavar="NAME", help="The agent to ask.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME", help="The model it uses.")
    ] = None,
    ref: Annotated[
        str | None, typer.Option(metavar="REF", help="The branch, tag or commit to start from.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="USD", help="The most it may cost, in dollars.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="The longest it may run: seconds, or 90s, 15m, 2h.")
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="What lists call it; else the prompt's first line.")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Kept with the job; may be repeated.")
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A JSON Schema that the answer has to fit.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the answer, no progress.")] = False,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Ask an agent for work and watch it. Ctrl-C cancels the job.

    With no service to be found one is started for the length of the command.
    """
    screen = client_options.screen()
    place, is_path = client_options.workspace_of(repo, workspace)
    text = _prompt(prompt, screen)
    fields = {
        "agent": agent,
        "model": model,
        "workspace": place,
        "ref": ref,
        "budget_usd": budget,
        "timeout_seconds": None if timeout is None else _seconds(timeout),
        "title": title if title is not None else first_line(text, _TITLE_LENGTH) or None,
        "metadata": _metadata(metadata or []) or None,
        "output_schema": None if schema is None else _schema(schema),
    }
    with ExitStack() as stack:
        client, job = _submit(stack, screen, server, text, fields=fields, path=place if is_path else None)
        shown = None
        try:
            shown = follow(screen, client, job["id"], quiet=quiet)
            ended = client.wait(job["id"], timeout_seconds=CANCEL_SECONDS)
        except KeyboardInterrupt as interrupt:
            _cancel(screen, client, job["id"], as_json=as_json)
            code = Exit.TERMINATED if isinstance(interrupt, Terminated) else Exit.CTRL_C
            raise typer.Exit(int(code)) from None
        hint = None if quiet or not ended.get("changes") else _hint(ended, client.base_url, server)
        finish(screen, ended, as_json=as_json, shown=shown if screen.shared else None, hint=hint)


def follow(screen: Screen, client: Client, job_id: str, *, quiet: bool = False) -> str | None:
    """Tell on stderr what the agent does until the job has ended; give the last message that was shown."""
    if quiet:
        for _ in client.events(job_id):
            pass
        return None
    progress = Progress()
    with view_for(screen.err, progress) as view:
        narrator = Narrator(view, progress)
        narrator.tell_all(client.events(job_id))
    return narrator.said


def _hint(job: Mapping[str, Any], url: str, server: str | None) -> str:
    """Say how to get at the changes, from a service of our own when there is one to be started again."""
    job_id = one_line(job.get("id", ""), 20)
    option = "" if server is None else f" --server {server}"
    named = server or client_options.settings().url or DEFAULT_URL
    first = "" if url == named.rstrip("/") else "steadyhand serve &  then  "
    return f"to take the changes over: {first}steadyhand diff{option} {job_id} | git apply"


def _submit(
    stack: ExitStack,
    screen: Screen,
    server: str | None,
    prompt: str,
    *,
    fields: Mapping[str, Any],
    path: str | None,
) -> tuple[Client, dict[str, Any]]:
    """Give the accepted job and a client of the service that has it, which may be one of our own."""
    known = client_options.settings()
    named = server or known.url
    client = stack.enter_context(client_options.client_for(named or DEFAULT_URL, known))
    if path is not None:
        client_options.refuse_path_on(client, path, is_path=True)
    try:
        with _held_signals():
            job = client.submit(prompt, **fields)
    except Unreachable as error:
        if named is not None or error.code != Unreachable.code:
            raise
        screen.note(f"No service at {DEFAULT_URL}: running one in this process.", "dim")
        client = stack.enter_context(_own_service())
        with _held_signals():
            job = client.submit(prompt, **fields)
    screen.note(f"job {one_line(job.get('id', '?'), 20)}", "dim")
    return client, job


@contextmanager
def _own_service() -> Iterator[Client]:
    """Run a service in this process, on a free port and with a key that nobody else knows."""
    from steadyhand import serve  # noqa: PLC0415  # heavy, and seldom needed
    from steadyhand.config.settings import load  # noqa: PLC0415  # the same

    settings = load(None, {"server.host": "127.0.0.1", "server.port": 0})
    with serve.embedded(settings) as (url, token), Client(url, token) as client:
        yield client


@contextmanager
def _held_signals() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back: a job that was accepted must be known by its id to be cancelled."""
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # a handler's signature
        held.append(number)

    before = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])


def _cancel(screen: Screen, client: Client, job_id: str, *, as_json: bool) -> None:
    """Cancel a job and see it end; a second Ctrl-C leaves at once."""
    screen.note(f"Cancelling {one_line(job_id, 20)} ...", "yellow")
    try:
        client.cancel(job_id)
        job = client.wait(job_id, timeout_seconds=CANCEL_SECONDS)
    except SteadyhandError as error:
        screen.note(f"It could not be cancelled: {error.detail}", "red")
        return
    if as_json:
        screen.document(job)
    elif job.get("state") in ENDED_STATES:
        screen.note(f"The job is {one_line(job.get('state'), 20)}.")
    else:
        screen.note(
            f"It is still {one_line(job.get('state'), 20)}: see `steadyhand show {one_line(job_id, 20)}`."
        )


def _prompt(given: str | None, screen: Screen) -> str:
    if given is not None and given != "-":
        return given
    if sys.stdin.isatty():
        screen.note("Reading the prompt from stdin; end it with Ctrl-D.", "dim")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest("The prompt on stdin is not UTF-8 text.") from error


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None:
        raise InvalidRequest(f"--timeout {one_line(text, 40)} is no time: give seconds, or 90s, 15m, 2h.")
    value = float(match[1]) * _UNITS[match[2]]
    return int(value) if value == int(value) else value


def _metadata(pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise InvalidRequest(f"--metadata {one_line(pair, 60)} is not of the form NAME=VALUE.")
        found[name] = value
    return found


def _schema(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"--schema {one_line(path)} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"--schema {one_line(path)} is not JSON: {one_line(error)}") from error
    if not isinstance(schema, dict):
        raise InvalidRequest(f"--schema {one_line(path)} is not a JSON object.")
    return schema
