"""The commands that cancel, retry and resume jobs, one by its id or all that options select, and `steer`."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from steadyhand.cli import bulk, client_options
from steadyhand.cli.app import app
from steadyhand.cli.client_options import Server
from steadyhand.cli.common_options import AsJson, create_output
from steadyhand.cli.console import CommandOutput
from steadyhand.cli.sanitize import one_line
from steadyhand.client import ENDED_STATES
from steadyhand.errors import InvalidRequest

AfterRun = Annotated[
    int | None, typer.Option(min=1, help="Only if this is still the newest run; makes a repeat harmless.")
]


@app.command()
def cancel(
    job: bulk.JobOrFilter = None,
    *,
    state: bulk.States = None,
    agent: bulk.AgentFilter = None,
    workspace: bulk.WorkspaceFilter = None,
    key: bulk.KeyFilter = None,
    search: bulk.Search = None,
    metadata: bulk.MetadataFilter = None,
    since: bulk.Since = None,
    until: bulk.Until = None,
    all_jobs: bulk.All = False,
    yes: bulk.Yes = False,
    dry_run: bulk.DryRun = False,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Ask a job to stop, or all jobs that the options select."""
    output = create_output()
    filters = bulk.Filters(state, agent, workspace, key, search, metadata, since, until, all_jobs)
    bulk.check_target(job, filters, dry_run=dry_run)
    with client_options.open_client(server) as client:
        if job is None:
            bulk.change_jobs(
                output,
                client.cancel_jobs,
                filters.body(client),
                "cancel",
                yes=yes,
                dry_run=dry_run,
                as_json=as_json,
            )
            return
        document = client.cancel(client_options.find_job_id(client, job)).document
    _print_state(output, document, as_json=as_json, requested="asked to stop")


@app.command()
def retry(
    job: bulk.JobOrFilter = None,
    *,
    after_run: AfterRun = None,
    state: bulk.States = None,
    agent: bulk.AgentFilter = None,
    workspace: bulk.WorkspaceFilter = None,
    key: bulk.KeyFilter = None,
    search: bulk.Search = None,
    metadata: bulk.MetadataFilter = None,
    since: bulk.Since = None,
    until: bulk.Until = None,
    all_jobs: bulk.All = False,
    yes: bulk.Yes = False,
    dry_run: bulk.DryRun = False,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Run an ended job once more, from the start, or all jobs that the options select.

    Without --state these are the failed, timeout, interrupted and error ones.
    """
    output = create_output()
    filters = bulk.Filters(state, agent, workspace, key, search, metadata, since, until, all_jobs)
    bulk.check_target(job, filters, dry_run=dry_run)
    with client_options.open_client(server) as client:
        if job is None:
            _reject_after_run(after_run)
            body = filters.body(client)
            bulk.change_jobs(
                output, client.retry_jobs, body, "retry", yes=yes, dry_run=dry_run, as_json=as_json
            )
            return
        document = client.retry(client_options.find_job_id(client, job), after_run=after_run).document
    _print_state(output, document, as_json=as_json, requested="asked for a new run")


@app.command()
def resume(
    job: bulk.JobOrFilter = None,
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt of the new run; else a request to continue.")
    ] = None,
    *,
    prompt_option: Annotated[
        str | None,
        typer.Option("--prompt", metavar="TEXT", help="The same, for the jobs that the options select."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget", min=0.000001, help="The new budget of the job in dollars, for all its runs."
        ),
    ] = None,
    after_run: AfterRun = None,
    state: bulk.States = None,
    agent: bulk.AgentFilter = None,
    workspace: bulk.WorkspaceFilter = None,
    key: bulk.KeyFilter = None,
    search: bulk.Search = None,
    metadata: bulk.MetadataFilter = None,
    since: bulk.Since = None,
    until: bulk.Until = None,
    all_jobs: bulk.All = False,
    yes: bulk.Yes = False,
    dry_run: bulk.DryRun = False,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Resume an ended job, in the same session and checkout, or all jobs that the options select.

    Without --state these are the failed, timeout, interrupted and error ones.
    """
    output = create_output()
    filters = bulk.Filters(state, agent, workspace, key, search, metadata, since, until, all_jobs)
    bulk.check_target(job, filters, dry_run=dry_run)
    if prompt is not None and prompt_option is not None:
        raise InvalidRequest("The prompt is there twice.")
    new_prompt = prompt if prompt_option is None else prompt_option
    with client_options.open_client(server) as client:
        if job is None:
            _reject_after_run(after_run)
            options = {"prompt": new_prompt, "budget_usd": budget}
            body = filters.body(client) | {k: v for k, v in options.items() if v is not None}
            bulk.change_jobs(
                output, client.resume_jobs, body, "resume", yes=yes, dry_run=dry_run, as_json=as_json
            )
            return
        document = client.resume(
            client_options.find_job_id(client, job), after_run=after_run, budget_usd=budget, prompt=new_prompt
        ).document
    _print_state(output, document, as_json=as_json, requested="asked to go on")


@app.command()
def steer(
    job: client_options.JobId,
    text: Annotated[str, typer.Argument(help="The message.")],
    server: Server = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Send a message to the agent of a running job, which goes on with it at its next step."""
    output = create_output()
    with client_options.open_client(server) as client:
        message = client.steer(client_options.find_job_id(client, job), text)
    if as_json:
        output.print_json(message.document)
    else:
        output.print_note(f"The agent of {one_line(message.job_id or '?', 20)} has read the message.")


def _reject_after_run(after_run: int | None) -> None:
    if after_run is not None:
        raise InvalidRequest("--after-run is for one job; of many, the newest run of each is known.")


def _print_state(output: CommandOutput, job: Mapping[str, Any], *, as_json: bool, requested: str) -> None:
    if as_json:
        output.print_json(job)
        return
    state = one_line(job.get("state", "?"), 20)
    state_text = f"is {state}" if state in ENDED_STATES else f"is {state}, {requested}"
    output.print_note(f"{one_line(job.get('id', ''), 20)} {state_text}.")
