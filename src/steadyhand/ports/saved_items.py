"""The port of saved items: views of the list of jobs, and prompts, that a key saves for its owner."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

SavedKind = Literal["view", "prompt"]


@dataclass(frozen=True, slots=True)
class SavedItem:
    """An item of a key, known by its kind and name; `content` is text that only the owner of the kind reads."""

    kind: SavedKind
    name: str
    content: str
    saved_at: datetime


class SavedItems(Protocol):
    """The items that keys save, durable once a method returns. Methods raise `StoreError`."""

    async def list_saved(self, api_key_id: str, kind: SavedKind) -> Sequence[SavedItem]:
        """Return the items of a key, in the order of their names."""
        ...

    async def save_item(self, api_key_id: str, item: SavedItem, most: int) -> bool:
        """Store an item in place of the one of its name; return False if it were one more than `most` of its kind."""
        ...

    async def delete_saved(self, api_key_id: str, kind: SavedKind, name: str) -> bool:
        """Delete an item; return False if there is none."""
        ...
