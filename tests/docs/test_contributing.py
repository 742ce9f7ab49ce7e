"""Check the table of CONTRIBUTING.md: each path exists and each task has a row."""

import re

import pytest
from tests.docs.pages import PROJECT, anchors, names_in, table

ROWS = table((PROJECT / "CONTRIBUTING.md").read_text("utf-8"), "| change | files, in order | tests | page |")
SOURCES = PROJECT / "src" / "steadyhand"
TASKS = (
    "job field",
    "route",
    "keep-alive",
    "provider",
    "price",
    "agent CLI",
    "database",
    "bwrap flag",
    "mount",
    "limit",
    "budget rule",
    "rate limit",
    "retry and resume rule",
    "retention",
    "warning code",
    "exit code",
    "OpenAI translation",
    "redaction",
    "config key",
    "migration",
)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_path_of_a_task_exists(row: list[str]) -> None:
    _, files, tests, page = row
    named = names_in(files)
    assert named
    for name in named:
        assert (SOURCES / name).exists() != (PROJECT / name).exists(), f"{name} does not exist"
    assert names_in(tests)
    for name in names_in(tests):
        assert (PROJECT / "tests" / name).is_file(), f"tests/{name} does not exist"
    (link,) = re.findall(r"\]\(([^)]+)\)", page)
    path, _, anchor = link.partition("#")
    assert not anchor or anchor in anchors((PROJECT / path).read_text("utf-8")), f"no heading {link}"


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_a_row(task: str) -> None:
    assert [change for change, *_ in ROWS if change.startswith(task)]
