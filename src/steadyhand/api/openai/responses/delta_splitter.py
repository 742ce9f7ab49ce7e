"""Splits a message into deltas at places that depend on the position in the text only. Pure.

So the deltas of a message are the same during the run and ever after, and each has its number.
"""

from steadyhand.redact import EARLY_BYTES

_DELTA_SIZES = ((0, 16), (512, 64), (4_096, 256), (32_768, 2_048))
"""Sizes of deltas by the number of characters before them: the first ones are short, so that text appears at once."""


def _delta_size(position: int) -> int:
    return next(size for start, size in reversed(_DELTA_SIZES) if position >= start)


class DeltaSplitter:
    """Collects text and returns the deltas that are complete."""

    def __init__(self) -> None:
        self._buffer = ""
        self._position = 0
        self._emitted: list[str] = []

    def feed_live(self, text: str, taken_back: int = 0) -> list[str]:
        """Return the deltas that this piece of live text completes, after so many characters are taken back."""
        self._buffer = self._buffer[: len(self._buffer) - taken_back]
        return self.feed(text, reserve=EARLY_BYTES)

    def feed(self, text: str, *, reserve: int = 0) -> list[str]:
        """Return the deltas that this text completes; so many characters at its end may be taken back."""
        self._buffer += text
        deltas: list[str] = []
        start = 0
        while len(self._buffer) - start >= (size := _delta_size(self._position)) + reserve:
            deltas.append(self._buffer[start : start + size])
            start += size
            self._position += size
        self._buffer = self._buffer[start:]
        self._emitted += deltas
        return deltas

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self._emitted) + self._buffer


def split_into_deltas(text: str) -> list[str]:
    """Return all deltas of a whole message; the last one may be shorter."""
    splitter = DeltaSplitter()
    deltas = splitter.feed(text)
    remainder = text[sum(map(len, deltas)) :]
    return [*deltas, remainder] if remainder else deltas
