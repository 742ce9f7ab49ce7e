"""Cuts a message into pieces at places that depend on nothing but how far in it they are. Pure.

So the pieces of a message are the same while it is made and ever after, and each has its number.
"""

_DELTA_SIZES = ((0, 16), (512, 64), (4_096, 256), (32_768, 2_048))
"""From so many characters on, pieces are so long: the beginning of a message shows as it comes."""


def _delta_size(position: int) -> int:
    return next(size for start, size in reversed(_DELTA_SIZES) if position >= start)


class DeltaSplitter:
    """Takes text as it comes and gives the pieces that are whole."""

    def __init__(self) -> None:
        self._buffer = ""
        self._position = 0
        self._emitted: list[str] = []

    def feed(self, text: str) -> list[str]:
        """Give the pieces that this text completes."""
        self._buffer += text
        deltas: list[str] = []
        start = 0
        while len(self._buffer) - start >= (size := _delta_size(self._position)):
            deltas.append(self._buffer[start : start + size])
            start += size
            self._position += size
        self._buffer = self._buffer[start:]
        self._emitted += deltas
        return deltas

    @property
    def text(self) -> str:
        """All the text that came."""
        return "".join(self._emitted) + self._buffer


def split_into_deltas(text: str) -> list[str]:
    """Give all pieces of a whole message, the last as long as what is left."""
    splitter = DeltaSplitter()
    deltas = splitter.feed(text)
    remainder = text[sum(map(len, deltas)) :]
    return [*deltas, remainder] if remainder else deltas
