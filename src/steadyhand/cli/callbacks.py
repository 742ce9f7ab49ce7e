"""`steadyhand callbacks`: list, show and replay the deliveries of callbacks."""

from typing import Annotated

import typer

from steadyhand.cli import client_options
from steadyhand.cli.app import app
from steadyhand.cli.client_options import Server
from steadyhand.cli.common_options import AsJson, create_output
from steadyhand.cli.console import CommandOutput
from steadyhand.cli.sanitize import one_line, sanitize
from steadyhand.cli.tables import deliveries_table, endpoints_table
from steadyhand.client import CallbackEndpoint

callbacks = typer.Typer(help="List, show and replay the deliveries of callbacks.", no_args_is_help=True)
app.add_typer(callbacks, name="callbacks")
endpoints = typer.Typer(help="List, create, change and remove endpoints.", no_args_is_help=True)
callbacks.add_typer(endpoints, name="endpoints")

Url = Annotated[str, typer.Argument(metavar="URL", help="Where the service posts the events of jobs.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The endpoint's name.")]
Events = Annotated[
    list[str] | None,
    typer.Option(
        "--event",
        metavar="EVENT",
        help="Only this event, such as job.ended (the default); may be repeated.",
    ),
]
Agents = Annotated[
    list[str] | None,
    typer.Option("--agent", metavar="NAME", help="Only jobs of this agent; may be repeated."),
]
Body = Annotated[str | None, typer.Option(help="The form of the body: thin (the default), full or openai.")]
DeliveryId = Annotated[str, typer.Argument(metavar="DELIVERY", help="The delivery's id.")]


@callbacks.command("list")
def list_deliveries(
    *,
    state: Annotated[
        str | None, typer.Option(help="Only this state: pending, delivered, failed or cancelled.")
    ] = None,
    job: Annotated[str | None, typer.Option(metavar="JOB", help="Only deliveries about this job.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only deliveries to this configured endpoint.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=200, help="The newest so many.")] = 20,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """List deliveries, newest first. Without `read:all`, a key sees those of its own jobs."""
    output = create_output()
    with client_options.open_client(server) as client:
        page = client.deliveries(state=state, job=job, endpoint=endpoint, limit=limit)
        rows = [delivery.document for delivery in page.data]
    output.print_rows(rows, deliveries_table, as_json=as_json, empty_text="No deliveries.")


@callbacks.command()
def show(delivery: DeliveryId, *, server: Server = None, as_json: AsJson = False) -> None:
    """Print a delivery and the body that is signed and sent."""
    output = create_output()
    with client_options.open_client(server) as client:
        shown = client.delivery(delivery).document
    if as_json:
        output.print_json(shown)
        return
    for name, value in shown.items():
        if name not in ("object", "body") and value is not None:
            output.print_text(f"{name}: {one_line(value, 300)}")
    output.print_text("")
    output.print_text(sanitize(str(shown.get("body", ""))))


@callbacks.command()
def replay(delivery: DeliveryId, *, server: Server = None, as_json: AsJson = False) -> None:
    """Send a delivery once more, with the same id and body."""
    output = create_output()
    with client_options.open_client(server) as client:
        replayed = client.replay_delivery(delivery).document
    if as_json:
        output.print_json(replayed)
    else:
        output.print_note(f"{one_line(replayed.get('id', delivery), 60)} is sent once more.")


@callbacks.command()
def secret(*, server: Server = None, as_json: AsJson = False) -> None:
    """Print the secret that signs the callbacks of the jobs of this key."""
    output = create_output()
    with client_options.open_client(server) as client:
        document = client.callback_secret().document
    if as_json:
        output.print_json(document)
    else:
        output.print_text(str(document.get("secret", "")))


@endpoints.command("list")
def list_endpoints(*, server: Server = None, as_json: AsJson = False) -> None:
    """List the endpoints, those of the configuration among them."""
    output = create_output()
    with client_options.open_client(server) as client:
        rows = [endpoint.document for endpoint in client.list_endpoints()]
    output.print_rows(rows, endpoints_table, as_json=as_json, empty_text="No endpoints.")


@endpoints.command()
def create(
    name: Name,
    url: Url,
    *,
    event: Events = None,
    agent: Agents = None,
    body: Body = None,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Create an endpoint and print the secret that signs its messages, which is shown only once."""
    output = create_output()
    with client_options.open_client(server) as client:
        endpoint = client.create_endpoint(name, url=url, events=event, agents=agent, body=body)
    _print_endpoint(output, endpoint, as_json=as_json)


@endpoints.command()
def change(
    name: Name,
    *,
    url: Annotated[str | None, typer.Option(metavar="URL", help="The new address.")] = None,
    event: Events = None,
    agent: Agents = None,
    all_agents: Annotated[bool, typer.Option("--all-agents", help="Jobs of all agents.")] = False,
    body: Body = None,
    rotate_secret: Annotated[
        bool, typer.Option("--rotate-secret", help="Make a new secret and print it; the former signs, too.")
    ] = False,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Change an endpoint; what is not named stays as it is."""
    output = create_output()
    agents = [] if all_agents else agent or None
    with client_options.open_client(server) as client:
        endpoint = client.change_endpoint(
            name, rotate_secret=rotate_secret, url=url, events=event or None, agents=agents, body=body
        )
    _print_endpoint(output, endpoint, as_json=as_json)


@endpoints.command()
def remove(name: Name, *, server: Server = None, as_json: AsJson = False) -> None:
    """Remove an endpoint: nothing more is sent to it."""
    output = create_output()
    with client_options.open_client(server) as client:
        client.remove_endpoint(name)
    if as_json:
        output.print_json({"name": name, "removed": True})
        return
    output.print_note(f"The endpoint {one_line(name, 64)} is removed.")


def _print_endpoint(output: CommandOutput, endpoint: CallbackEndpoint, *, as_json: bool) -> None:
    if as_json:
        output.print_json(endpoint.document)
        return
    if endpoint.secret is not None:
        output.print_text(endpoint.secret)
        output.print_note("The secret of the endpoint: keep it now, it is not shown again.", "dim")
    else:
        output.print_note(f"The endpoint {one_line(endpoint.name, 64)} is changed.")
