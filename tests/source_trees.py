"""The modules of the package as syntax trees, parsed once in a process: that takes longer than any search in them."""

import ast
import gc
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import steadyhand

SOURCES = Path(steadyhand.__file__).parent


@cache
def _source_texts() -> Mapping[Path, str]:
    paths = sorted(SOURCES.rglob("*.py"))
    return {path.relative_to(SOURCES): path.read_text("utf-8") for path in paths}


@cache
def _tree_of(path: Path) -> ast.Module:
    return ast.parse(_source_texts()[path])


@cache
def source_trees() -> Mapping[Path, ast.Module]:
    """Return the tree of each module, by its path relative to the package."""
    was_enabled = gc.isenabled()
    gc.disable()  # millions of nodes, none of which is garbage
    try:
        return {path: _tree_of(path) for path in _source_texts()}
    finally:
        gc.freeze()  # they stay, and no later collection looks at them
        if was_enabled:
            gc.enable()


def trees_with(pattern: str) -> Iterator[tuple[Path, ast.Module]]:
    """Yield the path and the tree of each module whose text matches somewhere; `^` and `$` are those of a line."""
    for path, text in _source_texts().items():
        if re.search(pattern, text, re.MULTILINE):
            yield path, _tree_of(path)
