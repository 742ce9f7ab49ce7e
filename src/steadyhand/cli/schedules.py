"""`steadyhand schedules`: list, add, show, change, pause, resume, run and remove schedules, and their history."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from steadyhand.cli import client_options
from steadyhand.cli.app import app
from steadyhand.cli.bulk import parse_metadata
from steadyhand.cli.client_options import Labels, NotOnNodes, Server
from steadyhand.cli.common_options import AsJson, create_output
from steadyhand.cli.console import CommandOutput
from steadyhand.cli.sanitize import one_line, sanitize
from steadyhand.cli.schedule_tables import next_text, schedules_table, ticks_table
from steadyhand.cli.times import parse_seconds
from steadyhand.client import Schedule
from steadyhand.clock import utc_now
from steadyhand.errors import InvalidRequest

schedules = typer.Typer(help="Run jobs at the times of cron expressions.", no_args_is_help=True)
app.add_typer(schedules, name="schedules")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]
Zone = Annotated[
    str | None,
    typer.Option("--timezone", metavar="ZONE", help="The time zone, such as Europe/Berlin; else UTC."),
]
Overlap = Annotated[
    str | None,
    typer.Option(help="While an earlier job goes on: skip (the default), queue or cancel_running."),
]
Missed = Annotated[
    str | None, typer.Option(help="Ticks that a stop missed: once (the default), all or none.")
]
MaxUsd = Annotated[
    float | None,
    typer.Option("--max-usd", metavar="USD", help="Pause once its jobs have cost so much; 0 is no cap."),
]
MaxRuns = Annotated[
    int | None, typer.Option("--max-runs", metavar="N", min=0, help="Pause after so many jobs; 0 is no cap.")
]
MaxFailures = Annotated[
    int | None,
    typer.Option(
        "--max-failures", metavar="N", min=0, help="Pause after so many failures in a row; 0 is no cap."
    ),
]
_SHOWN = (
    "cron",
    "timezone",
    "origin",
    "api_key_id",
    "overlap",
    "missed",
    "max_usd",
    "max_runs",
    "max_failures",
)


@schedules.command("list")
def list_schedules(*, server: Server = None, as_json: AsJson = False) -> None:
    """List the schedules with their next tick and the outcome of their last job."""
    output = create_output()
    with client_options.open_client(server) as client:
        rows = [schedule.document for schedule in client.list_schedules()]
    output.print_rows(rows, schedules_table, as_json=as_json, empty_text="No schedules.")


@schedules.command()
def add(
    name: Name,
    cron: Annotated[
        str, typer.Argument(metavar="CRON", help="Five fields, or six with seconds first; also @daily.")
    ],
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The task; fields such as {{ tick.date }} are filled in.")
    ],
    *,
    timezone: Zone = None,
    agent: Annotated[
        str | None, typer.Option("--agent", "-a", metavar="NAME", help="The agent to ask.")
    ] = None,
    workspace: Annotated[
        str | None, typer.Option("--workspace", "-w", metavar="NAME", help="A workspace of the service.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME", help="The model it uses.")
    ] = None,
    ref: Annotated[str | None, typer.Option(metavar="REF", help="The branch, tag or commit.")] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="USD", help="The budget of each job, in dollars.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="The longest a job may run: seconds, or 90s, 15m, 2h.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="The title of the jobs in lists.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Kept with the jobs; may be repeated.")
    ] = None,
    labels: Labels = None,
    not_on_nodes: NotOnNodes = None,
    overlap: Overlap = None,
    missed: Missed = None,
    max_usd: MaxUsd = None,
    max_runs: MaxRuns = None,
    max_failures: MaxFailures = None,
    paused: Annotated[bool, typer.Option("--paused", help="Do not start it yet.")] = False,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Add a schedule of this key. Its jobs have the scopes and limits that the key then has."""
    output = create_output()
    job = {
        "prompt": prompt,
        "agent": agent,
        "workspace": workspace,
        "model": model,
        "ref": ref,
        "budget_usd": budget,
        "timeout_seconds": None if timeout is None else parse_seconds(timeout, "--timeout"),
        "title": title,
        "metadata": parse_metadata(metadata or []) or None,
        "labels": labels or None,
        "not_on_nodes": not_on_nodes or None,
    }
    with client_options.open_client(server) as client:
        schedule = client.create_schedule(
            name,
            paused=paused,
            cron=cron,
            timezone=timezone,
            job={key: value for key, value in job.items() if value is not None},
            overlap=overlap,
            missed=missed,
            max_usd=max_usd,
            max_runs=max_runs,
            max_failures=max_failures,
        )
    _print_changed(output, schedule, as_json=as_json)


