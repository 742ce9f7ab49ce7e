"""The commands that list, show and delete jobs; `lifecycle` has those that change them."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from steadyhand.cli import client_options
from steadyhand.cli.activity import load_activity
from steadyhand.cli.app import app
from steadyhand.cli.client_options import JobId, Server
from steadyhand.cli.common_options import AsJson, create_output
from steadyhand.cli.console import CommandOutput
from steadyhand.cli.exit_codes import ExitCode, exit_code_for_job
from steadyhand.cli.key_names import load_key_names, resolve_key_id
from steadyhand.cli.progress import EventPrinter, Progress, create_view, summary_line
from steadyhand.cli.sanitize import as_mapping, one_line
from steadyhand.cli.tables import diff_text, job_details, jobs_table, workspaces_table
from steadyhand.cli.times import parse_seconds
from steadyhand.client import ENDED_STATES, Client
from steadyhand.clock import utc_now
from steadyhand.errors import NotFound
from steadyhand.job import OutcomeType

ExitStatus = Annotated[
    bool, typer.Option("--exit-status", help="Exit with the job's own code (as `run` and `wait` do).")
]


@app.command()
def jobs(
    *,
    state: Annotated[list[str] | None, typer.Option(help="Only jobs in this state; may be repeated.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only jobs of this agent.")] = None,
    workspace: Annotated[str | None, typer.Option(help="Only jobs in this workspace.")] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Only jobs that this key submitted: its id, or its name."),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(metavar="WORDS", help='Only jobs with these words, or a "phrase", in title or prompt.'),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="At most this many.")] = 20,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    output = create_output()
    with client_options.open_client(server) as client:
        key_id = None if key is None else resolve_key_id(client, key)
        names = {} if as_json else load_key_names(client)
        page = client.list(
            state=state or None, agent=agent, workspace=workspace, api_key=key_id, q=search, limit=limit
        )
    if as_json:
        output.print_json(page.document)
        return
    rows = [item.document for item in page.data]
    if not rows:
        output.print_note("No jobs.")
        return
    output.print_renderable(jobs_table(rows, names))
    if page.has_more:
        output.print_note("There are more: --limit.", "dim")


@app.command()
def show(job: JobId, *, server: Server = None, as_json: AsJson = False) -> None:
    """Show one job."""
    output = create_output()
    with client_options.open_client(server) as client:
        document = client.get(client_options.find_job_id(client, job)).document
        activity = None if as_json else load_activity(client, document, utc_now())
    if as_json:
        output.print_json(document)
        return
    output.print_renderable(job_details(document, () if activity is None else activity.rows))
    _print_next_step(output, document, server)


@app.command()
def wait(
    job: JobId,
    *,
    timeout: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Wait no longer than this, then exit 124: seconds, or 90s, 2m, 1h."
        ),
    ] = None,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Wait until a job has ended, print its answer and exit with its code. Ctrl-C leaves the job alone."""
    output = create_output()
    seconds = None if timeout is None else parse_seconds(timeout, "--timeout")
    with client_options.open_client(server) as client:
        ended_job = client.wait(client_options.find_job_id(client, job), timeout_seconds=seconds).document
    if ended_job.get("state") not in ENDED_STATES and not as_json:
        output.print_note(f"The job is still {one_line(ended_job.get('state'), 20)}.")
    print_result_and_exit(output, ended_job, as_json=as_json, hint=next_step(ended_job, server))


