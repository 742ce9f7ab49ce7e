"""Secrets that hold a backslash or a percent sign, whose escapes cannot be told from themselves. Pure.

For these alone there is a pattern for each: every character plain or escaped. Its alternatives begin differently and
every repeat has a bound, so it is linear.
"""

import re

_BEGINNING = 60
"""So many characters of a beginning are compared at the end of a chunk; one that goes on is held until it is whole."""
_DEEP = rb"\\{1,8}"
_SHORT = {"\b": b"b", "\t": b"t", "\n": b"n", "\f": b"f", "\r": b"r", '"': b'"', "/": b"/"}
_PART = (
    rb"(?:%[0-9a-fA-F]{2}|[\x80-\xff]|\\{1,8}u[dD][89abAB][0-9a-fA-F]{2}){0,3}"
    rb"(?:%[0-9a-fA-F]?|\\{1,8}(?:u[0-9a-fA-F]{0,3})?)?\Z"
)
"""A character that is not whole at the end of the data."""
_BACKSLASH = rb"(?:%5[cC]|\\(?:u005[cC])?)"
"""One of a row. Of a deep escape each backslash counts as one of its own: there is one way only to read a row."""


class Knot:
    """One such secret. `longest` is the most bytes that an escaped one takes."""

    def __init__(self, secret: bytes) -> None:
        characters = _characters(secret)
        self._units = [_unit(each) for each in characters]
        self._parts = [_part(each) for each in characters]
        self._whole: re.Pattern[bytes] | None = None
        self._begun: re.Pattern[bytes] | None = None
        self.longest = 14 * len(secret)

    def spans(self, data: bytes) -> list[tuple[int, int]]:
        """Give where it stands, in any mix of escapes."""
        if self._whole is None:
            self._whole = re.compile(b"".join(self._units))
        return [match.span() for match in self._whole.finditer(data)]

    def begins(self, data: bytes) -> int:
        """Say where the last stretch of the data begins that may be its beginning; the data's length if nowhere."""
        if self._begun is None:
            begun = min(len(self._units) - 1, _BEGINNING)
            pattern = self._parts[-1] if len(self._units) <= _BEGINNING else b""
            for unit, part in zip(reversed(self._units[:begun]), reversed(self._parts[:begun]), strict=True):
                pattern = b"(?:" + part + b"|" + unit + pattern + b")"
            self._begun = re.compile(pattern)
        match = self._begun.search(data, max(0, len(data) - self.longest))
        return len(data) if match is None else match.start()


def _characters(secret: bytes) -> list[str] | list[bytes]:
    """Give its characters, a row of backslashes as one; of what is no text its bytes."""
    try:
        return re.findall(r"\\+|[^\\]", secret.decode("utf-8"), re.DOTALL)
    except UnicodeDecodeError:
        return [bytes((byte,)) for byte in secret]


def _part(character: str | bytes) -> bytes:
    """Give a pattern for what is there of a character, or of a row, that is not whole at the end of the data."""
    if character == "%":
        return rb"(?:%(?:25){0,2}2\Z|" + _PART + b")"
    if isinstance(character, str) and character.startswith("\\"):
        return _BACKSLASH + b"{0,%d}" % (len(character) - 1) + _PART
    return _PART


def _unit(character: str | bytes) -> bytes:
    """Give a pattern for a character, or for a row, however it is escaped."""
    if isinstance(character, bytes):
        return b"(?:" + re.escape(character) + b"|%" + _hex(character[0]) + b")"
    if character.startswith("\\"):
        return _BACKSLASH + b"{%d,%d}" % (len(character), 8 * len(character))
    if character == "%":
        return rb"(?:%(?:25){0,3}|\\{1,8}u0025)"
    data = character.encode()
    escaped = b"".join(b"(?:" + re.escape(bytes((byte,))) + b"|%" + _hex(byte) + b")" for byte in data)
    units = [_utf16(code) for code in _codes(character)]
    ways = [escaped, b"".join(units)]
    if character in _SHORT:
        ways.append(_DEEP + re.escape(_SHORT[character]))
    return b"(?:" + b"|".join(ways) + b")"


def _utf16(code: int) -> bytes:
    """Give the pattern of a UTF-16 unit as JSON escapes it."""
    return _DEEP + b"u" + b"".join(_digit(each) for each in f"{code:04x}")


def _codes(character: str) -> list[int]:
    units = character.encode("utf-16-be")
    return [int.from_bytes(units[at : at + 2]) for at in range(0, len(units), 2)]


def _hex(byte: int) -> bytes:
    return b"".join(_digit(each) for each in f"{byte:02x}")


def _digit(digit: str) -> bytes:
    return digit.encode() if digit.isdigit() else f"[{digit}{digit.upper()}]".encode()
