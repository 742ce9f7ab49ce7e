"""The forms in which a secret may be written, and text without its escapes. Pure.

A `Form` is one spelling of one secret: itself, base64 at one of three alignments in one of two alphabets, or hex.
Percent and JSON escapes are not forms of their own: text is compared once as it stands and once `loose`, which is
without escapes, whatever mix and depth of them it had, and without white space, so that wrapped base64 is found too.
"""

import base64
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

SHORTEST = 8
"""Characters below which a secret is not looked for: it would shred text."""
PIECE = 516
"""Bytes of a long secret that are looked for as one; pieces overlap, so that nothing is left between them."""
_STRIDE = 510  # a multiple of 3: base64 of all pieces has the same alignment
REPLACEMENT = b"[redacted]"

_HIGH = rb"[dD][89abAB][0-9a-fA-F]{2}"
_LOW = rb"[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(
    rb"\\+u(" + _HIGH + rb")\\+u(" + _LOW + rb")"
    rb"|\\+u([0-9a-fA-F]{4})"
    rb"|%([0-9a-fA-F]{2})"
    rb"|\\+([^bfnrt\\%])"
    rb"|\\+[bfnrt]?"
    rb"|[\x00-\x20]+",
    re.DOTALL,
)
_BEGUN = re.compile(
    rb"(?:%[0-9a-fA-F]?|\\{1,8}(?:u(?:" + _HIGH + rb"(?:\\+(?:u[0-9a-fA-F]{0,3})?)?|[0-9a-fA-F]{0,3}))?)\Z"
)
SWALLOWED = 5
"""Bytes of an escape after its mark: so many of a secret may be taken for an escape with what stands before it."""
_SPACE = bytes(range(0x21))
_SPECIAL = re.compile(rb"[\x00-\x20%\\]")


class Loose:
    """Bytes without escapes and white space; `start` and `end` lead back to where they came from."""

    def __init__(self, data: bytes) -> None:
        self.bytes = data
        self._at: list[int] = [0]
        self._from: list[int] = [0]
        self._until: list[int | None] = [None]
        if _SPECIAL.search(data) is not None:
            self._read(data)

    def _read(self, data: bytes) -> None:
        parts: list[bytes] = []
        size = 0
        self._at, self._from, self._until = [], [], []
        position = 0

        for match in _ESCAPE.finditer(data):
            begin, end = match.span()
            if begin > position:
                parts.append(data[position:begin])
                self._at.append(size)
                self._from.append(position)
                self._until.append(None)
                size += begin - position
            position = end
            meant = _meant_known(match)
            if meant:
                parts.append(meant)
                self._at.append(size)
                self._from.append(begin)
                self._until.append(end)
                size += len(meant)
        if position < len(data):
            parts.append(data[position:])
            self._at.append(size)
            self._from.append(position)
            self._until.append(None)
        self.bytes = b"".join(parts)

    def start(self, offset: int) -> int:
        """Say where the byte at `offset` came from."""
        run = bisect_right(self._at, offset) - 1
        return self._from[run] + (0 if self._until[run] is not None else offset - self._at[run])

    def end(self, offset: int) -> int:
        """Say where what the byte before `offset` came from has its end."""
        run = bisect_right(self._at, offset - 1) - 1
        until = self._until[run]
        return self._from[run] + offset - self._at[run] if until is None else until


def loosen(data: bytes) -> bytes:
    """Give bytes without escapes and white space."""
    if b"\\" in data or b"%" in data:
        return _ESCAPE.sub(_meant_known, data)
    return data.translate(None, _SPACE)


def _meant(match: re.Match[bytes]) -> bytes:
    kind = match.lastindex
    if kind is None:
        return b""
    found = match[kind]
    if kind == 4:  # noqa: PLR2004  # the groups are those of `_ESCAPE`
        byte = bytes((int(found, 16),))
    elif kind == 5:  # noqa: PLR2004
        byte = found
    elif kind == 3:  # noqa: PLR2004
        byte = chr(int(found, 16)).encode("utf-8", "surrogatepass")
    else:
        high, low = int(match[1], 16), int(found, 16)
        byte = chr(0x10000 + ((high & 0x3FF) << 10) + (low & 0x3FF)).encode()
    return b"" if len(byte) == 1 and byte[0] <= 0x20 else byte  # noqa: PLR2004


