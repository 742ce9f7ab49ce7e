"""The source of the service as syntax trees: its words, wherever the modules that hold them have moved."""

import ast
from functools import cache

from tests.source_trees import source_trees

LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})


def trees() -> tuple[ast.Module, ...]:
    """Return every module of the package but `steadyhand.testing`, parsed."""
    return tuple(tree for path, tree in source_trees().items() if path.parts[0] != "testing")


@cache
def nodes() -> tuple[ast.AST, ...]:
    """Return every node of the kinds that are looked at, of every module."""
    kinds = ast.ClassDef, ast.Call, ast.Expr, ast.Constant
    return tuple(node for tree in trees() for node in ast.walk(tree) if isinstance(node, kinds))


def text_of(node: ast.AST | None) -> str | None:
    """Return the text of a literal, else None."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


@cache
def literals() -> frozenset[str]:
    """Return every whole text literal but docstrings and other texts that stand alone, and each part of an f-string."""
    alone = {id(node.value) for node in nodes() if isinstance(node, ast.Expr)}
    texts = (text_of(node) for node in nodes() if id(node) not in alone)
    return frozenset(text for text in texts if text is not None)


def class_constants(name: str) -> set[str]:
    """Return the texts that classes give to an attribute of this name, `code = "not_found"` for one."""
    found: set[str] = set()
    for node in nodes():
        for each in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(each, ast.Assign):
                targets: list[ast.expr] = each.targets
            elif isinstance(each, ast.AnnAssign):
                targets = [each.target]
            else:
                continue
            text = text_of(each.value)
            if text is not None and any(isinstance(one, ast.Name) and one.id == name for one in targets):
                found.add(text)
    return found


def keyword_constants(name: str) -> set[str]:
    """Return the texts that calls hand over under this keyword."""
    keywords = (each for node in nodes() if isinstance(node, ast.Call) for each in node.keywords)
    texts = (text_of(each.value) for each in keywords if each.arg == name)
    return {text for text in texts if text is not None}


def logged() -> set[str]:
    """Return the names of log events: the first arguments of a logger's methods."""
    found = set()
    for node in nodes():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
            name = text_of(node.args[0]) if node.args else None
            if name is not None and "log" in ast.unparse(node.func.value):
                found.add(name)
    return found


def enum_values(base: str) -> list[set[int | str]]:
    """Return the values of each enum with this base."""
    return [
        {
            each.value.value
            for each in node.body
            if isinstance(each, ast.Assign)
            and isinstance(each.value, ast.Constant)
            and isinstance(each.value.value, int | str)
        }
        for node in nodes()
        if isinstance(node, ast.ClassDef) and base in map(ast.unparse, node.bases)
    ]
