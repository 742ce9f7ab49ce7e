"""The supervisor's files run one after the other in one namespace: a later definition would replace an earlier one."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from steadyhand.runner.process.fork_server import SANDBOX_MODULES, SUPERVISOR_MODULES

SHARED = frozenset({"TYPE_CHECKING"})


def _definitions(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Return each name that these statements define, with its value as source, or the kind of definition."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name, f"{type(statement).__name__} at line {statement.lineno}"
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                yield from _assigned(target, statement.value)
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            yield from _assigned(statement.target, statement.value)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            origin = getattr(statement, "module", None)
            for alias in statement.names:
                yield alias.asname or alias.name, f"import of {origin}.{alias.name}"
        elif isinstance(statement, ast.If):
            is_typing = isinstance(statement.test, ast.Name) and statement.test.id in SHARED
            yield from _definitions([] if is_typing else statement.body)
            yield from _definitions(statement.orelse)


def _assigned(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, str]]:
    if isinstance(target, ast.Tuple):
        values = value.elts if isinstance(value, ast.Tuple) else [value] * len(target.elts)
        for part, part_value in zip(target.elts, values, strict=True):
            yield from _assigned(part, part_value)
    elif isinstance(target, ast.Name):
        yield target.id, ast.unparse(value)


def _conflicts(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the names that two of the sources define in different ways, with the sources that do."""
    places: dict[str, dict[str, set[str]]] = {}
    for source_name, source in sources.items():
        for name, value in _definitions(ast.parse(source).body):
            same_value = (
                value
                if not value.startswith(("FunctionDef", "Async", "ClassDef"))
                else f"{source_name}: {value}"
            )
            places.setdefault(name, {}).setdefault(same_value, set()).add(source_name)
    return {
        name: set().union(*by_value.values())
        for name, by_value in places.items()
        if len(by_value) > 1 and name not in SHARED and len(set().union(*by_value.values())) > 1
    }


@pytest.mark.parametrize("modules", [SUPERVISOR_MODULES, SANDBOX_MODULES])
def test_no_name_is_defined_by_two_files_that_share_a_namespace(modules: tuple[ModuleType, ...]) -> None:
    sources = {module.__name__: Path(str(module.__file__)).read_text("utf-8") for module in modules}
    assert _conflicts(sources) == {}


@pytest.mark.parametrize(
    "second",
    [
        "def read(): ...",
        "class read: ...",
        "read = 2",
        "read, _b = 2, 3",
        "read: int = 2",
        "import os as read",
    ],
)
def test_a_name_that_is_defined_twice_is_found(second: str) -> None:
    assert _conflicts({"one": "def read(): ...", "two": second}) == {"read": {"one", "two"}}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("import os", "import os"),
        ("_A, _B = 1, 2", "_B = 2"),
        ("TYPE_CHECKING = False", "if TYPE_CHECKING:\n    from one import read\nread = 1"),
    ],
)
def test_equal_constants_imports_and_names_for_type_checkers_are_no_conflict(first: str, second: str) -> None:
    assert _conflicts({"one": first, "two": second}) == {}
