"""The program: all commands, and the one place that turns errors into messages and exit codes."""

import importlib
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from steadyhand.cli.exit_codes import ExitCode, exit_code_for_error
from steadyhand.cli.sanitize import sanitize
from steadyhand.errors import (
    Conflict,
    DatabaseBusy,
    DataDirectoryBusy,
    InvalidRequest,
    RetryLater,
    SchemaInUse,
    SchemaTooNew,
    ServiceUnreachable,
    SteadyhandError,
    Unauthenticated,
)

CONFIG_OPTION: ContextVar[Path | None] = ContextVar("config_option", default=None)
"""The file of the program's own `--config`."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a command handles as it handles Ctrl-C."""

    exit_code = ExitCode.TERMINATED


class HungUp(Terminated):
    """SIGHUP: the terminal is closed."""

    exit_code = ExitCode.HANGUP


_COMMAND_ORDER = (
    "init",
    "serve",
    "worker",
    "run",
    "jobs",
    "show",
    "logs",
    "wait",
    "cancel",
    "retry",
    "resume",
    "steer",
    "diff",
    "transcript",
    "delete",
)
"""The order of commands in the help; others come after them."""


COMMAND_MODULES: Mapping[str, tuple[str, ...]] = {
    "agent_programs": ("agents",),
    "jobs": (
        "jobs",
        "show",
        "wait",
        "logs",
        "delete",
        "diff",
        "transcript",
        "workspaces",
    ),
    "callbacks": ("callbacks",),
    "shell_completion": ("completion",),
    "init": ("init",),
    "keys": ("keys",),
    "lifecycle": ("cancel", "retry", "resume", "steer"),
    "nodes": ("nodes", "drain"),
    "open_page": ("open",),
    "run": ("run",),
    "schedules": ("schedules",),
    "service": ("serve", "worker", "doctor", "config", "demo"),
    "tools": ("tools",),
    "usage": ("usage",),
}
"""The commands by the module of this package that adds them to the program."""


class _CommandGroup(TyperGroup):
    """The group of all commands; `invoke` reports the errors of each. A command's module is loaded once it is named."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands:
            modules = [module for module, names in COMMAND_MODULES.items() if cmd_name in names]
            self._load(modules or COMMAND_MODULES)
        return super().get_command(ctx, cmd_name)

    def _load(self, modules: Iterable[str]) -> None:
        for module in modules:
            importlib.import_module(f"steadyhand.cli.{module}")
        self.commands.update(typer.main.get_group(app).commands)

    def list_commands(self, ctx: Any) -> list[str]:
        self._load(COMMAND_MODULES)
        names = super().list_commands(ctx)
        return sorted(
            names,
            key=lambda name: _COMMAND_ORDER.index(name) if name in _COMMAND_ORDER else len(_COMMAND_ORDER),
        )

    def invoke(self, ctx: Any) -> Any:
        signal.signal(signal.SIGTERM, _raise_terminated)
        try:
            return super().invoke(ctx)
        except SteadyhandError as error:
            print_error(error)
            code = exit_code_for_error(error)
        except BrokenPipeError:
            # The reader has gone (`steadyhand jobs | head -1`): no error is printed. The text that Python still
            # holds for stdout must not fail again when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = ExitCode.COMPLETED
        except OSError as error:  # a file or directory of the user's; a traceback would tell nothing more
            print_error(_system_error(error))
            code = ExitCode.ERROR
        except Terminated as error:
            code = error.exit_code
        except KeyboardInterrupt:
            code = ExitCode.CTRL_C
        raise typer.Exit(int(code))


def print_error(error: SteadyhandError) -> None:
    """Print an error and its remedy on stderr."""
    lines = [f"steadyhand: {sanitize(error.detail)}"]
    if isinstance(error, InvalidRequest) and len(error.field_errors) > 1:
        lines += [
            f"  {sanitize(field_error.pointer)}: {sanitize(field_error.detail)}"
            for field_error in error.field_errors
        ]
    advice = _advice_for(error)
    if advice is not None:
        lines.append(f"  {advice}")
    sys.stderr.write("\n".join(lines) + "\n")


def _system_error(error: OSError) -> SteadyhandError:
    reason = error.strerror or str(error)
    return SteadyhandError(f"{error.filename}: {reason}." if error.filename else f"{reason}.")


def _advice_for(error: SteadyhandError) -> str | None:
    if isinstance(error, RetryLater):
        return f"Try again in {error.retry_after} s."
    return _ADVICE_BY_ERROR.get((type(error), error.code)) or _ADVICE_BY_ERROR.get((type(error), None))


_ADVICE_BY_ERROR: Mapping[tuple[type[SteadyhandError], str | None], str] = {
    (
        ServiceUnreachable,
        None,
    ): "Start a service with `steadyhand serve`, or name one by --server or STEADYHAND_URL.",
    (
        ServiceUnreachable,
        "bad_answer",
    ): "Is that the address of a Steadyhand service? Name one by --server or STEADYHAND_URL.",
    (
        ServiceUnreachable,
        "internal",
    ): "The service has an internal error: its operator finds the cause in its log.",
    (
        Unauthenticated,
        None,
    ): "Set STEADYHAND_TOKEN to a key of this service; a local one without keys of its own "
    "keeps one in <data-dir>/admin.key.",
    (Conflict, "not_ready"): "Wait for it with `steadyhand wait`.",
    (
        DatabaseBusy,
        None,
    ): "Use that service with --server or STEADYHAND_URL, or set database_url to another database.",
    (SchemaTooNew, None): "Upgrade this node. Nodes of the newer version go on meanwhile.",
    (SchemaInUse, None): "Drain, stop and upgrade these nodes first; then start this one again.",
    (DataDirectoryBusy, None): "Use that service with --server or STEADYHAND_URL, or choose another "
    "directory with --data-dir or STEADYHAND_DATA_DIR.",
}


def _raise_terminated(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # a handler's signature
    raise Terminated


app = typer.Typer(
    name="steadyhand",
    cls=_CommandGroup,
    help="Runs headless coding agents as a dependable service.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:  # noqa: FBT001  # typer calls it so
    if requested:
        from steadyhand.cli.version import version_lines  # noqa: PLC0415  # read when asked

        for line in version_lines():
            typer.echo(line)
        raise typer.Exit


@app.callback()
def _main_options(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="The settings; else STEADYHAND_CONFIG, steadyhand.toml here, or the user's own. "
            "Of a file here, only serve, doctor and config read all.",
        ),
    ] = None,
    version: bool = typer.Option(  # noqa: FBT001, ARG001  # eager: handled before any command
        False, "--version", help="Print the versions and exit.", is_eager=True, callback=_print_version
    ),
) -> None:
    """Run headless coding agents as a dependable service."""
    CONFIG_OPTION.set(config)
