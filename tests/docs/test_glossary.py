"""Check the glossary: each word is there once, in order, and names one class or module."""

import ast
from collections import Counter
from pathlib import Path

import pytest
from tests.docs.pages import PROJECT, names_in, table, text_of

ROWS = table(text_of("glossary.md"), "| word | meaning | in the code |")
SOURCES = PROJECT / "src" / "steadyhand"
BODIES = (
    *(
        f"api/schemas/{kind}_bodies.py"
        for kind in ("bulk", "forecast", "native", "node", "openai", "schedule", "tool")
    ),
    "client/report_types.py",
    "client/schedule_types.py",
    "client/result_types.py",
)
"""Modules with the JSON form of these things, and that of the client's results, under the names that clients know."""


def defined_in(path: Path) -> list[str]:
    """Return the classes of a module and the types that it assigns, such as a `Literal` with a name."""
    names: list[str] = []
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return names


DEFINED = Counter(
    name
    for path in SOURCES.rglob("*.py")
    if path.relative_to(SOURCES).parts[0] != "testing" and path.relative_to(SOURCES).as_posix() not in BODIES
    for name in defined_in(path)
)


def test_the_modules_of_json_bodies_exist() -> None:
    assert [name for name in BODIES if not (SOURCES / name).is_file()] == []


def test_the_words_are_sorted_and_each_is_there_once() -> None:
    words = [word for word, *_ in ROWS]
    assert words == sorted(set(words))
    assert len(words) >= 30


def test_each_name_in_the_code_belongs_to_one_word() -> None:
    names = Counter(name for *_, cell in ROWS for name in names_in(cell))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_word_has_a_sentence_and_one_class_or_module(row: list[str]) -> None:
    _, meaning, code = row
    assert meaning.endswith(".")
    (name,) = names_in(code)
    if name.endswith(".py"):
        assert (SOURCES / name).is_file()
    else:
        assert DEFINED[name] == 1
