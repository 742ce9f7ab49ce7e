"""Lines of other programs' output end at newlines, whatever else they hold."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import steadyhand
from steadyhand.text_lines import split_lines

SOURCES = Path(steadyhand.__file__).parent
OF_BYTES = {
    "config/secret_values.py": 3,
    "runner/process/sandbox_child.py": 2,
    "runner/claude/session_cost.py": 1,
    "workspace/sandboxed_git.py": 1,
}
"""The number of calls of `splitlines` by file; these are of `bytes`, which split at newlines alone."""


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("one", ["one"]),
        ("one\n", ["one"]),
        ("one\r\ntwo\rthree\n\nfive", ["one", "two", "three", "", "five"]),
        ("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\n\u2028", ["a\u2028b\u2029c\x85d\x0be\x0cf\x1cg", "\u2028"]),
    ],
)
def test_only_newlines_end_a_line(text: str, lines: list[str]) -> None:
    assert split_lines(text) == lines


def _calls_of_splitlines(path: Path) -> Iterator[ast.Call]:
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text if "splitlines" in text else "")):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "splitlines":
            yield node


def test_no_text_is_split_where_a_name_or_a_secret_may_go_on() -> None:
    counts = {
        str(path.relative_to(SOURCES)): len(list(_calls_of_splitlines(path)))
        for path in SOURCES.rglob("*.py")
    }
    assert {name: count for name, count in counts.items() if count} == OF_BYTES
