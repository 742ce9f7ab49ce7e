"""Where secrets stand in some data, and where the beginning of one may stand at its end. Pure."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from steadyhand.redact.encodings import SWALLOWED, Form, Loose, begun_escape, inside_escapes, loosen
from steadyhand.redact.escape_patterns import Knot
from steadyhand.redact.prefilter import Sieve

Spans = Sequence[tuple[int, int]]
_HEAD = 4
_ESCAPED_BYTE = 9
"""Bytes that an escaped byte takes at most: three backslashes more than `\\u0041`; deeper ones are seen whole only."""
_BROKEN = bytes(range(0x21)) + b"\\%"
"""Bytes that loosened data has not, or not for sure."""
_ESCAPED = _BROKEN + b'/"'
"""Bytes that are escaped in the ordinary way."""
_SHORT_ESCAPES = {b"/": b"\\/", b'"': b'\\"', b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}


class Index:
    """All forms of all secrets, made ready to be looked for."""

    def __init__(self, forms: Iterable[Form]) -> None:
        self.forms = tuple(dict.fromkeys(forms))
        self._knots = {owner: Knot(form.plain) for owner, form in enumerate(self.forms) if form.knotty}
        strings = [(form.plain, owner) for owner, form in enumerate(self.forms)]
        self._plain = Sieve(strings, _ESCAPED)
        # What is made of such bytes alone has windows of them.
        self._rest = Sieve([each for each in strings if each[1] in self._plain.hopeless], b"")
        clear = [(_clear(form)[SWALLOWED:], owner) for owner, form in enumerate(self.forms)]
        self._loose = Sieve(clear, _BROKEN)
        # What is too short for a window is looked for by its end.
        self._brief = {
            owner: self.forms[owner].loose[SWALLOWED:]
            for owner in self._loose.hopeless
            if not self.forms[owner].knotty
        }
        self._hopeless = self._loose.hopeless - self._brief.keys()
        self._beginnings = _Beginnings(form.plain for form in self.forms)
        self._loose_beginnings = _Beginnings(form.loose for form in self.forms if not form.knotty)
        # Without an escape that stands for a byte of a window, plain data says it all.
        bytes_ = self._plain.bytes | self._rest.bytes | self._loose.bytes
        codes = b"|".join(b"%x[%x%X]" % (byte >> 4, byte & 15, byte & 15) for byte in sorted(bytes_))
        codes = re.sub(
            rb"(?<![\[])[a-f](?=\[)", lambda match: b"[%b%b]" % (match[0], match[0].upper()), codes
        )
        self._percent = re.compile(rb"%(?:" + codes + rb")")
        wide = any(byte >= 0x80 for byte in bytes_)  # noqa: PLR2004  # then an escape is of a whole character
        self._unicode = re.compile(rb"\\u[0-9a-fA-F]{4}" if wide else rb"\\u00(?:" + codes + rb")")
        self._short = [escape for byte, escape in _SHORT_ESCAPES.items() if byte[0] in bytes_]

    def spans(self, data: bytes, *, text_only: bool = False) -> Spans:
        """Give where secrets stand, in order; what overlaps is one. `text_only` leaves out what is no UTF-8."""
        owners = {*self._plain.owners(data), *self._rest.owners(data)}
        marked = b"\\" in data or b"%" in data
        if marked:
            owners |= self._hopeless
        if self._is_escaped(data):
            loosened = loosen(data)
            owners.update(self._loose.owners(loosened))
            owners.update(owner for owner, end in self._brief.items() if end in loosened)
        if not owners:
            return ()
        found: list[tuple[int, int]] = []
        loose = Loose(data)
        inside = list(inside_escapes(data)) if marked else []
        for owner in owners:
            form = self.forms[owner]
            if text_only and not form.is_text:
                continue
            found += _occurrences(form.plain, data)
            if form.knotty:
                found += self._knots[owner].spans(data) if marked else ()
            elif loose.bytes is not data:
                found += [
                    (loose.start(start), loose.end(end))
                    for start, end in _occurrences(form.loose, loose.bytes)
                ]
                found += [
                    (place, loose.end(after + len(form.loose) - len(head)))
                    for place, head, after in inside
                    if form.loose.startswith(head) and loose.bytes.startswith(form.loose[len(head) :], after)
                ]
        return merged(found)

    def _is_escaped(self, data: bytes) -> bool:
        if b"%" in data and self._percent.search(data):
            return True
        return b"\\" in data and (
            any(escape in data for escape in self._short) or self._unicode.search(data) is not None
        )

    def begins(self, data: bytes) -> int:
        """Say from where on the data may be the beginning of a secret, in whatever mix of escapes."""
        at = self._beginnings.at(data)
        escape = begun_escape(data)
        longest = self._loose_beginnings.longest
        for factor in (2, _ESCAPED_BYTE):  # most text has few escapes
            tail_at = max(0, escape - factor * longest)
            tail = data[tail_at:escape]
            loose = loosen(tail)
            if len(loose) >= longest or tail_at == 0:
                break
        if len(loose) < len(tail) or escape < len(data):
            begun = self._loose_beginnings.at(loose)
            at = min(at, escape if begun == len(loose) else tail_at + Loose(tail).start(begun))
            for place, head, after in inside_escapes(tail):
                if tail_at + place >= at:
                    break
                if self._loose_beginnings.has(head + loose[after : after + longest]):
                    at = tail_at + place
                    break
        if not self._knots:
            return at
        return min([at, *(knot.begins(data) for knot in self._knots.values())])


class _Beginnings:
    """The beginnings of many strings, compared with the end of some data."""

    def __init__(self, strings: Iterable[bytes]) -> None:
        self._sorted = sorted({string for string in strings if string})
        self._heads = frozenset(string[:_HEAD] for string in self._sorted)
        self._short = frozenset(string[:size] for string in self._sorted for size in range(1, _HEAD))
        self.longest = max(map(len, self._sorted), default=0)

    def at(self, data: bytes) -> int:
        """Give the first place from which on the data is the beginning of a string, and not all of it."""
        size = len(data)
        heads, short = self._heads, self._short
        for at in range(max(0, size - self.longest + 1), size - _HEAD + 1):
            if data[at : at + _HEAD] in heads and self._begins(data[at:]):
                return at
        for at in range(max(0, size - _HEAD + 1), size):
            if data[at:] in short:
                return at
        return size

    def has(self, data: bytes) -> bool:
        """Say whether the data is the beginning of a string, and not all of it."""
        if len(data) < _HEAD:
            return data in self._short
        return data[:_HEAD] in self._heads and self._begins(data)

    def _begins(self, rest: bytes) -> bool:
        first = bisect_left(self._sorted, rest)
        return any(string != rest and string.startswith(rest) for string in self._sorted[first : first + 2])


def _clear(form: Form) -> bytes:
    """Give what has windows in loosened data: of a knotty form what stands between its knots."""
    if not form.knotty:
        return form.loose
    # After a backslash a few letters may be taken for its escape, and after a percent sign two digits.
    return re.sub(
        rb"\\+(?:u[0-9a-fA-F]{0,4}|.)?|%[0-9a-fA-F]{0,2}", lambda match: b"\\" * len(match[0]), form.plain
    )


def _occurrences(needle: bytes, data: bytes) -> list[tuple[int, int]]:
    found = []
    at = data.find(needle)
    while at >= 0:
        found.append((at, at + len(needle)))
        at = data.find(needle, at + len(needle))
    return found


def merged(spans: list[tuple[int, int]]) -> Spans:
    """Give spans in order; what overlaps is one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if found and start < found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found