@schedules.command()
def change(
    name: Name,
    *,
    cron: Annotated[str | None, typer.Option(metavar="CRON", help="Another cron expression.")] = None,
    timezone: Zone = None,
    overlap: Overlap = None,
    missed: Missed = None,
    max_usd: MaxUsd = None,
    max_runs: MaxRuns = None,
    max_failures: MaxFailures = None,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Change the times, the policies or the caps of a schedule; what is not named stays as it is."""
    output = create_output()
    values = (cron, timezone, overlap, missed, max_usd, max_runs, max_failures)
    if all(value is None for value in values):
        raise InvalidRequest("Name what to change, such as --cron or --max-usd.")
    with client_options.open_client(server) as client:
        schedule = client.change_schedule(
            name,
            cron=cron,
            timezone=timezone,
            overlap=overlap,
            missed=missed,
            max_usd=max_usd,
            max_runs=max_runs,
            max_failures=max_failures,
        )
    _print_changed(output, schedule, as_json=as_json)


@schedules.command()
def show(name: Name, *, server: Server = None, as_json: AsJson = False) -> None:
    """Print a schedule, its job and its sums."""
    output = create_output()
    with client_options.open_client(server) as client:
        schedule = client.schedule(name).document
    if as_json:
        output.print_json(schedule)
        return
    output.print_text(f"{one_line(schedule.get('name', name), 64)}: {next_text(schedule, utc_now()).plain}")
    paused = _mapping(schedule.get("paused"))
    if paused:
        output.print_text(f"paused: {one_line(paused.get('detail', ''), 300)}")
    _print_fields(output, {key: schedule.get(key) for key in _SHOWN})
    _print_fields(output, {key: schedule.get(key) for key in ("runs", "spent_usd", "failures")})
    job = _mapping(schedule.get("job"))
    _print_fields(
        output, {key: value for key, value in job.items() if key != "prompt" and value not in ({}, 0)}
    )
    output.print_text("")
    output.print_text(sanitize(str(job.get("prompt", ""))))


@schedules.command()
def history(
    name: Name,
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=200, help="The newest so many.")] = 20,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """List the ticks of a schedule, newest first: those that fired, wait or were skipped, and why."""
    output = create_output()
    with client_options.open_client(server) as client:
        rows = [tick.document for tick in client.schedule_history(name, limit=limit).data]
    output.print_rows(rows, ticks_table, as_json=as_json, empty_text="No ticks yet.")


@schedules.command()
def pause(name: Name, *, server: Server = None, as_json: AsJson = False) -> None:
    """Pause a schedule: its ticks neither fire nor are missed."""
    output = create_output()
    with client_options.open_client(server) as client:
        schedule = client.pause_schedule(name)
    _print_changed(output, schedule, as_json=as_json)


@schedules.command()
def resume(name: Name, *, server: Server = None, as_json: AsJson = False) -> None:
    """Resume a schedule from now on."""
    output = create_output()
    with client_options.open_client(server) as client:
        schedule = client.resume_schedule(name)
    _print_changed(output, schedule, as_json=as_json)


@schedules.command()
def run(name: Name, *, server: Server = None, as_json: AsJson = False) -> None:
    """Submit the job of a schedule now and print its id; `steadyhand wait` waits for it."""
    output = create_output()
    with client_options.open_client(server) as client:
        job = client.run_schedule(name)
    if as_json:
        output.print_json(job.document)
    else:
        output.print_text(one_line(job.id, 20))


@schedules.command()
def remove(name: Name, *, server: Server = None, as_json: AsJson = False) -> None:
    """Remove a schedule with its history; its jobs stay."""
    output = create_output()
    with client_options.open_client(server) as client:
        client.remove_schedule(name)
    if as_json:
        output.print_json({"name": name, "removed": True})
    else:
        output.print_note(f"The schedule {one_line(name, 64)} is removed.")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _print_fields(output: CommandOutput, fields: Mapping[str, Any]) -> None:
    for key, value in fields.items():
        if value is not None:
            output.print_text(f"{one_line(key, 40)}: {one_line(value, 300)}")


def _print_changed(output: CommandOutput, schedule: Schedule, *, as_json: bool) -> None:
    if as_json:
        output.print_json(schedule.document)
        return
    when = next_text(schedule.document, utc_now()).plain
    output.print_note(f"{one_line(schedule.name, 64)}: {when}")
