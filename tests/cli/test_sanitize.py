"""Text from outside, made safe for a terminal."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand.cli.progress import Progress
from steadyhand.cli.sanitize import (
    abbreviate_output,
    display_usd,
    format_changes,
    format_duration,
    json_text,
    one_line,
    sanitize,
    summarize_tool_input,
    truncate,
)

UNSAFE = {chr(n) for n in (*range(9), *range(0x0B, 0x20), *range(0x7F, 0xA0))} | set("\u202e\u2066\u2028")


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;a new title\x07text", "text"),
        ("\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPq#0;2;0;0;0\x1b\\after", "after"),
        ("\x9b2Jgone", "gone"),
        ("good\rbad", "good\nbad"),
        ("bell\x07", "bell\N{REPLACEMENT CHARACTER}"),
        ("\x1bc", "\N{REPLACEMENT CHARACTER}c"),
        ("abc\u202efdp.exe", "abc\N{REPLACEMENT CHARACTER}fdp.exe"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("snow ☃ 雪 🎿", "snow ☃ 雪 🎿"),
    ],
)
def test_what_a_terminal_would_obey_is_taken_out_of_text(hostile: str, shown: str) -> None:
    assert sanitize(hostile) == shown


def test_the_progress_line_says_how_long_how_many_turns_and_tokens_and_what_it_costs() -> None:
    progress = Progress(state="running")
    progress.started_at -= 65
    assert progress.summary() == "running · 1m 05s · 0 turns · 0 tokens"
    progress.add_usage({"input_tokens": 1200, "output_tokens": 30})
    progress.add_usage({"input_tokens": 10, "cache_read_input_tokens": 4})
    assert progress.summary() == "running · 1m 05s · 2 turns · 1.2k tokens"
    progress.add_usage({"input_tokens": 2000, "turns": 3, "cost_usd": "0.012300"})
    assert progress.summary() == "running · 1m 05s · 3 turns · 2.0k tokens · $0.0123"


@given(st.text())
def test_no_text_keeps_a_control_character(text: str) -> None:
    assert not UNSAFE & set(sanitize(text))


@given(st.text(alphabet="\x1b[]0;mPX\\^_\x07\x9b\x9c\x9d\r\nab"))
def test_no_mix_of_halves_of_sequences_keeps_an_escape(text: str) -> None:
    assert not UNSAFE & set(sanitize(text))


@given(st.recursive(st.text() | st.integers() | st.none(), lambda inner: st.dictionaries(st.text(), inner)))
def test_json_on_a_terminal_says_the_same_and_holds_no_control_character(value: object) -> None:
    text = json_text(value)
    assert json.loads(text) == value
    assert not UNSAFE & set(text)


def test_a_lone_surrogate_can_be_printed() -> None:
    json_text({"text": "\ud800"}).encode()
    sanitize("\udfff").encode()


def test_markup_of_rich_is_only_text() -> None:
    assert sanitize("[red]not red[/red]") == "[red]not red[/red]"


def test_one_line_is_one_line_and_cut() -> None:
    assert one_line("a\n b\t c", 4) == "a b…"
    assert truncate("abc", 3) == "abc"


@pytest.mark.parametrize(
    ("given_input", "line"),
    [
        ({"command": "pytest -q", "description": "Run"}, "pytest -q"),
        ({"file_path": "/a/b.py", "old_string": "x"}, "/a/b.py"),
        ({"strange": 1}, '{"strange": 1}'),
        ("no object", "no object"),
        ({}, ""),
    ],
)
def test_a_tool_is_told_by_what_says_most(given_input: object, line: str) -> None:
    assert summarize_tool_input(given_input) == line


def test_long_output_keeps_its_head_and_tail_and_counts_the_rest() -> None:
    lines = abbreviate_output("\n".join(f"line {n}" for n in range(100)))
    assert lines == ["line 0", "line 1", "line 2", "… 95 more lines", "line 98", "line 99"]


@pytest.mark.parametrize(
    ("amount", "shown"),
    [("0.041200", "$0.0412"), ("0", "$0.0000"), ("0.000012", "$0.000012"), ("NaN", "NaN"), ("x\x1b[1m", "x")],
)
def test_amounts_are_read_as_dollars(amount: str, shown: str) -> None:
    assert display_usd(amount) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(4.21, "4.2s"), (185, "3m 05s"), (3720, "1h 02m"), (-1, "0.0s")]
)
def test_durations_are_read_at_a_glance(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown


def test_the_refs_that_a_job_left_beside_its_branch_are_counted() -> None:
    changes = {
        "files": 0,
        "insertions": 0,
        "deletions": 0,
        "refs": [{"name": "refs/heads/a"}, {"name": "index"}],
    }
    assert format_changes(changes) == "0 files changed, 0 insertions(+), 0 deletions(-), 2 other refs"
    assert format_changes({**changes, "refs": []}) == "0 files changed, 0 insertions(+), 0 deletions(-)"
