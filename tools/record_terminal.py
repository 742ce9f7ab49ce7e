"""Record a command in a terminal of its own, as an animated SVG without a script.

`make recording` makes the recording of the demo in the README, `docs/images/demo.svg`, from a real run. It keeps
the run in asciinema's format (version 2) as `build/demo.cast`.
"""

import argparse
import codecs
import errno
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape, unescape
from pathlib import Path
from typing import Any

import pyte

COLUMNS, ROWS = 100, 30
LONGEST_SECONDS = 300.0
"""A command that takes longer is ended."""
LONGEST_PAUSE = 1.2
"""Pauses of a run are cut to so many seconds in the picture."""
FRAME_SECONDS = 0.25
"""Changes within this time are one frame."""
SETTLED_SECONDS = 0.02
"""A program that is silent for so long has written its screen."""
LAST_FRAME_SECONDS = 6.0
CHARACTER_WIDTH, LINE_HEIGHT, MARGIN, BAR = 8.0, 18, 14, 34
BACKGROUND, FOREGROUND = "#14171c", "#d6d9de"
COLORS: Mapping[str, str] = {
    "black": "#3b414d",
    "red": "#f2777a",
    "green": "#8ccf7e",
    "brown": "#e6c384",
    "blue": "#7fb4ff",
    "magenta": "#d5a6f0",
    "cyan": "#79d4d6",
    "white": "#d6d9de",
}
_DIM = "8b919c"
_TAG = re.compile(r"<[^>]*>")

Event = tuple[float, str]
"""A time in seconds since the start, and what the command printed then."""


def record(command: Sequence[str], environment: Mapping[str, str]) -> tuple[list[Event], int]:
    """Run a command in a terminal; return what it printed, with times, and its exit code."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=dict(environment),
        start_new_session=True,
    )
    os.close(follower)
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    events: list[Event] = []
    try:
        while (left := LONGEST_SECONDS - (time.monotonic() - began)) > 0:
            if not select.select([leader], [], [], left)[0]:
                break
            chunk = _read(leader)
            if not chunk:
                return events, process.wait(LONGEST_SECONDS)
            events.append((time.monotonic() - began, decode(chunk)))
        raise TimeoutError(f"the command took more than {LONGEST_SECONDS} s")
    finally:
        os.close(leader)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()


def _read(terminal: int) -> bytes:
    """Return what the terminal has; nothing means that its other side is closed."""
    try:
        return os.read(terminal, 65536)
    except OSError as error:
        if error.errno == errno.EIO:
            return b""
        raise


def cast_text(events: Sequence[Event], title: str) -> str:
    """Return a recording in asciinema's format, version 2."""
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "title": title}
    rows: list[Any] = [header, *([round(at, 3), "o", text] for at, text in events)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


class _Screen(pyte.Screen):
    """A screen that shows dim text in a color of its own."""

    def select_graphic_rendition(self, *attributes: int, **options: bool) -> None:
        """Set the attributes of what follows; faint text, which the base class does not know, becomes gray."""
        super().select_graphic_rendition(*attributes, **options)
        if attributes and attributes[0] in (1, 2) and 2 in attributes[:2] and 38 not in attributes:  # noqa: PLR2004
            self.cursor.attrs = self.cursor.attrs._replace(fg=_DIM)


@dataclass
class _Frames:
    """The screens of a recording; a line that stands in several is kept once."""

    lines: dict[str, int] = field(default_factory=dict)
    frames: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)

    def add(self, at: float, screen: pyte.Screen) -> None:
        shown = tuple(
            self.lines.setdefault(_line_svg(screen.buffer[row], screen.columns), len(self.lines) + 1)
            for row in range(screen.lines)
        )
        if not self.frames or self.frames[-1][1] != shown:
            self.frames.append((at, shown))


def frames_of(events: Sequence[Event]) -> _Frames:
    """Play a recording with its pauses cut, and return its screens."""
    screen = _Screen(COLUMNS, ROWS)
    stream = pyte.Stream(screen)
    frames = _Frames()
    shown_at, previous = 0.0, 0.0
    for number, (at, text) in enumerate(events):
        shown_at += min(at - previous, LONGEST_PAUSE)
        previous = at
        stream.feed(text)
        following = events[number + 1][0] - at if number + 1 < len(events) else FRAME_SECONDS
        is_due = not frames.frames or shown_at - frames.frames[-1][0] >= FRAME_SECONDS
        if following >= (SETTLED_SECONDS if is_due else FRAME_SECONDS):
            frames.add(shown_at, screen)
    return frames


