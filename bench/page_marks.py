"""Parts of a page that a program writes: they stand between `<!-- NAME -->` and `<!-- end of NAME -->`."""

from __future__ import annotations

import re


def between_marks(text: str, name: str, content: str) -> str:
    """Return a page with new content between the marks of this name; exit if the page has none."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"the page has no marks for '{name}'")
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", text)
