"""`steadyhand usage`: tokens and cost."""

import re
from typing import Annotated

import typer

from steadyhand.cli import client_options
from steadyhand.cli.app import app
from steadyhand.cli.client_options import AsJson, Server
from steadyhand.cli.tables import usage_table

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@app.command()
def usage(
    *,
    by: Annotated[
        list[str] | None,
        typer.Option(help="api_key, agent, model, provider or day (the default); may be repeated."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Calls from then on: a day in UTC, or an RFC 3339 time."),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Calls before then.")] = None,
    api_key: Annotated[str | None, typer.Option(metavar="ID", help="Only calls for this key.")] = None,
    agent: Annotated[str | None, typer.Option(metavar="NAME", help="Only calls of this agent.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Only calls of this model.")] = None,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Add up the cost of model calls. Without the scope `admin`, a key sees only its own."""
    output = client_options.create_output()
    groups = by or ["day"]
    with client_options.open_client(server) as client:
        rows = client.usage(
            by=groups,
            since=_day_to_time(since),
            until=_day_to_time(until),
            api_key=api_key,
            agent=agent,
            model=model,
        )
    output.print_rows(
        rows, lambda all_: usage_table(all_, groups), as_json=as_json, empty_text="Nothing was spent."
    )


def _day_to_time(text: str | None) -> str | None:
    return f"{text}T00:00:00Z" if text is not None and _DATE.fullmatch(text) else text
