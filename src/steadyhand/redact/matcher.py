"""One automaton that finds every encoding of every secret, whole or begun at the end of the data. Pure."""

from collections.abc import Iterable

from ahocorasick_rs import BytesAhoCorasick

from steadyhand.redact.encodings import is_text

Spans = list[tuple[int, int]]
_HEAD = 16
"""Bytes of a pattern that the automaton knows; the rest is compared where they stand. It keeps the automaton small."""
_BLOCK = 1 << 16
"""Bytes that are searched at once: a list of matches is many times larger than the data when each byte is one."""
EARLY_BYTES = 2
"""The most bytes of a pattern that live text need not hold back: nearly every word ends like some pattern begins."""
_EARLY_SHARE = 8
"""Live text need not hold back one byte in so many of a pattern."""


class Matcher:
    """Byte strings, ready to be looked for together."""

    def __init__(self, patterns: Iterable[bytes]) -> None:
        self.patterns = frozenset(patterns)
        by_head: dict[bytes, list[bytes]] = {}
        for pattern in sorted(self.patterns, key=len):
            by_head.setdefault(pattern[:_HEAD], []).append(pattern)
        self._by_head = list(by_head.values())
        self._automaton = BytesAhoCorasick(by_head)
        self._prefixes = frozenset(
            pattern[:size] for pattern in by_head for size in range(1, min(_HEAD, len(pattern)))
        )
        self._early_prefixes = frozenset(
            pattern[:size]
            for pattern in by_head
            for size in range(_early_bytes(pattern) + 1, min(_HEAD, len(pattern)))
        )
        self._text = frozenset(filter(is_text, self.patterns))

    def search(self, data: bytes, *, text_only: bool = False, early: bool = False) -> tuple[Spans, int]:
        """Return where patterns stand, and from where on the data may be the beginning of one.

        Spans are in order; those that overlap are one. `text_only` leaves out patterns that are not UTF-8: they
        would cut a character. `early` leaves out beginnings of up to `EARLY_BYTES`, and an eighth of the pattern.
        """
        size = len(data)
        spans, begun = self.find(data, text_only=text_only)
        prefixes = self._early_prefixes if early else self._prefixes
        for start in range(max(0, size - _HEAD + 1), begun):
            if data[start:] in prefixes:
                return spans, start
        return spans, begun

    def find(self, data: bytes, *, text_only: bool = False) -> tuple[Spans, int]:
        """Return the same, but of patterns that begin at the end of the data only those with `_HEAD` bytes there.

        It is for data that is whole.
        """
        size = begun = len(data)
        spans: Spans = []
        for block in range(0, size, _BLOCK):
            found: Spans = []
            part = data if size <= _BLOCK else data[block : block + _BLOCK + _HEAD - 1]
            for head, at, _ in self._automaton.find_matches_as_indexes(part, overlapping=True):
                start = block + at
                for pattern in self._by_head[head]:
                    end = start + len(pattern)
                    if text_only and pattern not in self._text:
                        continue
                    if end > size:
                        if start < begun and pattern.startswith(data[start:]):
                            begun = start
                    elif data.startswith(pattern, start):
                        found.append((start, end))
            spans += merged(found)
        return merged(spans), begun


def merged(spans: Iterable[tuple[int, int]]) -> Spans:
    """Return spans in order; those that overlap are one."""
    found: Spans = []
    for start, end in sorted(spans):
        if found and start < found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _early_bytes(pattern: bytes) -> int:
    return min(EARLY_BYTES, len(pattern) // _EARLY_SHARE)
