"""`steadyhand usage`: tokens and cost."""

from typing import Annotated

import typer

from steadyhand.cli import client_options
from steadyhand.cli.app import app
from steadyhand.cli.client_options import Server
from steadyhand.cli.common_options import AsJson, create_output
from steadyhand.cli.key_names import load_key_names, resolve_key_id
from steadyhand.cli.tables import usage_table
from steadyhand.cli.times import parse_moment
from steadyhand.clock import utc_now


@app.command()
def usage(
    *,
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="api_key, agent, model, provider, workspace or day (the default); may be repeated."
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Calls from then on: today, yesterday, 24h, 7d, a day in UTC, or an RFC 3339 time.",
        ),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Calls before then.")] = None,
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Only calls for this key: its id, or its name.")
    ] = None,
    agent: Annotated[str | None, typer.Option(metavar="NAME", help="Only calls of this agent.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Only calls of this model.")] = None,
    workspace: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only calls of jobs in this workspace.")
    ] = None,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Add up the cost of model calls. Without the scope `admin`, a key sees only its own."""
    output = create_output()
    groups = by or ["day"]
    now = utc_now()
    start = None if since is None else parse_moment(since, "--since", now)
    end = None if until is None else parse_moment(until, "--until", now)
    with client_options.open_client(server) as client:
        names = load_key_names(client) if "api_key" in groups and not as_json else {}
        groups_used = client.usage(
            by=groups,
            since=start,
            until=end,
            api_key=None if api_key is None else resolve_key_id(client, api_key),
            agent=agent,
            model=model,
            workspace=workspace,
        )
    rows = [group.document for group in groups_used]
    output.print_rows(
        rows, lambda all_: usage_table(all_, groups, names), as_json=as_json, empty_text="Nothing was spent."
    )
