"""Lines as other programs write them. Pure."""

import re

_LINE_END = re.compile(r"\r\n|\r|\n")


def split_lines(text: str) -> list[str]:
    """Return the lines of a text, without their ends: a newline or a carriage return, and no other character.

    `str.splitlines` also splits at U+2028, U+2029, U+0085 and others, which names and secrets may hold.
    """
    lines = _LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]
