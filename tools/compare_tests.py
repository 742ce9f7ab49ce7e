"""Lists the test functions of an earlier commit that are no more: `python -m tools.compare_tests COMMIT`.

Files may have moved and cases may have changed, so functions are compared by their names. For each name that went, the
most similar one of today stands beside it, and the newest commit that touched its definition.
"""

from __future__ import annotations

import ast
import difflib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

FOLDERS = ("tests", "src/steadyhand/testing")


def _names(source: bytes) -> set[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, functions) and node.name.startswith("test_")
    }


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], check=True, capture_output=True).stdout


def names_at(commit: str) -> set[str]:
    """Return the names of the test functions of a commit."""
    with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", commit, "src", "tests"))) as archive:
        found = [member for member in archive if member.name.startswith(FOLDERS)]
        files = [archive.extractfile(member) for member in found if member.name.endswith(".py")]
        return set().union(*(_names(file.read()) for file in files if file is not None))


def names_now() -> set[str]:
    """Return the names of the test functions of the working tree."""
    paths = [path for folder in FOLDERS for path in Path(folder).rglob("*.py")]
    return set().union(*(_names(path.read_bytes()) for path in paths))


def main(commit: str) -> None:
    """Print the comparison."""
    before, now = names_at(commit), names_now()
    gone = sorted(before - now)
    sys.stdout.write(f"{len(before)} names at {commit}, {len(now)} now, {len(gone)} gone\n")
    for name in gone:
        similar = difflib.get_close_matches(name, now, 1, 0.75)
        why = (
            _git("log", "-1", "-S", f"def {name}(", "--format=%h %s", f"{commit}..HEAD", "--", "tests")
            .decode()
            .strip()
        )
        sys.stdout.write(f"{name}\n    -> {similar[0] if similar else '?'}\n    {why}\n")


if __name__ == "__main__":
    main(sys.argv[1])
