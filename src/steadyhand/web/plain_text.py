"""Text of agents and callers as it may stand on a page: every character is visible and none changes the others.

Escaping for HTML is the work of the templates.
"""

import re

_COLOUR = re.compile(r"\x1b\[[0-9;:]{0,64}m")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)
_MARKS = re.compile(
    "([\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{3})[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+"
)
_ASCII_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_CONTROL_PICTURES = 0x2400
_LAST_CONTROL = 0x20
_KEPT = frozenset("\ufe0f\u200d")
"""The characters that join the parts of an emoji; a page shows them as they are."""


def visible_text(text: str) -> str:
    """Return a text without colours of a terminal, in which control and direction characters are written out."""
    if text.isascii() and not _ASCII_CONTROL.search(text):
        return text
    text = _COLOUR.sub("", text.replace("\r\n", "\n"))
    return _MARKS.sub(r"\1", _INVISIBLE.sub(_written_out, text))


def _written_out(match: re.Match[str]) -> str:
    character = match[0]
    if character in _KEPT:
        return character
    code = ord(character)
    if code < _LAST_CONTROL:
        return chr(_CONTROL_PICTURES + code)
    return f"⟨U+{code:04X}⟩"


def shortened(text: str, limit: int) -> tuple[str, int]:
    """Return the beginning of a text and the number of characters that are left out."""
    return (text, 0) if len(text) <= limit else (text[:limit], len(text) - limit)