@app.command()
def logs(
    job: JobId,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow until the job has ended.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Only events numbered above this.")] = 0,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", "-t", help="Print the time of each event before it, in UTC.")
    ] = False,
    exit_status: ExitStatus = False,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Print what the agent did; --json prints the events, one a line. Ctrl-C leaves the job alone."""
    output = create_output()
    with client_options.open_client(server) as client:
        job_id = client_options.find_job_id(client, job)
        if as_json:
            for event in _events(client, job_id, after, follow=follow):
                output.print_json_line(event)
        else:
            _print_events(output, client, job_id, after, follow=follow, timestamps=timestamps)
        if exit_status:
            raise typer.Exit(int(exit_code_for_job(client.get(job_id).document)))


def _events(client: Client, job_id: str, after: int, *, follow: bool) -> Iterator[Mapping[str, Any]]:
    """Yield the events of a job as JSON objects: those that exist, or all until its end."""
    source = client.follow(job_id, after=after) if follow else client.events(job_id, after=after)
    return (event.document for event in source)


def _print_events(
    output: CommandOutput, client: Client, job_id: str, after: int, *, follow: bool, timestamps: bool
) -> None:
    progress = Progress()
    if follow:
        activity = load_activity(client, client.get(job_id).document, utc_now())
        if activity is not None and activity.rows:
            output.print_note(activity.sentence(), "dim")
    with create_view(output.out, progress, live=follow) as view:
        printer = EventPrinter(view, progress, timestamps=timestamps)
        printer.print_events(_events(client, job_id, after, follow=follow))
    job = client.get(job_id).document
    output.err.print(summary_line(job), soft_wrap=True)
    activity = None if follow else load_activity(client, job, utc_now())
    if activity is not None and activity.rows:
        output.print_note(activity.sentence(), "dim")


def next_step(job: Mapping[str, Any], server: str | None) -> str | None:
    """Return the next step of an interrupted job or one without budget: a command, or none; `None` for other jobs."""
    job_id, option = one_line(job.get("id", ""), 20), "" if server is None else f" --server {server}"
    if job.get("will_run_again") is True:
        return "the next start of the service runs it again"
    if job.get("state") == "interrupted":
        return f"to go on where it stopped: steadyhand resume{option} {job_id}"
    if as_mapping(job.get("outcome")).get("type") == OutcomeType.BUDGET:
        return f"to go on with a larger budget: steadyhand resume{option} {job_id} --budget USD"
    return None


def _print_next_step(output: CommandOutput, job: Mapping[str, Any], server: str | None) -> None:
    hint = next_step(job, server)
    if hint is not None:
        output.print_note(hint, "dim")


@app.command()
def delete(job: JobId, *, server: Server = None, as_json: AsJson = False) -> None:
    """Delete an ended job and all its files."""
    output = create_output()
    with client_options.open_client(server) as client:
        job_id = client_options.find_job_id(client, job)
        client.delete(job_id)
    if as_json:
        output.print_json({"object": "job", "id": job_id, "deleted": True})
    else:
        output.print_note(f"{job_id} is deleted.")


@app.command()
def diff(job: JobId, *, server: Server = None, as_json: AsJson = False) -> None:
    """Print what a job changed, as a patch for `git apply`."""
    output = create_output()
    with client_options.open_client(server) as client:
        job_id = client_options.find_job_id(client, job)
        patch = _diff_or_empty(client, job_id)
    if as_json:
        output.print_json({"job_id": job_id, "diff": patch.decode("utf-8", "replace")})
    elif not patch:
        output.print_note("The job changed nothing.")
    elif output.out.is_terminal:
        output.out.print(diff_text(patch.decode("utf-8", "replace")), soft_wrap=True)
    else:
        output.print_bytes(patch)


def _diff_or_empty(client: Client, job_id: str) -> bytes:
    try:
        return client.diff(job_id)
    except NotFound:
        job = client.get(job_id)  # raises NotFound too if the job does not exist
        if job.document.get("changes"):
            raise
        return b""


@app.command()
def transcript(
    job: JobId,
    *,
    server: Server = None,
    as_json: AsJson = False,  # noqa: ARG001  # it is NDJSON with and without# it is NDJSON with and without
) -> None:
    """Print the transcript of a job: one JSON object a line."""
    output = create_output()
    with client_options.open_client(server) as client:
        output.print_bytes(client.transcript(client_options.find_job_id(client, job)))


@app.command()
def workspaces(*, server: Server = None, as_json: AsJson = False) -> None:
    """List the workspaces that you can name."""
    output = create_output()
    with client_options.open_client(server) as client:
        rows = [workspace.document for workspace in client.workspaces()]
    empty_text = "No workspace is configured; `steadyhand run --repo` accepts a path or a URL."
    output.print_rows(rows, workspaces_table, as_json=as_json, empty_text=empty_text)


def print_result_and_exit(
    output: CommandOutput,
    job: dict[str, Any],
    *,
    as_json: bool,
    shown_message: str | None = None,
    hint: str | None = None,
) -> None:
    """Print a job's answer and result, and exit with its code.

    An answer that the terminal shows already (`shown_message`), or that is the error, is not printed twice. `hint`
    names the next step.
    """
    code = exit_code_for_job(job)
    if as_json:
        output.print_json(job)
    else:
        answer = job.get("answer")
        error = str(as_mapping(job.get("error")).get("message", ""))
        answer = answer if isinstance(answer, str) else ""
        answer_text = answer.strip()
        if answer_text and answer_text != (shown_message or "").strip() and answer_text not in error:
            output.print_text(answer)
        if code is not ExitCode.TIMEOUT or job.get("state") in ENDED_STATES:
            output.err.print(summary_line(job), soft_wrap=True)
        if hint is not None:
            output.print_note(hint, "dim")
    raise typer.Exit(int(code))