def _line_svg(row: Mapping[int, Any], columns: int) -> str:
    """Return a line of the screen as the spans of one SVG text."""
    spans: list[tuple[str, str]] = []
    for column in range(columns):
        character = row[column]
        style = _style(character)
        if spans and spans[-1][0] == style:
            spans[-1] = (style, spans[-1][1] + character.data)
        else:
            spans.append((style, character.data))
    while spans and not spans[-1][1].strip():
        spans.pop()
    if spans:
        spans[-1] = (spans[-1][0], spans[-1][1].rstrip())
    return "".join(
        f"<tspan{style}>{escape(text, quote=False)}</tspan>" if style else escape(text, quote=False)
        for style, text in spans
    )


def _style(character: Any) -> str:
    color = character.bg if character.reverse else character.fg
    fill = COLORS.get(color) or (f"#{color}" if color not in ("default", "") else "")
    return (f' fill="{fill}"' if fill else "") + (' font-weight="700"' if character.bold else "")


def _styles(frames: Sequence[tuple[float, tuple[int, ...]]]) -> Iterator[str]:
    """Yield the animation of each frame; a reader who wants no motion sees the last one."""
    whole = frames[-1][0] + LAST_FRAME_SECONDS
    for number, (at, _) in enumerate(frames):
        begin = 100 * at / whole if number else 0.0
        end = 100 * frames[number + 1][0] / whole if number + 1 < len(frames) else 100.0
        before = "0%{visibility:hidden}" if begin else ""
        after = f"{end:.2f}%,100%{{visibility:hidden}}" if end < 100 else ""  # noqa: PLR2004
        yield f"@keyframes k{number}{{{before}{begin:.2f}%{{visibility:visible}}{after}}}"
        yield f"#f{number}{{animation:k{number} {whole:.2f}s step-end infinite}}"
    last = len(frames) - 1
    yield "@media (prefers-reduced-motion:reduce){.f{animation:none!important}"
    yield f"#f{last}{{visibility:visible}}}}"


def svg_text(events: Sequence[Event], title: str) -> str:
    """Return a recording as an animated SVG; it loads nothing and has no script."""
    kept = frames_of(events)
    width = round(COLUMNS * CHARACTER_WIDTH + 2 * MARGIN)
    height = ROWS * LINE_HEIGHT + 2 * MARGIN + BAR
    size = f'viewBox="0 0 {width} {height}" width="{width}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        "<style>",
        "text{font:13px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}",
        f".f{{visibility:hidden;fill:{FOREGROUND}}}",
        *_styles(kept.frames),
        "</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="{BACKGROUND}"/>',
        *(f'<circle cx="{20 + 18 * number}" cy="18" r="5.5" fill="#4a505c"/>' for number in range(3)),
        f'<text x="{width // 2}" y="22" text-anchor="middle" fill="#{_DIM}">{escape(title)}</text>',
        "<defs>",
        *(
            f'<text id="l{number}" xml:space="preserve" textLength="{_columns(line) * CHARACTER_WIDTH:g}">{line}</text>'
            for line, number in kept.lines.items()
            if line
        ),
        "</defs>",
    ]
    blank = kept.lines.get("")
    for number, (_, shown) in enumerate(kept.frames):
        uses = "".join(
            f'<use href="#l{line}" x="{MARGIN}" y="{BAR + MARGIN + LINE_HEIGHT * (row + 1) - 6}"/>'
            for row, line in enumerate(shown)
            if line != blank
        )
        parts.append(f'<g class="f" id="f{number}">{uses}</g>')
    return "\n".join([*parts, "</svg>\n"])


def _columns(line: str) -> int:
    """Return the number of characters that a line shows."""
    return len(unescape(_TAG.sub("", line)))


def main() -> int:
    """Record the command that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("svg", type=Path)
    parser.add_argument("--title", required=True)
    parser.add_argument("--cast", type=Path, help="keep the recording in this file")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    kept = ("PATH", "HOME", "TMPDIR")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"TERM": "xterm-256color", "LANG": "C.UTF-8", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
    events, code = record(arguments.command, environment)
    if arguments.cast:
        arguments.cast.write_text(cast_text(events, arguments.title), "utf-8")
    if code == 0:
        arguments.svg.write_text(svg_text(events, arguments.title), "utf-8")
    sys.stdout.write(f"exit code {code}, {len(events)} parts of output\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
