"""`steadyhand keys`: create, list, revoke and rotate keys."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from steadyhand.cli import client_options
from steadyhand.cli.app import app
from steadyhand.cli.client_options import Server
from steadyhand.cli.common_options import AsJson, create_output
from steadyhand.cli.console import CommandOutput
from steadyhand.cli.key_names import find_key_id, key_label
from steadyhand.cli.sanitize import one_line
from steadyhand.cli.tables import keys_table
from steadyhand.client.http_requests import KeyLimitFields
from steadyhand.errors import InvalidRequest

keys = typer.Typer(help="Create, list, revoke and rotate the keys of the service.", no_args_is_help=True)
app.add_typer(keys, name="keys")

Key = Annotated[
    str, typer.Argument(metavar="KEY", help="The key's id, a beginning of it, or its name; not ambiguous.")
]


@keys.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the key, for people.")],
    *,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="The scopes: submit, read, cancel (the default are these three), read:all, workspace:any, "
            "admin; may be repeated."
        ),
    ] = None,
    agent: Annotated[
        list[str] | None, typer.Option(help="Only this agent; may be repeated.", metavar="NAME")
    ] = None,
    workspace: Annotated[
        list[str] | None, typer.Option(help="Only this workspace; may be repeated.", metavar="NAME")
    ] = None,
    per_minute: Annotated[int | None, typer.Option(help="Submissions in any minute.")] = None,
    running: Annotated[int | None, typer.Option(help="Jobs that run at once; others wait.")] = None,
    queued: Annotated[int | None, typer.Option(help="Jobs that may wait; more are refused.")] = None,
    day: Annotated[
        float | None, typer.Option("--budget-per-day", metavar="USD", help="The most it may spend a day.")
    ] = None,
    month: Annotated[
        float | None, typer.Option("--budget-per-month", metavar="USD", help="The most it may spend a month.")
    ] = None,
    max_budget: Annotated[
        float | None, typer.Option(metavar="USD", help="The highest budget that a job may ask for.")
    ] = None,
    max_timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="The longest time that a job may ask for.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Only this model; may be repeated.", metavar="NAME")
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Also for an unknown agent or workspace, and for a name that a key has."
        ),
    ] = False,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print its secret, which is shown only once."""
    limits: KeyLimitFields = {
        "agents": agent or None,
        "workspaces": workspace or None,
        "requests_per_minute": per_minute,
        "running_jobs": running,
        "queued_jobs": queued,
        "budget_usd_per_day": day,
        "budget_usd_per_month": month,
        "max_budget_usd": max_budget,
        "max_timeout_seconds": max_timeout,
        "models": model or None,
    }
    output = create_output()
    with client_options.open_client(server) as client:
        try:
            created = client.create_key(name, scopes=scope or None, strict=not force, **limits).document
        except InvalidRequest as error:
            if error.code not in ("key_exists", "unknown_agent", "unknown_workspace"):
                raise
            text = f"{error.detail} (with --force the key is created all the same)"
            raise InvalidRequest(text, code=error.code) from error
    _print_secret(output, created, as_json=as_json)


@keys.command("list")
def list_keys(
    *,
    every: Annotated[bool, typer.Option("--all", help="Also revoked keys.")] = False,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """List the keys, without their secrets."""
    output = create_output()
    with client_options.open_client(server) as client:
        rows = [key.document for key in client.list_keys() if every or key.revoked_at is None]
    output.print_rows(rows, keys_table, as_json=as_json, empty_text="No keys.")


@keys.command()
def revoke(key: Key, *, server: Server = None, as_json: AsJson = False) -> None:
    """Revoke a key at once; jobs that it submitted go on."""
    output = create_output()
    with client_options.open_client(server) as client:
        revoked = client.revoke_key(find_key_id(client, key)).document
    if as_json:
        output.print_json(revoked)
    else:
        output.print_note(f"{key_label(revoked)} is revoked.")


@keys.command()
def rotate(
    key: Key,
    *,
    grace: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="For how long the old secret stays valid.")
    ] = 0,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Replace the secret of a key and print it; id and limits stay."""
    output = create_output()
    with client_options.open_client(server) as client:
        rotated = client.rotate_key(find_key_id(client, key), grace_seconds=grace).document
    _print_secret(output, rotated, as_json=as_json)


def _print_secret(output: CommandOutput, key: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.print_json(key)
        return
    output.print_text(str(key.get("secret", "")))
    output.print_note(f"{key_label(key)}: keep it now, it is not shown again.", "dim")
    if key.get("former_secret_until") is not None:
        output.print_note(f"The old one is valid until {one_line(key['former_secret_until'], 40)}.", "dim")
