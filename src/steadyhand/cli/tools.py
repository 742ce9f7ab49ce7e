"""`steadyhand tools`: the calls of tools, their failures and their time."""

from typing import Annotated

import typer

from steadyhand.cli import client_options
from steadyhand.cli.app import app
from steadyhand.cli.client_options import Server
from steadyhand.cli.common_options import AsJson, create_output
from steadyhand.cli.key_names import load_key_names, resolve_key_id
from steadyhand.cli.tables import tools_table


@app.command()
def tools(
    job: Annotated[
        str | None,
        typer.Argument(metavar="[JOB]", help="Only calls in this job; else those of the newest jobs."),
    ] = None,
    *,
    by: Annotated[
        list[str] | None, typer.Option(help="agent, api_key or job: a row for each; may be repeated.")
    ] = None,
    agent: Annotated[str | None, typer.Option(metavar="NAME", help="Only jobs of this agent.")] = None,
    workspace: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only jobs in this workspace.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Only jobs of this key: its id, or its name.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=365, help="Only jobs of the last days.")] = 30,
    newest: Annotated[
        int, typer.Option("--jobs", min=1, max=500, help="Look at this number of the newest jobs.")
    ] = 100,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Count the calls of tools, their failures and their time, in a job or in the newest jobs."""
    output = create_output()
    groups = by or []
    with client_options.open_client(server) as client:
        names = load_key_names(client) if "api_key" in groups and not as_json else {}
        document = client.tools(
            by=groups,
            job=None if job is None else client_options.find_job_id(client, job),
            agent=agent,
            workspace=workspace,
            api_key=None if key is None else resolve_key_id(client, key),
            days=days,
            jobs=newest,
        ).document
    rows = client_options.list_rows(document)
    if as_json:
        output.print_json(document)
    elif rows:
        output.print_renderable(tools_table(rows, groups, names))
    else:
        output.print_note("No tool was called.")
