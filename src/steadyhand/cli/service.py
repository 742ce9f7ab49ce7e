"""The commands for a service on this machine: serve, doctor, config, demo."""

import asyncio
import gc
import importlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steadyhand.cli.app import app
from steadyhand.cli.common_options import AsJson, create_output, global_config_file
from steadyhand.cli.exit_codes import ExitCode
from steadyhand.errors import ConfigError
from steadyhand.optional_modules import not_loaded

if TYPE_CHECKING:
    from steadyhand.config.settings import Settings

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The settings; else STEADYHAND_CONFIG, steadyhand.toml here, or the user's own.",
    ),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Where the service keeps its data.")
]
Replace = Annotated[
    bool, typer.Option("--replace", help="Take the place of the service that runs on the data directory.")
]


@app.command()
def serve(
    *,
    config: ConfigFile = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="The port; 0 takes a free one.")] = None,
    data_dir: DataDir = None,
    no_work: Annotated[
        bool, typer.Option("--no-work", help="Accept jobs and run none: other nodes on the database do.")
    ] = False,
    classic: Annotated[bool, typer.Option("--classic", help="Behave as the earlier service did.")] = False,
    replace: Replace = False,
    as_json: AsJson = False,
) -> None:
    """Run the service until SIGTERM, Ctrl-C or the end of its terminal.

    Running jobs get a grace period; a second SIGTERM or Ctrl-C ends it. Under nohup a closed terminal changes nothing.
    """
    gc.disable()  # until the service listens
    # 3 MB for tracebacks in colours, which the log does not write, and for another kind of task.
    with not_loaded("rich.traceback", "greenlet"):
        importlib.import_module("steadyhand.serve")
    from steadyhand.config import settings as configuration  # noqa: PLC0415  # heavy: only for this command

    settings = configuration.load_settings(
        config or global_config_file(),
        {
            "server.host": host,
            "server.port": port,
            "service.data_dir": data_dir,
            "service.profile": "classic" if classic else None,
            "service.concurrency": 0 if no_work else None,
        },
    )
    _run(settings, works_only=False, replace_running=replace, as_json=as_json)


@app.command()
def worker(
    *,
    config: ConfigFile = None,
    host: Annotated[str | None, typer.Option(help="The address for health and metrics.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Its port; 0 takes a free one.")] = None,
    data_dir: DataDir = None,
    replace: Replace = False,
    as_json: AsJson = False,
) -> None:
    """Run the jobs that other nodes accept into the same database of Postgres, until SIGTERM or Ctrl-C.

    It has the same settings as `steadyhand serve`, and needs a name of its own in [service] node. It answers requests
    for its health and metrics alone.
    """
    gc.disable()  # until it listens
    with not_loaded("rich.traceback", "greenlet"):
        importlib.import_module("steadyhand.serve")
    from steadyhand.config import settings as configuration  # noqa: PLC0415  # heavy: only for this command

    overrides = {"server.host": host, "server.port": port, "service.data_dir": data_dir}
    settings = configuration.load_settings(config or global_config_file(), overrides)
    _run(settings, works_only=True, replace_running=replace, as_json=as_json)


def _run(settings: "Settings", *, works_only: bool, replace_running: bool, as_json: bool) -> None:
    from steadyhand import serve as service  # noqa: PLC0415  # it is loaded by now

    def announce(url: str) -> None:
        if as_json:
            create_output().print_json_line({"object": "service", "url": url})
        else:
            typer.echo(f"Steadyhand listens on {url}")

    service.serve(settings, announce=announce, replace_running=replace_running, works_only=works_only)


@app.command()
def doctor(*, config: ConfigFile = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Check everything that a service needs on this machine, and print a remedy for each failed check."""
    from steadyhand.config import settings as configuration  # noqa: PLC0415  # heavy: only for this command
    from steadyhand.config.secret_values import secret_values  # noqa: PLC0415
    from steadyhand.redact import Redactor  # noqa: PLC0415
    from steadyhand.serve.doctor import config_error_checks, run_checks  # noqa: PLC0415

    try:
        settings = configuration.load_settings(config or global_config_file(), {"service.data_dir": data_dir})
    except ConfigError as error:
        checks: list[Any] = [asdict(check) for check in config_error_checks(error)]
    else:
        redactor = Redactor(secret_values(settings))
        checks = [redactor.value(asdict(check)) for check in asyncio.run(run_checks(settings))]
    all_passed = all(check["ok"] for check in checks)
    output = create_output()
    if as_json:
        output.print_json({"object": "list", "data": checks, "ok": all_passed})
    else:
        from steadyhand.cli.tables import checks_text  # noqa: PLC0415  # loads the HTTP client, which `serve` does not need

        output.out.print(checks_text(checks), soft_wrap=True)
    if not all_passed:
        raise typer.Exit(int(ExitCode.FAILED))


@app.command("config")
def show_config(
    *,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    template: Annotated[
        bool, typer.Option("--template", help="Print a file with every setting, commented out.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print each setting, its value and its source. A secret is only shown as set or not set."""
    if template:
        from steadyhand.config.reference import settings_template  # noqa: PLC0415

        create_output().print_text(settings_template())
        return
    from steadyhand.config import settings as configuration  # noqa: PLC0415  # heavy: only for this command
    from steadyhand.config.secret_values import secret_values  # noqa: PLC0415
    from steadyhand.redact import Redactor  # noqa: PLC0415

    settings = configuration.load_settings(config or global_config_file(), {"service.data_dir": data_dir})
    redactor = Redactor(secret_values(settings))
    rows = [redactor.value(asdict(row)) for row in settings.rows()]
    from steadyhand.cli.tables import settings_table  # noqa: PLC0415  # loads the HTTP client

    output = create_output()
    output.print_rows(rows, settings_table, as_json=as_json)


@app.command()
def demo(
    *,
    agent: Annotated[
        str | None, typer.Option("--agent", metavar="NAME", help="Another agent than the CLI: codex.")
    ] = None,
    clean: Annotated[bool, typer.Option("--clean", help="Remove the demo's directory at the end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a real agent fix a failing test in a small repository, through the service's HTTP API."""
    from steadyhand.cli.demo import run_demo  # noqa: PLC0415  # it alone needs the testing kit
    from steadyhand.cli.demo_agents import DEMO_AGENTS  # noqa: PLC0415

    if agent is not None and agent not in DEMO_AGENTS:
        raise typer.BadParameter(f"The demo knows these other agents: {', '.join(DEMO_AGENTS)}.")
    chosen = None if agent is None else DEMO_AGENTS[agent]
    raise typer.Exit(int(run_demo(create_output(), clean_up=clean, as_json=as_json, agent=chosen)))
