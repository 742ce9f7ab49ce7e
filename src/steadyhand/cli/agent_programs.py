"""`steadyhand agents`: list the agents of a service; install, list and remove the programs of other agents here."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from steadyhand.cli import client_options
from steadyhand.cli.app import app
from steadyhand.cli.client_options import Server
from steadyhand.cli.columns import Column, FittedTable
from steadyhand.cli.common_options import AsJson, create_output, global_config_file
from steadyhand.cli.tables import agents_table

if TYPE_CHECKING:
    from steadyhand.config.settings import Settings
    from steadyhand.runner.packages.installed import InstalledPackage
    from steadyhand.runner.packages.package_list import Package

agents = typer.Typer(
    help="List the agents that you can name; install the programs of other agents.",
    invoke_without_command=True,
)
app.add_typer(agents, name="agents")

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The settings; else as for `steadyhand serve`."),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Where the service keeps its data.")
]


@agents.callback()
def list_agents(context: typer.Context, *, server: Server = None, as_json: AsJson = False) -> None:
    """List the agents that you can name; install the programs of other agents."""
    if context.invoked_subcommand is not None:
        return
    output = create_output()
    with client_options.open_client(server) as client:
        rows = [agent.document for agent in client.agents()]
    output.print_rows(rows, agents_table, as_json=as_json)


@agents.command("install")
def install_agents(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME..", help="codex, kimi, opencode or claude-agent-acp."),
    ],
    *,
    without_sandbox: Annotated[
        bool,
        typer.Option(
            "--without-sandbox", help="Run npm and pip as this user, without a sandbox around them."
        ),
    ] = False,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Install programs of agents into the data directory, from the registry that npm is configured for.

    Each package is pinned by its digest, and no script of a package is run.
    """
    from steadyhand.runner.packages.package_list import all_packages, find_package  # noqa: PLC0415  # for these commands

    packages = [find_package(name, all_packages()) for name in dict.fromkeys(names)]
    settings = _load(config, data_dir)
    output = create_output()
    installed = asyncio.run(
        _install(settings, packages, without_sandbox=without_sandbox, report=output.print_note)
    )
    rows = [_row(each.name, [each]) for each in installed]
    if as_json:
        output.print_json({"object": "list", "data": rows})
        return
    for each in installed:
        output.print_note(f"{each.name} {each.version} is installed in {each.directory}.")


@agents.command("list")
def list_installed_agents(
    *, config: ConfigFile = None, data_dir: DataDir = None, as_json: AsJson = False
) -> None:
    """List the programs of agents that can be installed, and the installed versions."""
    from steadyhand.runner.packages.installed import list_installed  # noqa: PLC0415
    from steadyhand.runner.packages.package_list import all_packages  # noqa: PLC0415  # for these commands

    settings = _load(config, data_dir)
    rows = [
        {**_row(name, list_installed(settings.data_dir, name)), "offered": package.version}
        for name, package in all_packages().items()
    ]
    create_output().print_rows(rows, packages_table, as_json=as_json)


@agents.command("remove")
def remove_agent(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `agents list` has.")],
    *,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Remove all installed versions of a program. A run that uses it fails."""
    from steadyhand.runner.packages.installed import remove_installed  # noqa: PLC0415
    from steadyhand.runner.packages.package_list import all_packages, find_package  # noqa: PLC0415  # for these commands

    package = find_package(name, all_packages())
    versions = remove_installed(_load(config, data_dir).data_dir, package.name)
    output = create_output()
    if as_json:
        output.print_json({"name": package.name, "removed": versions})
    else:
        output.print_note(f"Removed {package.name} {', '.join(versions)}.")


async def _install(
    settings: "Settings", packages: "Sequence[Package]", *, without_sandbox: bool, report: Any
) -> "list[InstalledPackage]":
    from steadyhand.runner.packages.installer import Installer  # noqa: PLC0415  # for this command
    from steadyhand.serve.package_setup import open_install_place  # noqa: PLC0415

    async with open_install_place(settings, without_sandbox=without_sandbox) as place:
        return await Installer(settings.data_dir, place, report).install(packages)


def _load(config: Path | None, data_dir: Path | None) -> "Settings":
    from steadyhand.config import settings as configuration  # noqa: PLC0415  # heavy: only for these commands

    return configuration.load_settings(config or global_config_file(), {"service.data_dir": data_dir})


def _row(name: str, installed: "Sequence[InstalledPackage]") -> dict[str, Any]:
    return {
        "name": name,
        "installed": [{"version": each.version, "directory": str(each.directory)} for each in installed],
    }


def packages_table(rows: Iterable[Mapping[str, Any]]) -> RenderableType:
    """Return the table of packages, one line each."""
    table = FittedTable(Column("NAME"), Column("OFFERED"), Column("INSTALLED", least_width=10))
    for row in rows:
        versions = ", ".join(each["version"] for each in row["installed"])
        table.add_row(Text(row["name"]), Text(row["offered"]), Text(versions or "-"))
    return table
