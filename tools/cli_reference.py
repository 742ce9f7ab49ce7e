"""Write the reference of all commands, from the program itself: `docs/cli-commands.md`.

python tools/cli_reference.py > docs/cli-commands.md
"""

import sys
from collections.abc import Iterator
from typing import Any

import typer.main

from steadyhand.cli.app import app

_HEAD = """\
# Commands and options

Made from the program by `python tools/cli_reference.py > docs/cli-commands.md`; a test holds it.
[The command line](cli.md) explains how commands work together, and has the exit codes. Each command has `--help`.
"""


def reference() -> str:
    """Return the page."""
    group = typer.main.get_command(app)
    parts = [_HEAD, "## steadyhand\n", *_parameters(group)]
    for path, command in _commands(group, ()):
        parts += [
            f"## {' '.join(path)}\n",
            _usage(path, command),
            *_paragraphs(command),
            *_parameters(command),
        ]
    return "\n".join(parts)


def _commands(group: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path and the command of each command, those of a group in its place."""
    context = group.make_context("steadyhand", [], resilient_parsing=True)
    for name in sorted(group.list_commands(context)):
        command = group.get_command(context, name)
        if command.hidden:
            continue
        if hasattr(command, "list_commands"):
            if command.invoke_without_command:
                yield (*path, name), command
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


def _usage(path: tuple[str, ...], command: Any) -> str:
    context = command.make_context("steadyhand", [], resilient_parsing=True)
    return f"`{' '.join(['steadyhand', *path, *command.collect_usage_pieces(context)])}`\n"


def _paragraphs(command: Any) -> Iterator[str]:
    """Yield the paragraphs of the help, each on one line."""
    for paragraph in (command.help or "").strip().split("\n\n"):
        yield f"{_cell(paragraph)}\n"


def _parameters(command: Any) -> Iterator[str]:
    context = command.make_context("steadyhand", [], resilient_parsing=True)
    records = [
        record
        for parameter in command.get_params(context)
        if not parameter.hidden and (record := parameter.get_help_record(context)) is not None
    ]
    rows = [(names.replace("|", " or "), text) for names, text in records if "--help" not in names]
    if rows:
        yield "| argument or option | meaning |\n|---|---|"
        yield "\n".join(f"| `{names}` | {_cell(text)} |" for names, text in rows) + "\n"


def _cell(text: str) -> str:
    """Return a text on one line, as a table can hold it."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.stdout.write(reference())
