"""The commands that are the service itself, or look at this machine: serve, doctor, config, demo."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from steadyhand.cli import client_options
from steadyhand.cli.app import app
from steadyhand.cli.client_options import AsJson
from steadyhand.cli.exit_codes import Exit
from steadyhand.cli.tables import checks_text, settings_table
from steadyhand.errors import ConfigError

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The settings; else steadyhand.toml here, if any."),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Where the service keeps its data.")
]


@app.command()
def serve(
    *,
    config: ConfigFile = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="The port; 0 takes a free one.")] = None,
    data_dir: DataDir = None,
    classic: Annotated[bool, typer.Option("--classic", help="Behave as the earlier service did.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the service until SIGTERM or Ctrl-C; jobs under way get a grace period, a second signal cuts it short."""
    from steadyhand import serve as service  # noqa: PLC0415
    from steadyhand.config import settings as configuration  # noqa: PLC0415  # heavy: only for this command

    settings = configuration.load(
        config,
        {
            "server.host": host,
            "server.port": port,
            "service.data_dir": data_dir,
            "service.profile": "classic" if classic else None,
        },
    )

    def announce(url: str) -> None:
        if as_json:
            client_options.screen().line_of_json({"object": "service", "url": url})
        else:
            typer.echo(f"Steadyhand listens on {url}")

    service.serve(settings, announce=announce)


@app.command()
def doctor(*, config: ConfigFile = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Look at everything a service here would need, and say what to do about what is missing."""
    from steadyhand import serve as service  # noqa: PLC0415
    from steadyhand.config import settings as configuration  # noqa: PLC0415  # heavy: only for this command
    from steadyhand.config.secret_values import values_of  # noqa: PLC0415
    from steadyhand.redact import Redactor  # noqa: PLC0415

    try:
        settings = configuration.load(config, {"service.data_dir": data_dir})
    except ConfigError as error:
        checks: list[Any] = [asdict(check) for check in service.misconfigured(error)]
    else:
        clean = Redactor(values_of(settings))
        checks = [clean.value(asdict(check)) for check in asyncio.run(service.doctor(settings))]
    ok = all(check["ok"] for check in checks)
    screen = client_options.screen()
    if as_json:
        screen.document({"object": "list", "data": checks, "ok": ok})
    else:
        screen.out.print(checks_text(checks), soft_wrap=True)
    if not ok:
        raise typer.Exit(int(Exit.FAILED))


@app.command("config")
def show_config(*, config: ConfigFile = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Print each setting, its value and where that came from. Secrets are only said to be there."""
    from steadyhand.config import settings as configuration  # noqa: PLC0415  # heavy: only for this command
    from steadyhand.config.secret_values import values_of  # noqa: PLC0415
    from steadyhand.redact import Redactor  # noqa: PLC0415

    settings = configuration.load(config, {"service.data_dir": data_dir})
    clean = Redactor(values_of(settings))
    rows = [clean.value(asdict(row)) for row in settings.rows()]
    screen = client_options.screen()
    screen.rows(rows, settings_table, as_json=as_json)


@app.command()
def demo(
    *,
    clean: Annotated[bool, typer.Option("--clean", help="Remove the demo's directory at the end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a real agent fix a failing test in a small repository, through the service's HTTP API."""
    from steadyhand.cli.demo import run_demo  # noqa: PLC0415  # it alone needs the testing kit

    raise typer.Exit(int(run_demo(client_options.screen(), clean_up=clean, as_json=as_json)))
