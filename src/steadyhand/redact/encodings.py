"""The encodings in which a secret is looked for, as byte strings. Pure.

A writer encodes a secret in one of a few ways: as it is, base64, hex, percent, and JSON inside JSON. Each way has one
result, so all results are made in advance and the search compares bytes alone; it decodes nothing.
"""

import base64
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

MIN_SECRET = 8
"""Bytes below which a secret is not looked for: it would shred text."""
PIECE = 516
"""Bytes of a long secret that are looked for as one; pieces overlap, so that nothing is left between them."""
REPLACEMENT = b"[redacted]"
JSON_DEPTH = 5
"""Layers of JSON: the output of a tool in a message in an event in a response in a log."""

_STRIDE = 510  # a multiple of 3: base64 of all pieces has the same alignment
_BASE64_LINES = (76, 64)
"""Digits in a line of base64: as MIME and `base64` write it, and as PEM has it."""
_HEX_LINE = 60
"""Digits in a line of hex, as `xxd -p` writes it."""

_SHORT_ESCAPES = {
    '"': '\\"',
    "/": "\\/",
    "\b": "\\b",
    "\t": "\\t",
    "\n": "\\n",
    "\f": "\\f",
    "\r": "\\r",
}
_MINIMAL = r'"\x00-\x1f'
_JSON_WRITERS = (
    (re.compile(f"[{_MINIMAL}]"), "04x"),
    (re.compile(f"[{_MINIMAL}\x80-\U0010ffff]"), "04x"),
    (re.compile(f"[{_MINIMAL}\x80-\U0010ffff]"), "04X"),
    (re.compile(f"[{_MINIMAL}/]"), "04x"),
    (re.compile(f"[{_MINIMAL}/\x80-\U0010ffff]"), "04x"),
    (re.compile(f"[{_MINIMAL}<>&]"), "04x"),
)
"""The characters that JSON writers escape besides the backslash, and the forms of a code.

All writers must escape those of the first set; some write ASCII alone, some escape slashes or the characters of HTML.
"""
_ESCAPABLE = re.compile(rf"[{_MINIMAL}\\/<>&\x80-\U0010ffff]")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]*")
_URL_SAFE = ("", "/", "!'()*", ";/?:@&=+$,#!'()*")
"""The characters that percent encoders leave, beside letters, digits and `-._~`: those of RFC 3986, of paths, and of
JavaScript's `encodeURIComponent` and `encodeURI`."""


def encodings_of(secret: bytes) -> Iterator[bytes]:
    """Return all byte strings that stand for a secret; none if it is too short, or is part of the replacement."""
    if len(secret) < MIN_SECRET or secret in REPLACEMENT:
        return
    is_utf8 = is_text(secret)
    for start, end in _pieces(len(secret)):
        piece = secret[start:end]
        yield from _percent_all(piece)
        if is_utf8:
            yield from _escaped(piece.decode("utf-8", "ignore"))  # without the characters that it cuts
        else:
            yield piece
            yield from _percent(piece)
            text = piece.decode("utf-8", "replace")  # what a reader of text makes of it
            if len(text.replace("\N{REPLACEMENT CHARACTER}", "")) >= MIN_SECRET:
                yield from _escaped(text)
        for digits in {*_base64(secret, start, end), *_hex(secret, start, end)}:
            yield from _escaped(digits)


def is_text(data: bytes) -> bool:
    """Return True for UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    start = 0
    while size - start >= _STRIDE + PIECE:
        yield start, start + PIECE
        start += _STRIDE
    yield start, size  # the last piece takes the rest, so that none is too short to be looked for


def _base64(secret: bytes, start: int, end: int) -> Iterator[str]:
    """Yield the digits that hold bits of a piece alone: at each alignment, and in lines from the secret's beginning."""
    piece = secret[start:end]
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for shift in range(3):
            first, last = (8 * shift + 5) // 6, 8 * (shift + len(piece)) // 6
            yield encode(bytes(shift) + piece)[first:last].decode()
    digits = base64.b64encode(piece)[: 8 * len(piece) // 6].decode()
    for width in _BASE64_LINES:
        yield _in_lines(digits, start * 4 // 3, width)


def _hex(secret: bytes, start: int, end: int) -> Iterator[str]:
    digits = secret[start:end].hex()
    yield digits
    yield digits.upper()
    yield _in_lines(digits, 2 * start, _HEX_LINE)


def _in_lines(digits: str, before: int, width: int) -> str:
    """Return digits that follow `before` others, with a newline after every `width`."""
    first = width - before % width
    return "\n".join([digits[:first], *(digits[at : at + width] for at in range(first, len(digits), width))])


def _escaped(text: str) -> Iterator[bytes]:
    """Yield a text as it is, percent-encoded, in JSON at each depth, and percent-encoded over JSON once."""
    if _UNRESERVED.fullmatch(text):
        yield text.encode()  # it is the same in all of them
        return
    for nested in _nested_json(text):
        yield nested.encode()
    for once in {text} | _json_by_each(text):
        yield from _percent(once.encode())


def _percent(data: bytes) -> Iterator[bytes]:
    for encoded in {*(quote(data, safe=safe) for safe in _URL_SAFE), quote_plus(data)}:
        yield encoded.encode()
        yield re.sub("%..", lambda match: match[0].lower(), encoded).encode()


def _percent_all(data: bytes) -> Iterator[bytes]:
    for code in ("%%%02X", "%%%02x"):
        yield "".join(code % byte for byte in data).encode()


def _nested_json(text: str) -> set[str]:
    """Return a text in up to `JSON_DEPTH` layers of JSON strings, of which one may be of another writer."""
    found = {text}
    inner = text
    for depth in range(JSON_DEPTH):
        layers = _json_by_each(inner)
        for _ in range(depth, JSON_DEPTH):
            found |= layers
            layers = set(map(_json, layers))
        inner = _json(inner)
    return found


def _json_by_each(text: str) -> set[str]:
    """Return the inside of a JSON string as each writer has it."""
    if _ESCAPABLE.search(text) is None:
        return {text}
    return {_json(text, pattern, code) for pattern, code in _JSON_WRITERS}


def _json(text: str, pattern: re.Pattern[str] = _JSON_WRITERS[0][0], code: str = "04x") -> str:
    """Return the inside of a JSON string."""

    def escape(match: re.Match[str]) -> str:
        short = _SHORT_ESCAPES.get(match[0])
        if short is not None:
            return short
        units = match[0].encode("utf-16-be")
        return "".join(f"\\u{int.from_bytes(units[at : at + 2]):{code}}" for at in range(0, len(units), 2))

    return pattern.sub(escape, text.replace("\\", "\\\\"))
