"""`steadyhand run`: submit a job, follow it, and print the answer."""

import errno
import json
import os
import signal
import sys
import termios
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, TypeVar

import typer

from steadyhand.cli import client_options, local_changes
from steadyhand.cli.app import HungUp, Terminated, app
from steadyhand.cli.bulk import parse_metadata
from steadyhand.cli.client_options import Labels, NotOnNodes, Server
from steadyhand.cli.common_options import AsJson, create_output, global_config_file, load_settings
from steadyhand.cli.console import CommandOutput
from steadyhand.cli.exit_codes import ExitCode
from steadyhand.cli.jobs import next_step, print_result_and_exit
from steadyhand.cli.progress import EventPrinter, Progress, create_view
from steadyhand.cli.sanitize import first_line, one_line
from steadyhand.cli.times import parse_seconds
from steadyhand.client import DEFAULT_URL, ENDED_STATES, Client
from steadyhand.config.locate import FILE_NAME
from steadyhand.errors import ConfigError, InvalidRequest, ServiceUnreachable, SteadyhandError

CANCEL_SECONDS = 10.0
"""Seconds for which a cancelled job is followed; the service ends a running one within two seconds."""

_MAX_TITLE_LENGTH = 80
ResultT = TypeVar("ResultT")


@app.command()
def run(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", help="The task; with `-` or without it, the task is read from stdin."
        ),
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
        float | None, typer.Option(metavar="USD", help="The budget of the job, in dollars.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="The longest it may run: seconds, or 90s, 15m, 2h.")
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="The title of the job in lists; else the prompt's first line.")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Kept with the job; may be repeated.")
    ] = None,
    labels: Labels = None,
    not_on_nodes: NotOnNodes = None,
    schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A JSON Schema that the answer must match.")
    ] = None,
    with_changes: Annotated[
        bool,
        typer.Option("--with-changes", help="Take the uncommitted changes here along, never ignored files."),
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only tell what such a job is likely to cost and to last.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the answer, no progress.")] = False,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Ask an agent for work and watch it. Ctrl-C cancels the job.

    Without a running service, one is started for the length of the command.
    """
    output = create_output()
    target_workspace, is_path = client_options.resolve_workspace(repo, workspace)
    if is_path and target_workspace is not None:
        client_options.reject_remote_path(server, target_workspace)
    if estimate:
        _print_estimate(output, server, agent, target_workspace, model, budget=budget, as_json=as_json)
        return
    repository_fields = local_changes.prepare(
        output, target_workspace, is_path=is_path, ref=ref, with_changes=with_changes, quiet=quiet
    )
    prompt_text = _read_prompt(prompt, output)
    fields = {
        "agent": agent,
        "model": model,
        **repository_fields,
        "budget_usd": budget,
        "timeout_seconds": None if timeout is None else parse_seconds(timeout, "--timeout"),
        "title": title if title is not None else first_line(prompt_text, _MAX_TITLE_LENGTH) or None,
        "metadata": parse_metadata(metadata or []) or None,
        "labels": labels or None,
        "not_on_nodes": not_on_nodes or None,
        "output_schema": None if schema is None else _read_schema(schema),
    }
    with ExitStack() as stack:
        client, job = _submit_job(stack, output, server, prompt_text, fields=fields)
        shown_message = None
        try:
            shown_message = print_progress(output, client, job["id"], quiet=quiet)
            ended_job = client.wait(job["id"], timeout_seconds=CANCEL_SECONDS).document
        except KeyboardInterrupt as interrupt:
            _cancel_job(output, client, job["id"], as_json=as_json)
            code = interrupt.exit_code if isinstance(interrupt, Terminated) else ExitCode.CTRL_C
            raise typer.Exit(int(code)) from None
        hint = None if quiet else _hint(ended_job, client.base_url, server)
        print_result_and_exit(
            output,
            ended_job,
            as_json=as_json,
            shown_message=shown_message if output.is_shared_terminal else None,
            hint=hint,
        )


def _print_estimate(
    output: CommandOutput,
    server: str | None,
    agent: str | None,
    workspace: str | None,
    model: str | None,
    *,
    budget: float | None,
    as_json: bool,
) -> None:
    from steadyhand.cli.estimate import load_estimate, print_estimate  # noqa: PLC0415  # no other run needs it

    with ExitStack() as stack:
        _, forecast = _call_service(
            stack, output, server, lambda client: load_estimate(client, agent, workspace, model)
        )
    if as_json:
        output.print_json(forecast)
    else:
        print_estimate(output, forecast, budget=budget, is_narrow=workspace is not None or model is not None)


def print_progress(output: CommandOutput, client: Client, job_id: str, *, quiet: bool = False) -> str | None:
    """Print the agent's progress on stderr until the job has ended; return the last message that was printed."""
    if quiet:
        for _ in client.follow(job_id):
            pass
        return None
    progress = Progress()
    with create_view(output.err, progress) as view:
        printer = EventPrinter(view, progress)
        printer.print_events(event.document for event in client.follow(job_id))
    return printer.last_message


def _hint(job: Mapping[str, Any], url: str, server: str | None) -> str | None:
    """Return the commands of the next step; a service of this process must be started again before."""
    job_id = one_line(job.get("id", ""), 20)
    option = "" if server is None else f" --server {server}"
    settings = load_settings()
    default_url = server or settings.url or settings.file_url or DEFAULT_URL
    is_embedded = url != default_url.rstrip("/")
    serve_command = "steadyhand serve &  then  " if is_embedded else ""
    if job.get("changes"):
        return f"to take the changes over: {serve_command}steadyhand diff{option} {job_id} | git apply"
    if (hint := next_step(job, server)) is not None:
        return f"{hint} (start a service before: steadyhand serve)" if is_embedded else hint
    return f"to see it again: {serve_command}steadyhand show {job_id}" if is_embedded else None


def _submit_job(
    stack: ExitStack,
    output: CommandOutput,
    server: str | None,
    prompt: str,
    *,
    fields: Mapping[str, Any],
) -> tuple[Client, dict[str, Any]]:
    """Submit the job and return it with a client of its service, which may run in this process."""

    def submit(client: Client) -> dict[str, Any]:
        with _deferred_signals():
            return dict(client.submit(prompt, **fields).document)

    client, job = _call_service(stack, output, server, submit)
    output.print_note(f"job {one_line(job.get('id', '?'), 20)}", "dim")
    return client, job


def _call_service(
    stack: ExitStack, output: CommandOutput, server: str | None, call: Callable[[Client], ResultT]
) -> tuple[Client, ResultT]:
    """Return the result of a call with its client; if no service answers, run one in this process and call it."""
    settings = load_settings()
    server_url = server or settings.url
    local_url = settings.file_url or DEFAULT_URL
    client = stack.enter_context(client_options.client_for(server_url or local_url, settings))
    try:
        return client, call(client)
    except ServiceUnreachable as error:
        if server_url is not None or error.code != ServiceUnreachable.code:
            raise
    output.print_note(f"No service at {local_url}: running one in this process.", "dim")
    client = stack.enter_context(_embedded_service(output))
    return client, call(client)


@contextmanager
def _embedded_service(output: CommandOutput) -> Iterator[Client]:
    """Run a service in this process, on a free port and with a random key.

    A `steadyhand.toml` in the working directory is not read: it may be that of a hostile repository, and could send
    the model's credential elsewhere.
    """
    from steadyhand import serve  # noqa: PLC0415  # heavy, and seldom needed
    from steadyhand.config.settings import load_settings  # noqa: PLC0415  # the same

    config = global_config_file()
    if config is None and "STEADYHAND_CONFIG" not in os.environ and Path(FILE_NAME).is_file():
        output.print_note(
            f"{FILE_NAME} here is not read: `steadyhand --config {FILE_NAME} run ..` takes it.", "yellow"
        )
    settings = load_settings(
        config, {"server.host": "127.0.0.1", "server.port": 0}, use_working_directory=False
    )
    with (
        _hangups_raised(),
        serve.embedded(settings) as (url, token),
        client_options.command_client(url, token) as client,
    ):
        yield client


@contextmanager
def _hangups_raised() -> Iterator[None]:
    """Raise `HungUp` at SIGHUP, so that the service of this process stops in order. Under nohup it stays ignored."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        yield
        return

    def raise_hung_up(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # a handler's signature
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the shell sends one and the kernel another
        _detach_closed_terminal()
        raise HungUp

    former = signal.signal(signal.SIGHUP, raise_hung_up)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, former)


def _detach_closed_terminal() -> None:
    """Let the standard streams whose terminal is closed write to the null device: any write to it would fail."""
    null_fd = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(null_fd, descriptor)
    os.close(null_fd)


@contextmanager
def _deferred_signals() -> Iterator[None]:
    """Delay Ctrl-C, SIGTERM and a handled SIGHUP: the id of an accepted job must be known to cancel it."""
    received: list[int] = []

    def record(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # a handler's signature
        received.append(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    numbers += [signal.SIGHUP] if callable(signal.getsignal(signal.SIGHUP)) else []
    handlers = {number: signal.signal(number, record) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])


def _cancel_job(output: CommandOutput, client: Client, job_id: str, *, as_json: bool) -> None:
    """Cancel a job and follow it to its end; a second Ctrl-C exits at once."""
    output.print_note(f"Cancelling {one_line(job_id, 20)} ...", "yellow")
    try:
        client.cancel(job_id)
        job = client.wait(job_id, timeout_seconds=CANCEL_SECONDS).document
    except SteadyhandError as error:
        output.print_note(f"It could not be cancelled: {error.detail}", "red")
        return
    if as_json:
        output.print_json(job)
    elif job.get("state") in ENDED_STATES:
        output.print_note(f"The job is {one_line(job.get('state'), 20)}.")
    else:
        output.print_note(
            f"It is still {one_line(job.get('state'), 20)}: see `steadyhand show {one_line(job_id, 20)}`."
        )


def _read_prompt(argument: str | None, output: CommandOutput) -> str:
    if argument is not None and argument != "-":
        return argument
    if sys.stdin.isatty():
        output.print_note("Reading the prompt from stdin; end it with Ctrl-D.", "dim")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest("The prompt on stdin is not UTF-8 text.") from error


def _read_schema(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"--schema {one_line(path)} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"--schema {one_line(path)} is not JSON: {one_line(error)}") from error
    if not isinstance(schema, dict):
        raise InvalidRequest(f"--schema {one_line(path)} is not a JSON object.")
    return schema
