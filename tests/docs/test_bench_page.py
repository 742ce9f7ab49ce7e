"""docs/bench.md names the rows that the bench takes, and docs/performance.md has their last figures."""

import json
import re

from bench.growth import GROWTH
from tests.docs.pages import PROJECT, text_of

ROW = re.compile(r"^\| (`[^|]*`) \|", re.MULTILINE)


def rows_of(page: str) -> set[str]:
    """Return the names in the first column of a page's tables."""
    text = text_of(page)
    return {name for cell in ROW.findall(text) for name in re.findall(r"`([^`]*)`", cell)}


def test_each_row_has_its_description_and_a_sentence_on_how_it_grows() -> None:
    assert rows_of("bench.md") == set(GROWTH)


def test_the_page_on_performance_has_every_row_and_each_figure_as_it_was_measured() -> None:
    assert rows_of("performance.md") == set(GROWTH)
    results = json.loads((PROJECT / "docs" / "performance" / "results.json").read_text(encoding="utf-8"))
    page = text_of("performance.md")
    for row in results["rows"]:
        figure = f"{row['ratio']:.3g}" if "ratio" in row else f"{row['added']:+.2f} {row['unit']}"
        (line,) = [each for each in page.split("\n") if each.startswith(f"| `{row['name']}` |")]
        assert f"| {figure} |" in line, row["name"]
        assert ("**missed**" in line) is not row["met"], row["name"]
