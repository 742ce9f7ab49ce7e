"""Every page that the repository names is in it, and nothing names what only its authors could read."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from tests.docs.pages import PROJECT, anchors

FOLDERS = ("src", "tests", "docs", "bench", "tools", "deploy", ".ci")
KINDS = (".md", ".py", ".toml", ".sh", ".js", ".mjs", ".ts", ".txt", ".yaml", ".yml")
NO_SUFFIX = ("Makefile", "Dockerfile", "run")

PAGE_NAME = re.compile(r"(?<![\w.*<])((?:[\w.-]+/|\.{1,2}/)*[\w-][\w.-]*\.md)\b(?:#([\w-]+))?")
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(?:#([\w-]+))?\)")
OF_REPOSITORIES = re.compile(r"(^|/)\.claude/|(^|/)(AGENTS|CLAUDE|SKILL)\.md$")
"""Files that the agents' own repositories hold."""
ELSEWHERE = re.compile(r"\bissues? (\d|N\b)|\b(contract|design)\.md\b")
"""What stands outside the repository: numbers of issues, and the notes that the work began with."""


def files() -> list[Path]:
    """Return every text file of the project, but for this one, which spells out what it looks for."""
    inside = [path for folder in FOLDERS for path in (PROJECT / folder).rglob("*") if path.is_file()]
    whole = [*inside, *(path for path in PROJECT.iterdir() if path.is_file())]
    return sorted(
        path
        for path in whole
        if (path.suffix in KINDS or path.name in NO_SUFFIX)
        and "node_modules" not in path.parts
        and path != Path(__file__)
    )


def prose(source: str) -> Iterator[str]:
    """Yield the comments and the docstrings of a module, and other strings that stand alone."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node.value.value


def words_of(path: Path) -> str:
    """Return what a file says to people of pages: of a test its prose alone, as its other texts are made up."""
    text = path.read_text("utf-8")
    made_up = path.suffix == ".py" and (PROJECT / "tests") in path.parents
    if made_up:
        text = "\n".join(prose(text)) if ".md" in text else ""
    return "\n".join(line for line in text.splitlines() if ".md" in line)


def page_at(path: Path, name: str) -> Path | None:
    """Return the page that a file names: from the project's root, beside the file, or of the site that it describes."""
    beside = PROJECT / "docs" if path.name in ("zensical.toml", "cli_reference.py") else path.parent
    return next((place for place in (PROJECT / name, beside / name) if place.is_file()), None)


@cache
def named_pages(path: Path) -> Sequence[tuple[str, str | None]]:
    """Return each page that a file names and the anchor in it, if one is named."""
    pages = [found for found in PAGE_NAME.findall(words_of(path)) if OF_REPOSITORIES.search(found[0]) is None]
    if path.suffix == ".md":
        links = LINK.findall(path.read_text("utf-8"))
        pages += [(name or path.name, anchor) for name, anchor in links if "://" not in name]
    return [(name, anchor or None) for name, anchor in pages]


@cache
def anchors_of(path: Path) -> set[str]:
    """Return the anchors of a page."""
    return anchors(path.read_text("utf-8"))


FILES = {str(path.relative_to(PROJECT)): path for path in files()}


def test_the_files_that_are_looked_through_are_all_there() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/http-api.md", "src/steadyhand/events.py"} <= set(FILES)
    assert any(name.startswith("tests/") for name in FILES)


@pytest.mark.parametrize("name", ["README.md", "src/steadyhand/errors.py"])
def test_a_page_that_is_not_there_is_noticed(name: str, tmp_path: Path) -> None:
    copy = tmp_path / FILES[name].name
    added = "\n# As docs/lost.md says.\n"
    copy.write_text(FILES[name].read_text("utf-8") + added, encoding="utf-8")
    assert ("docs/lost.md", None) in set(named_pages(copy))
    assert page_at(copy, "docs/lost.md") is None


def test_every_page_that_is_named_is_there() -> None:
    lost = [
        f"{name}: {page}"
        for name, path in FILES.items()
        for page, _ in named_pages(path)
        if page_at(path, page) is None
    ]
    assert lost == []


def test_every_heading_that_is_named_is_there() -> None:
    lost = []
    named = 0
    for name, path in FILES.items():
        for page, anchor in named_pages(path):
            place = page_at(path, page)
            if anchor is None or place is None:
                continue
            named += 1
            if anchor not in anchors_of(place):
                lost.append(f"{name}: {page}#{anchor}")
    assert named
    assert lost == []


def test_nothing_cites_what_is_not_in_the_repository() -> None:
    cited = [
        f"{name}: {found.group()}"
        for name, path in FILES.items()
        for found in ELSEWHERE.finditer(path.read_text("utf-8"))
    ]
    assert cited == []


def test_what_is_not_in_the_repository_is_noticed() -> None:
    for text in ("see issue 7", "issues 1 and 2", "issue N", "(contract.md, B)", "design.md says"):
        assert ELSEWHERE.search(text)
    assert ELSEWHERE.search("sorts issues by age") is None
