"""The repository's pages, their tables and their headings."""

import re
from pathlib import Path

PROJECT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_NOT_IN_ANCHOR = re.compile(r"[^\w\- ]")


def text_of(name: str) -> str:
    """Return the text of a page below `docs/`."""
    return (PROJECT / "docs" / name).read_text("utf-8")


def table(page: str, header: str) -> list[list[str]]:
    """Return the rows of the one table of a page that begins with `header`, each as its cells."""
    _, found, rest = page.partition(f"\n{header}\n")
    assert found, f"no table begins with {header}"
    assert f"\n{header}\n" not in rest, f"two tables begin with {header}"
    rows = rest.partition("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def names_in(cell: str) -> list[str]:
    """Return what stands in backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def by_name(rows: list[list[str]]) -> dict[str, list[str]]:
    """Return the other cells of each row by the name in its first cell; each name has one row and no cell is empty."""
    found: dict[str, list[str]] = {}
    for first, *others in rows:
        (name,) = names_in(first)
        assert name not in found, f"{name} has two rows"
        assert all(others), f"{name} has an empty cell"
        found[name] = others
    return found


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page), re.MULTILINE)
    return {_NOT_IN_ANCHOR.sub("", heading.strip().lower()).replace(" ", "-") for heading in headings}
