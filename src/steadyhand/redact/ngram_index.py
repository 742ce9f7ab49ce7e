"""An index of long byte strings that come and go: adding and removing one does not touch the others. Pure."""

from collections import Counter
from collections.abc import Iterable

from steadyhand.redact.encodings import is_text
from steadyhand.redact.matcher import EARLY_BYTES, Spans, merged

MIN_PATTERN = 32
"""Bytes below which a pattern is not for this index: the search looks at one n-gram in so many bytes."""
_N = 8
_STRIDE = MIN_PATTERN - _N + 1


class NgramIndex:
    """Byte strings of at least `MIN_PATTERN` bytes, ready to be looked for together.

    It holds each n-gram in the first `MIN_PATTERN` bytes of a pattern. A search looks up every `_STRIDE`-th n-gram of
    the data: one of them is in the first bytes of any pattern that stands there. So its time does not depend on the
    number of patterns, and adding one costs `_STRIDE` entries.
    """

    def __init__(self) -> None:
        self._patterns: Counter[bytes] = Counter()
        self._places: dict[bytes, list[tuple[bytes, int]]] = {}
        self._prefixes: Counter[bytes] = Counter()
        self._bytes_only: set[bytes] = set()

    def __bool__(self) -> bool:
        """Return True if there are patterns."""
        return bool(self._patterns)

    def add(self, patterns: Iterable[bytes]) -> None:
        """Look for these too; one that is added twice must be removed twice."""
        for pattern in patterns:
            self._patterns[pattern] += 1
            if self._patterns[pattern] > 1:
                continue
            for offset in range(_STRIDE):
                self._places.setdefault(pattern[offset : offset + _N], []).append((pattern, offset))
            self._prefixes.update([pattern[:size] for size in range(1, _N)])
            if not is_text(pattern):
                self._bytes_only.add(pattern)

    def remove(self, patterns: Iterable[bytes]) -> None:
        """Forget these, as often as they were added."""
        for pattern in patterns:
            self._patterns[pattern] -= 1
            if self._patterns[pattern]:
                continue
            del self._patterns[pattern]
            for offset in range(_STRIDE):
                ngram = pattern[offset : offset + _N]
                places = self._places[ngram]
                places.remove((pattern, offset))
                if not places:
                    del self._places[ngram]
            for size in range(1, _N):
                self._prefixes[pattern[:size]] -= 1
                if not self._prefixes[pattern[:size]]:
                    del self._prefixes[pattern[:size]]
            self._bytes_only.discard(pattern)

    def search(self, data: bytes, *, text_only: bool = False, early: bool = False) -> tuple[Spans, int]:
        """Return where patterns stand, and from where on the data may be the beginning of one; see `Matcher`."""
        spans, begun = self.find(data, text_only=text_only)
        bytes_only = self._bytes_only if text_only else frozenset()
        return spans, self._begin_at_end(data, begun, bytes_only, early=early)

    def find(self, data: bytes, *, text_only: bool = False) -> tuple[Spans, int]:
        """Return the same, for data that is whole: not all beginnings of patterns at its end are looked for."""
        size = begun = len(data)
        spans: Spans = []
        places, bytes_only = self._places, self._bytes_only if text_only else frozenset()
        for at in [at for at in range(0, size - _N + 1, _STRIDE) if data[at : at + _N] in places]:
            for pattern, offset in places[data[at : at + _N]]:
                start = at - offset
                if start < 0 or pattern in bytes_only:
                    continue
                if start + len(pattern) <= size:
                    if data.startswith(pattern, start):
                        spans.append((start, start + len(pattern)))
                elif start < begun and pattern.startswith(data[start:]):
                    begun = start
        return merged(spans), begun

    def _begin_at_end(self, data: bytes, begun: int, bytes_only: Iterable[bytes], *, early: bool) -> int:
        """Return the first place of the last bytes, or `begun`, from where on the data may begin a pattern."""
        size, places = len(data), self._places
        last = range(max(0, size - MIN_PATTERN + 1), min(begun, size - _N + 1))
        for start in [start for start in last if data[start : start + _N] in places]:
            for pattern, offset in places[data[start : start + _N]]:
                if offset == 0 and pattern not in bytes_only and pattern.startswith(data[start:]):
                    return start
        for start in range(max(0, size - _N + 1), min(begun, size - EARLY_BYTES if early else size)):
            if data[start:] in self._prefixes:
                return start
        return begun
