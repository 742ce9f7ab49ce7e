"""Items of lists as they are sent, rendered once for as long as they do not change."""

from collections.abc import Callable
from typing import TypeVar

MAX_RENDERED_BYTES = 2 << 20
"""The bytes that are kept: those of the items that were sent last."""
_MAX_ITEM = MAX_RENDERED_BYTES // 16
T = TypeVar("T")


class RenderedItems:
    """The bytes of items by a key. The bytes of a former item with the same key are replaced."""

    def __init__(self) -> None:
        self._rendered: dict[str, tuple[object, bytes]] = {}
        self._size = 0

    def get(self, key: str, item: T, render: Callable[[T], bytes]) -> bytes:
        """Return the bytes of an item, rendered anew unless this very object was rendered last for this key."""
        entry = self._rendered.pop(key, None)
        if entry is not None and entry[0] is item:
            self._rendered[key] = entry  # as the newest
            return entry[1]
        if entry is not None:
            self._size -= len(entry[1])
        data = render(item)
        if len(data) <= _MAX_ITEM:
            self._rendered[key] = (item, data)
            self._size += len(data)
            while self._size > MAX_RENDERED_BYTES:
                self._size -= len(self._rendered.pop(next(iter(self._rendered)))[1])
        return data
