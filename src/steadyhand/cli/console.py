"""The output of the command line: answers on stdout, everything else on stderr.

Colours and control characters go only to a terminal. Markup in a text is never interpreted.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console, RenderableType

from steadyhand.cli.sanitize import json_text, sanitize

_PIPE_WIDTH = 200  # a table in a pipe is for grep, not for a screen's width


class CommandOutput:
    """The two streams of one command."""

    def __init__(self, *, no_color: bool = False) -> None:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # a locale without ✓ is no reason to fail
        self.out = _create_console(sys.stdout, no_color=no_color)
        self.err = _create_console(sys.stderr, no_color=no_color)

    @property
    def is_shared_terminal(self) -> bool:
        """True if stdout and stderr are the same terminal."""
        return self.out.is_terminal and self.err.is_terminal

    def print_text(self, text: str) -> None:
        """Print untrusted text on stdout, sanitized and without additions."""
        sys.stdout.write(sanitize(text).rstrip("\n") + "\n")
        sys.stdout.flush()

    def print_renderable(self, renderable: RenderableType) -> None:
        """Print a table or a page on stdout; into a pipe without the blanks that pad its columns."""
        if self.out.is_terminal:
            self.out.print(renderable)
            return
        with self.out.capture() as captured:
            self.out.print(renderable)
        lines = [line.rstrip() for line in captured.get().split("\n")]
        sys.stdout.write("\n".join(lines))
        sys.stdout.flush()

    def print_rows(
        self,
        rows: Sequence[Mapping[str, Any]],
        render_table: Callable[[Sequence[Mapping[str, Any]]], RenderableType],
        *,
        as_json: bool,
        empty_text: str | None = None,
    ) -> None:
        """Print a list as one JSON document or as a table; print `empty_text` for an empty list."""
        if as_json:
            self.print_json({"object": "list", "data": rows})
        elif rows or empty_text is None:
            self.print_renderable(render_table(rows))
        else:
            self.print_note(empty_text)

    def print_bytes(self, data: bytes) -> None:
        """Print bytes: unchanged into a pipe or a file, sanitized on a terminal."""
        if self.out.is_terminal:
            self.print_text(data.decode("utf-8", "replace"))
            return
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def print_json(self, value: Any) -> None:
        """Print one JSON document on stdout."""
        sys.stdout.write(json_text(value) + "\n")
        sys.stdout.flush()

    def print_json_line(self, value: Any) -> None:
        """Print one line of NDJSON on stdout, and flush it."""
        sys.stdout.write(json_text(value, indent=None) + "\n")
        sys.stdout.flush()

    def print_note(self, text: str, style: str = "") -> None:
        """Print a sanitized line on stderr."""
        self.err.print(sanitize(text), style=style or None, soft_wrap=True)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise `BrokenPipeError`, which the program handles; rich would exit with code 1."""
        raise BrokenPipeError


def _create_console(stream: TextIO, *, no_color: bool) -> Console:
    is_terminal = stream.isatty()
    return _Console(
        file=stream,
        force_terminal=is_terminal,
        force_interactive=is_terminal,
        no_color=no_color or None,
        width=None if is_terminal else _PIPE_WIDTH,
        markup=False,
        highlight=False,
        emoji=False,
    )
