"""Each threat of the security model names tests that exist."""

import ast
from functools import cache

from tests.docs.pages import PROJECT, names_in, table, text_of

ROWS = table(text_of("security.md"), "| attack | what holds | shown by |")


@cache
def names_in_module(path: str) -> set[str]:
    """Return the names of the tests of a module."""
    tree = ast.parse((PROJECT / "tests" / path).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_each_threat_names_tests_that_exist() -> None:
    assert len(ROWS) >= 20
    for attack, holds, shown in ROWS:
        assert attack
        assert holds
        named = names_in(shown)
        assert named, attack
        for name in named:
            path, _, test = name.partition("::")
            assert test.startswith("test_")
            assert test in names_in_module(path), f"{name} does not exist"


def test_each_threat_has_its_own_tests() -> None:
    named = [name for *_, shown in ROWS for name in names_in(shown)]
    assert len(set(named)) == len(named)
