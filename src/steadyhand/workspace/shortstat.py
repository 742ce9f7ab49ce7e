"""Parse the output of `git diff --shortstat`."""

import re

_PATTERN = re.compile(r"(\d+) files? changed(?:, (\d+) insertions?\(\+\))?(?:, (\d+) deletions?\(-\))?")


def parse(text: str) -> tuple[int, int, int]:
    """Return files, insertions and deletions; zeros without a change."""
    match = _PATTERN.search(text)
    if match is None:
        return 0, 0, 0
    return int(match[1]), int(match[2] or 0), int(match[3] or 0)
