"""The program: its commands put together, and the one place where errors become words and exit codes."""

import os
import signal
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from steadyhand.cli.exit_codes import Exit, exit_of_error
from steadyhand.cli.sanitize import clean
from steadyhand.errors import (
    Conflict,
    DataDirectoryBusy,
    InvalidRequest,
    SteadyhandError,
    TryLater,
    Unauthenticated,
    Unreachable,
)


class Terminated(KeyboardInterrupt):
    """SIGTERM: a command lets go of things as it does for Ctrl-C."""


_ORDER = (
    "serve",
    "run",
    "jobs",
    "show",
    "logs",
    "wait",
    "cancel",
    "retry",
    "resume",
    "diff",
    "transcript",
    "delete",
)
"""How the help lists the commands; the others come after."""


class _Program(TyperGroup):
    """The group of all commands; `invoke` is the boundary where errors are reported."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))

    def invoke(self, ctx: Any) -> Any:
        signal.signal(signal.SIGTERM, _terminated)
        try:
            return super().invoke(ctx)
        except SteadyhandError as error:
            report(error)
            code = exit_of_error(error)
        except BrokenPipeError:
            # The reader has gone (`steadyhand jobs | head -1`): nobody is left to tell. What Python still
            # holds for stdout must not fail again when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = Exit.COMPLETED
        except Terminated:
            code = Exit.TERMINATED
        except KeyboardInterrupt:
            code = Exit.CTRL_C
        raise typer.Exit(int(code))


def report(error: SteadyhandError) -> None:
    """Say on stderr what is wrong and what to do about it."""
    lines = [f"steadyhand: {clean(error.detail)}"]
    if isinstance(error, InvalidRequest) and len(error.faults) > 1:
        lines += [f"  {clean(fault.pointer)}: {clean(fault.detail)}" for fault in error.faults]
    advice = _advice(error)
    if advice is not None:
        lines.append(f"  {advice}")
    sys.stderr.write("\n".join(lines) + "\n")


def _advice(error: SteadyhandError) -> str | None:
    if isinstance(error, TryLater):
        return f"Try again in {error.retry_after} s."
    return _ADVICE.get((type(error), error.code)) or _ADVICE.get((type(error), None))


_ADVICE: Mapping[tuple[type[SteadyhandError], str | None], str] = {
    (
        Unreachable,
        None,
    ): "Start a service with `steadyhand serve`, or name one by --server or STEADYHAND_URL.",
    (
        Unreachable,
        "bad_answer",
    ): "Is that the address of a Steadyhand service? Name one by --server or STEADYHAND_URL.",
    (
        Unreachable,
        "internal",
    ): "It is a fault of the service's own: whoever runs it finds the cause in its log.",
    (
        Unauthenticated,
        None,
    ): "Set STEADYHAND_TOKEN to a key of this service; a local one without keys of its own "
    "keeps one in <data-dir>/admin.key.",
    (Conflict, "not_ready"): "Wait for it with `steadyhand wait`.",
    (DataDirectoryBusy, None): "Talk to that service by --server or STEADYHAND_URL, or give this one another "
    "directory by --data-dir or STEADYHAND_DATA_DIR.",
}


def _terminated(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # a handler's signature
    raise Terminated


app = typer.Typer(
    name="steadyhand",
    cls=_Program,
    help="Runs headless coding agents as a dependable service.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:  # noqa: FBT001  # typer calls it so
    if asked:
        from steadyhand import __version__  # noqa: PLC0415  # read when asked

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _program(
    version: bool = typer.Option(  # noqa: FBT001  # eager: handled before any command
        False, "--version", help="Print the version and exit.", is_eager=True, callback=_version
    ),
) -> None:
    """Run headless coding agents as a dependable service."""
