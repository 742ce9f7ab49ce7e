"""The modules of the package as syntax trees, parsed once in a process: that takes longer than any search in them."""

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import steadyhand

SOURCES = Path(steadyhand.__file__).parent


@cache
def source_trees() -> Mapping[Path, ast.Module]:
    """Return the tree of each module, by its path relative to the package."""
    paths = sorted(SOURCES.rglob("*.py"))
    return {path.relative_to(SOURCES): ast.parse(path.read_text("utf-8")) for path in paths}
