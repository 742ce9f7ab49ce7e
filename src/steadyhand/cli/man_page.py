"""The page of the manual, made from the commands and their options: `python -m steadyhand.cli.man_page`."""

import sys
from collections.abc import Iterator
from typing import Any

import typer

from steadyhand import __version__
from steadyhand.cli.app import app
from steadyhand.cli.exit_codes import ExitCode

_FILES = (
    ("steadyhand.toml", "The settings: here, or in ~/.config/steadyhand."),
    ("/var/lib/steadyhand", "The data of a service of root."),
    ("~/.local/share/steadyhand", "The data of a service of another user."),
)
_VARIABLES = (
    ("STEADYHAND_URL", "The service to talk to."),
    ("STEADYHAND_TOKEN", "The key to send; else that of the local service."),
    ("STEADYHAND_CONFIG", "The file of settings."),
    ("STEADYHAND_DATA_DIR", "The directory of the service's data."),
)


def man_page() -> str:
    """Return the page in the macros of man(7)."""
    group: Any = typer.main.get_command(app)
    lines = [
        f'.TH STEADYHAND 1 "" "steadyhand {__version__}" "User Commands"',
        ".SH NAME",
        f"steadyhand \\- {_escaped(_lower_first(group.help.rstrip('.')))}",
        ".SH SYNOPSIS",
        ".B steadyhand",
        "[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]",
        ".SH DESCRIPTION",
        "Answers go to stdout, progress, hints and errors to stderr.",
        ".SH OPTIONS",
    ]
    context = typer.Context(group, info_name="steadyhand")
    lines += _options(group, context)
    lines.append(".SH COMMANDS")
    for name in group.list_commands(context):
        lines += _command(group.get_command(context, name), f"steadyhand {name}")
    lines.append(".SH EXIT STATUS")
    for code in ExitCode:
        lines += [".TP", f".B {code.value}", _escaped(code.name.lower().replace("_", " ")) + "."]
    for title, rows in (("ENVIRONMENT", _VARIABLES), ("FILES", _FILES)):
        lines.append(f".SH {title}")
        for name, meaning in rows:
            lines += [".TP", f".B {_escaped(name)}", _escaped(meaning)]
    return "\n".join(lines) + "\n"


def _command(command: Any, name: str) -> Iterator[str]:
    """Yield a command with its options, or the commands of a group."""
    context = typer.Context(command, info_name=name)
    inner = command.list_commands(context) if hasattr(command, "list_commands") else ()
    if inner:
        for each in inner:
            yield from _command(command.get_command(context, each), f"{name} {each}")
        return
    usage = " ".join(command.collect_usage_pieces(context))
    yield f".SS {_escaped(name)}"
    yield f".B {_escaped(name)}"
    yield _escaped(usage)
    for paragraph in (command.help or "").split("\n\n"):
        yield ".PP"
        yield _escaped(" ".join(paragraph.split()))
    yield from _options(command, context)


def _options(command: Any, context: Any) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield from (".TP", f".B {_escaped(record[0])}", _escaped(" ".join(record[1].split())))


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _escaped(text: str) -> str:
    """Return plain text for a line of its own."""
    escaped = text.replace("\\", "\\(rs").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return f"\\&{escaped}" if escaped.startswith((".", "\\(aq")) else escaped


if __name__ == "__main__":
    sys.stdout.write(man_page())
