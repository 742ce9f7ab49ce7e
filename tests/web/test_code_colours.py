"""Colours of code in a diff: what is coloured, that nothing is lost, and that hostile text takes no more time."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.api.api_service import RunningService, run_job
from tests.web.page_client import PageClient

from steadyhand.web.code_colours import (
    _FILES,
    _SUFFIXES,
    MAX_PAGE_TOKENS,
    MAX_TOKENS,
    HunkColours,
    language_of,
    line_tokens,
    tokens_html,
)
from steadyhand.web.unified_diff import MAX_LINE_LENGTH, colour_lines, parse_diff

NAMES = sorted(set(_SUFFIXES.values()) | set(_FILES.values()))


def coloured(path: str, *lines: str) -> list[list[tuple[str, str]]]:
    """Return the coloured parts of lines that follow one another."""
    colours = HunkColours(str(language_of(path)))
    return [[token for token in colours.tokens("added", line) if token[0]] for line in lines]


@pytest.mark.parametrize(
    ("path", "line", "parts"),
    [
        ("a.py", r'if x == "a\"b#c":  # why', [("k", "if"), ("s", r'"a\"b#c"'), ("c", "# why")]),
        ("a.py", "def if_1(): return 0x1F", [("k", "def"), ("k", "return"), ("n", "0x1F")]),
        ("a.js", "const a = 'x' // `y`", [("k", "const"), ("s", "'x'"), ("c", "// `y`")]),
        ("a.ts", "/* a */ let b", [("c", "/*"), ("c", " a */"), ("k", "let")]),
        ("a.rs", "fn f<'a>(x: &'a str)", [("k", "fn")]),
        ("a.c", "#include <x.h>", [("c", "#include <x.h>")]),
        ("a.sh", "echo ${x#y} # z", [("k", "echo"), ("c", "# z")]),
        ("a.sql", "SELECT 1 -- all", [("k", "SELECT"), ("n", "1"), ("c", "-- all")]),
        ("a.yaml", "it: don't # x", [("c", "# x")]),
        ("a.json", '{"a": true}', [("s", '"a"'), ("k", "true")]),
        ("a.html", "<!-- x --><b>", [("c", "<!--"), ("c", " x -->")]),
        ("dir/Dockerfile", "FROM x", [("k", "FROM")]),
        ("Makefile", "include x # y", [("k", "include"), ("c", "# y")]),
        ("a.css", "a{color:red} /* b */", [("c", "/*"), ("c", " b */")]),
        ("a.py", '"open', [("s", '"open')]),
    ],
)
def test_comments_strings_numbers_and_keywords_are_coloured(
    path: str, line: str, parts: list[tuple[str, str]]
) -> None:
    assert coloured(path, line) == [parts]


def test_comments_and_strings_go_on_over_lines() -> None:
    assert coloured("a.go", "x /* if", "else", "*/ return") == [
        [("c", "/*"), ("c", " if")],
        [("c", "else")],
        [("c", "*/"), ("k", "return")],
    ]
    assert coloured("a.py", 'a = """if', r'x \""" y', '""" + 1') == [
        [("s", '"""'), ("s", "if")],
        [("s", r'x \""" y')],
        [("s", '"""'), ("n", "1")],
    ]


def test_old_and_new_lines_each_follow_their_own() -> None:
    colours = HunkColours("go")
    assert colours.tokens("removed", "/* old")[0] == ("c", "/*")
    assert colours.tokens("added", "if") == [("k", "if")]
    assert colours.tokens("removed", "if")[0] == ("c", "if")
    assert colours.tokens("same", "if */ else")[0] == ("k", "if")
    assert colours.tokens("removed", "if") == [("k", "if")]


def test_a_file_of_an_unknown_language_has_no_colours() -> None:
    assert [language_of(path) for path in ("README", "a.txt", "a.md", "", "py", "x/.py.bak")] == [None] * 6
    assert language_of("x" * 10_000_000 + ".py") == "python"


HOSTILE = (
    '"', "\\", '"\\', '\\"', "/*", "*/", "/**/", "/*/", '"""', "'''", "`", "`\\", "#", "//", "--[[", "<!--",
    "a'", "9.", "_", "é", "\U0001d518", "\t", "-", "(", "if ", "1a ", "'\\''", "--", "]]", "/* `", "@", "\u0661",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_hostile_lines_lose_nothing_and_have_a_bounded_number_of_parts(name: str) -> None:
    # 20,000 characters, ten times what a page has: what is not linear does not come back within the limit of a test.
    for piece in HOSTILE:
        line = "x" + piece * (20_000 // len(piece)) + "\\"
        tokens, _ = line_tokens(name, line, None)
        assert "".join(text for _, text in tokens) == line
        assert len(tokens) <= MAX_TOKENS + 2


@given(st.sampled_from(NAMES), st.lists(st.lists(st.sampled_from(HOSTILE)).map("".join), max_size=5))
def test_any_lines_lose_nothing(name: str, lines: list[str]) -> None:
    part: Any = None
    for line in lines:
        tokens, part = line_tokens(name, line, part)
        assert "".join(text for _, text in tokens) == line


def test_the_parts_of_a_page_are_bounded() -> None:
    line = "+" + "1 " * (MAX_LINE_LENGTH // 2)
    body = "\n".join([line] * 2_000)
    parsed = parse_diff(f"diff --git a/a.py b/a.py\n+++ b/a.py\n@@ -0,0 +1,2000 @@\n{body}\n")
    colour_lines(parsed.files)
    count = sum(len(each.tokens) for each in parsed.files[0].hunks[0].lines)
    assert MAX_PAGE_TOKENS <= count <= MAX_PAGE_TOKENS + MAX_TOKENS + 2
    assert parsed.files[0].hunks[0].lines[-1].tokens == ()


def test_coloured_text_is_escaped() -> None:
    assert tokens_html([("s", '"<b>"'), ("", "<i>&")]) == (
        '<span class="c-s">&#34;&lt;b&gt;&#34;</span>&lt;i&gt;&amp;'
    )


@pytest.mark.parametrize("view", ["", "?view=split"])
def test_the_diff_has_colours_by_classes(service: RunningService, page: PageClient, view: str) -> None:
    with service.client() as client:
        job_id = str(run_job(client, "say changed", workspace="infra")["id"])
    service.checkouts.job_paths(job_id).diff.write_text(
        "diff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n@@ -1,2 +1,2 @@\n"
        " import sys\n-x = '<script>alert(1)</script>'\n+x = 1  # <img src=x>\n"
        "diff --git a/b.txt b/b.txt\n--- a/b.txt\n+++ b/b.txt\n@@ -1 +1 @@\n-if 1\n+if 2\n"
    )
    text = page.get(f"/ui/jobs/{job_id}/diff{view}").text
    assert text.count('<span class="c-k">import</span> sys') == (2 if view else 1)
    assert '<span class="c-s">&#39;&lt;script&gt;alert(1)&lt;/script&gt;&#39;</span>' in text
    assert '<span class="c-c"># &lt;img src=x&gt;</span>' in text
    assert '<span class="c-k">if</span>' not in text
    assert set(re.findall(r'class="c-(\w+)"', text)) == {"k", "s", "c", "n"}