def _meant_known(match: re.Match[bytes]) -> bytes:
    known = _KNOWN.get(match[0])
    return _meant(match) if known is None else known


def _known() -> dict[bytes, bytes]:
    """Give what the usual escapes mean: looking it up takes a third of the time of working it out."""
    digits = "0123456789abcdefABCDEF"
    texts = [f"%{high}{low}" for high in digits for low in digits]
    texts += [f"\\u00{high}{low}" for high in "01234567" for low in digits]
    texts += [*"\n ", "\\n", "\\\\n", '\\"', '\\\\"', "\\/", "\\\\/", "\\t"]
    found = ((text.encode(), _ESCAPE.fullmatch(text.encode())) for text in texts)
    return {data: _meant(match) for data, match in found if match is not None}


_KNOWN = _known()


def inside_escapes(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Give each place within an escape, as what begins there may have been taken for a part of it.

    With it come the bytes from there to the escape's end, and where in the loosened data what follows begins.
    """
    size = position = 0
    for match in _ESCAPE.finditer(data):
        begin, end = match.span()
        size += begin - position + len(_meant_known(match))
        position = end
        if data[begin] > 0x20:  # noqa: PLR2004  # else it is white space
            for place in range(max(begin + 1, end - SWALLOWED), end):
                yield place, data[place:end], size


def begun_escape(data: bytes, until: int | None = None) -> int:
    """Say where an escape begins that is not whole at the end of the data, or at `until`, which else is given."""
    end = len(data) if until is None else until
    match = _BEGUN.search(data, max(0, end - 32), end)
    return end if match is None else match.start()


@dataclass(frozen=True, slots=True)
class Form:
    """One spelling of a secret.

    `knotty` ones hold a backslash or a percent sign, or are white space above all, so `loose` does not mean them.
    """

    plain: bytes
    loose: bytes
    knotty: bool
    is_text: bool


def forms_of(secret: bytes) -> Iterator[Form]:
    """Give all forms of a secret; none when it is too short, or stands in the replacement itself."""
    if len(secret) < SHORTEST or secret in REPLACEMENT:
        return
    start = 0
    while True:
        rest = len(secret) - start
        # The last piece takes the rest, so that none is too short to be looked for.
        piece = secret[start:] if rest < _STRIDE + PIECE else secret[start : start + PIECE]
        for spelling in dict.fromkeys(_spellings(piece)):
            yield _form(spelling)
        if rest < _STRIDE + PIECE:
            return
        start += _STRIDE


def _form(spelling: bytes) -> Form:
    loose = loosen(spelling)
    knotty = b"\\" in spelling or b"%" in spelling or len(loose) < SHORTEST
    try:
        spelling.decode("utf-8")
        is_text = True
    except UnicodeDecodeError:
        is_text = False
    return Form(spelling, loose, knotty, is_text)


def _spellings(piece: bytes) -> Iterator[bytes]:
    yield piece
    as_text = piece.decode("utf-8", "replace")
    if as_text.encode() != piece and len(as_text.replace("\N{REPLACEMENT CHARACTER}", "")) >= SHORTEST:
        yield as_text.encode()  # what reading it as text makes of it
    if b" " in piece:
        yield piece.replace(b" ", b"+")  # as forms are sent
    for shift in range(3):
        # Of base64 at this alignment: the digits that hold bits of the secret alone.
        first, after = (8 * shift + 5) // 6, 8 * (shift + len(piece)) // 6
        yield base64.b64encode(bytes(shift) + piece)[first:after]
        yield base64.urlsafe_b64encode(bytes(shift) + piece)[first:after]
    yield piece.hex().encode()
    yield piece.hex().upper().encode()
