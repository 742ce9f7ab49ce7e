"""The recording of the demo in the README: made from a real run, small, and a picture that loads and runs nothing."""

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.docs.pages import PROJECT
from tools.record_terminal import LAST_FRAME_SECONDS, LONGEST_PAUSE, cast_text, frames_of, record, svg_text

PICTURE = PROJECT / "docs" / "images" / "demo.svg"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "TERM": "xterm-256color", "LANG": "C.UTF-8"}


def texts(svg: str) -> list[str]:
    """Return each line that a picture shows."""
    root = ET.fromstring(svg)  # noqa: S314  # ours
    return ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]


def test_a_command_in_a_terminal_is_recorded_with_its_colors_and_its_exit_code() -> None:
    program = (
        "import os, sys\n"
        "print(os.get_terminal_size(), sys.stdout.isatty())\n"
        "print('\\x1b[1;31mbad <&>\\x1b[0m \\x1b[2mfaint\\x1b[0m')\n"
        "sys.exit(3)\n"
    )
    events, code = record([sys.executable, "-c", program], ENVIRONMENT)
    assert code == 3
    svg = svg_text(events, "A <title>")
    assert texts(svg)[:3] == [
        "A <title>",
        "os.terminal_size(columns=100, lines=30) True",
        "bad <&> faint",
    ]
    assert '<tspan fill="#f2777a" font-weight="700">bad &lt;&amp;&gt;</tspan>' in svg
    assert '<tspan fill="#8b919c">faint</tspan>' in svg
    header, *rows = [json.loads(line) for line in cast_text(events, "t").splitlines()]
    assert (header["version"], header["width"], header["height"]) == (2, 100, 30)
    assert "".join(row[2] for row in rows) == "".join(text for _, text in events)


def test_the_frames_follow_the_screen_and_long_pauses_are_cut() -> None:
    frames = frames_of([(0.5, "one\r\n"), (0.51, "two"), (60.0, "\r\x1b[Kthree"), (60.5, "")]).frames
    assert [at for at, _ in frames] == [0.51, 0.51 + LONGEST_PAUSE]
    svg = svg_text([(0.5, "one\r\ntwo"), (60.0, "\r\x1b[Kthree")], "t")
    assert texts(svg) == ["t", "one", "two", "three"]
    assert f"{0.5 + LONGEST_PAUSE + LAST_FRAME_SECONDS:.2f}s step-end infinite" in svg
    assert "prefers-reduced-motion" in svg


def test_the_recording_of_the_demo_shows_the_demo_to_its_end() -> None:
    lines = texts(PICTURE.read_text("utf-8"))
    for shown in (
        "2. The scripted model: ANTHROPIC_API_KEY is not set, so nothing is spent",
        "  isolation bwrap: the agent reaches its checkout and the model, and no more",
        "+    return sum(item.price_cents * item.quantity for item in basket)",
        "  The test passes.",
    ):
        assert shown in lines, "run `make recording`"


def test_the_recording_is_small_and_loads_and_runs_nothing() -> None:
    text = PICTURE.read_text("utf-8")
    assert PICTURE.stat().st_size < 120_000
    names = {each.tag.rpartition("}")[2] for each in ET.fromstring(text).iter()}  # noqa: S314  # ours
    assert names == {"svg", "title", "style", "rect", "circle", "text", "tspan", "defs", "g", "use"}
    assert not re.search(r"url\(|@import|on[a-z]+=|javascript:", text)
    assert set(re.findall(r'href="(.)', text)) == {"#"}


def test_the_readme_shows_the_recording_and_says_how_it_is_made() -> None:
    page = (PROJECT / "README.md").read_text("utf-8")
    assert "docs/images/demo.svg" in page
    assert "make recording" in page
    makefile = Path(PROJECT / "Makefile").read_text("utf-8")
    assert "tools/record_terminal.py docs/images/demo.svg" in makefile
