"""Says fast which of many byte strings may be in some data. Pure.

Of each string a few windows are known. A window of 15 bytes holds a whole group of 8 bytes that stands at a multiple
of 8 wherever it is, one of 23 bytes holds every second such group, and so on. So the data is read as numbers, all of
them are compared with a set at once, and only what is left is looked for by itself: the time does not depend on how
many strings there are.
"""

import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

FEW = 8
"""So many windows are looked for one by one, which is faster."""
_WEIGHTS = bytes(
    3 if chr(byte).isdigit() or chr(byte).isupper() else 2 if chr(byte).islower() else 1
    for byte in range(128)
) + bytes([3] * 128)
"""How seldom a byte is in ordinary text, roughly."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """One width of windows; `least` is how long a string is whose windows are so wide."""

    width: int
    group: int
    every: int
    least: int


_KINDS = (_Kind(7, 4, 1, 7), _Kind(15, 8, 1, 15), _Kind(23, 8, 2, 46), _Kind(31, 8, 3, 62))


class Sieve:
    """Knows strings by their owners."""

    def __init__(self, strings: Iterable[tuple[bytes, int]], avoid: bytes) -> None:
        """Take strings with their owners; windows have no byte of `avoid`.

        `hopeless` are the owners of strings without any window, and `bytes` are all that windows are made of.
        """
        self.hopeless: set[int] = set()
        self._owners: dict[bytes, set[int]] = {}
        self._single: list[bytes] = []
        self._numbers: frozenset[int] = frozenset()
        self._windows: dict[int, set[bytes]] = {}
        by_kind: dict[_Kind, list[tuple[bytes, int]]] = {kind: [] for kind in _KINDS}
        for string, owner in strings:
            for kind in reversed(_KINDS):
                if len(string) >= kind.least and next(_windows(string, kind.width, avoid), None) is not None:
                    by_kind[kind].append((string, owner))
                    break
            else:
                self.hopeless.add(owner)
        self._choose(by_kind, avoid)

    def _choose(self, by_kind: dict[_Kind, list[tuple[bytes, int]]], avoid: bytes) -> None:
        """Look for the windows of a kind together once they are many; all wider kinds then go with it."""
        together: _Kind | None = None
        groups: set[bytes] = set()
        for kind, strings in by_kind.items():
            width = kind.width if together is None else together.width
            windows = [
                (window, owner) for string, owner in strings for window in _windows(string, width, avoid)
            ]
            if together is None and len({window for window, _ in windows}) > FEW:
                together = kind
            (groups.update if together is not None else self._single.extend)(
                dict.fromkeys(window for window, _ in windows)
            )
            for window, owner in windows:
                self._owners.setdefault(window, set()).add(owner)
        self._together = together
        self._least = min(map(len, self._owners), default=sys.maxsize)
        self.bytes = frozenset(byte for window in self._owners for byte in window)
        if together is not None:
            self._windows = _groups(groups, together)
            self._numbers = frozenset(self._windows)

    def owners(self, data: bytes) -> Collection[int]:
        """Give the owners of windows that are in the data."""
        found: set[int] = set()
        if len(data) < self._least:
            return found
        for window in self._single:
            if window in data:
                found |= self._owners[window]
        if self._together is not None:
            for window in self._near(data, self._together):
                if window in data:
                    found |= self._owners[window]
        return found

    def _near(self, data: bytes, kind: _Kind) -> Iterable[bytes]:
        whole = memoryview(data)[: len(data) - len(data) % kind.group]
        numbers = whole.cast("Q" if kind.group == 8 else "I")[:: kind.every]  # noqa: PLR2004
        if self._numbers.isdisjoint(numbers):
            return ()
        near = self._numbers.intersection(numbers)
        return {window for number in near for window in self._windows[number]}


def _windows(string: bytes, width: int, avoid: bytes) -> Iterator[bytes]:
    """Give the best window of each third of the string: where it is cut once by a line's end, another is whole."""
    weights = list(accumulate((_WEIGHTS[byte] for byte in string), initial=0))
    bad = list(accumulate((byte in avoid for byte in string), initial=0))

    def best(low: int, high: int) -> int | None:
        return max(
            (start for start in range(low, high - width + 1) if bad[start + width] == bad[start]),
            key=lambda start: (
                weights[start + width] - weights[start] + len(set(string[start : start + width]))
            ),
            default=None,
        )

    size = len(string)
    parts = min(3, max(1, size // width))
    starts = [best(size * part // parts, size * (part + 1) // parts) for part in range(parts)]
    found = [start for start in starts if start is not None]
    if not found and (anywhere := best(0, size)) is not None:
        found = [anywhere]
    for start in found:
        yield string[start : start + width]


def _groups(windows: Iterable[bytes], kind: _Kind) -> dict[int, set[bytes]]:
    """Give, by each group of bytes that may be read as a number, the windows that hold it."""
    found: dict[int, set[bytes]] = {}
    for window in windows:
        for start in range(kind.width - kind.group + 1):
            number = int.from_bytes(window[start : start + kind.group], sys.byteorder)
            found.setdefault(number, set()).add(window)
    return found
