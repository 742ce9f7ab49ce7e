"""`steadyhand nodes`: list, drain and undrain the nodes; `steadyhand drain` for the node of this service."""

import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from steadyhand.cli import client_options
from steadyhand.cli.app import app
from steadyhand.cli.client_options import Server
from steadyhand.cli.columns import Column, FittedTable
from steadyhand.cli.common_options import AsJson, create_output
from steadyhand.cli.console import CommandOutput
from steadyhand.cli.exit_codes import ExitCode
from steadyhand.cli.sanitize import format_largest_unit, one_line
from steadyhand.cli.times import parse_seconds
from steadyhand.client import Client, Node
from steadyhand.errors import NotFound, SteadyhandError

nodes = typer.Typer(help="List the nodes that run jobs, and drain them.", invoke_without_command=True)
app.add_typer(nodes, name="nodes")

LOOK_SECONDS = 1.0
"""The time between two looks at a node that is waited for."""
DEFAULT_WAIT = "1h"

Name = Annotated[str, typer.Argument(metavar="NAME", help="The node's name.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until it runs no job; for a hook before its stop.")]
Timeout = Annotated[
    str,
    typer.Option(metavar="TIME", help="The longest to wait: seconds, or 90s, 15m, 2h; then exit code 124."),
]
UntilRestart = Annotated[
    bool, typer.Option("--until-restart", help="Its next start undrains it; else only `undrain` does.")
]
_STYLES = {"alive": "green", "silent": "red", "away": "dim"}


@nodes.callback()
def list_nodes(context: typer.Context, *, server: Server = None, as_json: AsJson = False) -> None:
    """List the nodes: version, labels, slots, load and the age of the heartbeat."""
    if context.invoked_subcommand is not None:
        return
    output = create_output()
    with client_options.open_client(server) as client:
        rows = [node.document for node in client.list_nodes()]
    output.print_rows(rows, nodes_table, as_json=as_json, empty_text="No nodes.")


@nodes.command("drain")
def drain_named(
    name: Name,
    *,
    wait: Wait = False,
    timeout: Timeout = DEFAULT_WAIT,
    until_restart: UntilRestart = False,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Let a node take no new runs. What it runs goes on."""
    with client_options.open_client(server) as client:
        _drain(client, name, wait=wait, timeout=timeout, until_restart=until_restart, as_json=as_json)


@nodes.command()
def undrain(name: Name, *, server: Server = None, as_json: AsJson = False) -> None:
    """Let a node take new runs again."""
    output = create_output()
    with client_options.open_client(server) as client:
        _print_node(output, client.undrain_node(name), as_json=as_json)


@app.command("drain")
def drain_here(
    *,
    wait: Wait = False,
    timeout: Timeout = DEFAULT_WAIT,
    until_restart: UntilRestart = False,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Let the node of this service take no new runs: before its stop or its upgrade."""
    with client_options.open_client(server) as client:
        name = next((node.name for node in client.list_nodes() if node.here), None)
        if name is None:
            raise NotFound("The service runs no jobs by itself: name a node with `steadyhand nodes drain`.")
        _drain(client, name, wait=wait, timeout=timeout, until_restart=until_restart, as_json=as_json)


def _drain(
    client: Client, name: str, *, wait: bool, timeout: str, until_restart: bool, as_json: bool
) -> None:
    seconds = parse_seconds(timeout, "--timeout")
    output = create_output()
    node = client.drain_node(name, until_restart=until_restart)
    if wait:
        node = _wait_until_idle(client, node, seconds)
    _print_node(output, node, as_json=as_json)
    if wait and not node.idle:
        raise typer.Exit(int(ExitCode.TIMEOUT))


def _wait_until_idle(client: Client, node: Node, seconds: float) -> Node:
    """Return a node once it runs no job, is gone, or the time is over."""
    end = time.monotonic() + seconds
    while not node.idle and node.state == "alive" and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
        found = next((each for each in client.list_nodes() if each.name == node.name), None)
        if found is None:
            raise SteadyhandError(f"The node {one_line(node.name, 128)} is gone.")
        node = found
    return node


def _print_node(output: CommandOutput, node: Node, *, as_json: bool) -> None:
    if as_json:
        output.print_json(node.document)
        return
    runs = node.running + node.waiting
    work = "runs no job" if not runs else f"runs {runs} job{'s' * (runs != 1)}"
    state = "is drained" if node.drained else "takes new runs"
    output.print_note(f"{one_line(node.name, 128)} {state} and {work}.")


def nodes_table(rows: Iterable[Mapping[str, Any]]) -> RenderableType:
    """Return the table of nodes, one line each."""
    table = FittedTable(
        Column("NODE"),
        Column("STATE"),
        Column("ROLE", drop_rank=3),
        Column("RUNS", right=True),
        Column("LOAD", right=True, drop_rank=2),
        Column("WARM", right=True, drop_rank=5),
        Column("HEARTBEAT", right=True, drop_rank=4),
        Column("VERSION", drop_rank=6),
        Column("LABELS", least_width=8, drop_rank=1),
    )
    for row in rows:
        state = "drained" if row.get("drained") and row.get("state") == "alive" else str(row.get("state", ""))
        labels = row.get("labels")
        age = row.get("heartbeat_seconds")
        table.add_row(
            _cell(row.get("name"), 128),
            Text(one_line(state, 12), style="yellow" if state == "drained" else _STYLES.get(state, "")),
            _cell(row.get("role"), 10),
            _cell(f"{row.get('running', 0)}/{row.get('slots', 0)}", 12),
            _cell(row.get("load"), 8),
            _cell(row.get("warm"), 8),
            _cell(f"{format_largest_unit(age)} ago" if isinstance(age, int | float) else None, 16),
            _cell(row.get("version"), 20),
            _cell(", ".join(map(str, labels)) if isinstance(labels, list) else None, 80),
        )
    return table


def _cell(value: object, limit: int) -> Text:
    return Text("-" if value in (None, "") else one_line(value, limit))
