"""Suggestions for a misspelt name. Pure."""

import difflib
from collections.abc import Iterable


def closest_name(name: str, known_names: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known name that is most similar to `name`; `None` if none reaches the cutoff (0 to 1)."""
    matches = difflib.get_close_matches(name, list(known_names), n=1, cutoff=cutoff)
    return matches[0] if matches else None
