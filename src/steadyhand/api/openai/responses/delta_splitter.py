"""Cuts a message into pieces at places that depend on nothing but how far in it they are. Pure.

So the pieces of a message are the same while it is made and ever after, and each has its number.
"""

_SIZES = ((0, 16), (512, 64), (4_096, 256), (32_768, 2_048))
"""From so many characters on, pieces are so long: the beginning of a message shows as it comes."""


def _size(at: int) -> int:
    return next(size for start, size in reversed(_SIZES) if at >= start)


class Pieces:
    """Takes text as it comes and gives the pieces that are whole."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._given: list[str] = []

    def feed(self, text: str) -> list[str]:
        """Give the pieces that this text completes."""
        self._text += text
        found: list[str] = []
        start = 0
        while len(self._text) - start >= (size := _size(self._at)):
            found.append(self._text[start : start + size])
            start += size
            self._at += size
        self._text = self._text[start:]
        self._given += found
        return found

    @property
    def all(self) -> str:
        """All the text that came."""
        return "".join(self._given) + self._text


def pieces_of(text: str) -> list[str]:
    """Give all pieces of a whole message, the last as long as what is left."""
    cut = Pieces()
    whole = cut.feed(text)
    rest = text[sum(map(len, whole)) :]
    return [*whole, rest] if rest else whole
