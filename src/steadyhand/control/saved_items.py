"""Operations on the views and prompts that a key saves."""

from collections.abc import Mapping, Sequence

from steadyhand.control.deps import ControlDeps
from steadyhand.control.requests import Caller
from steadyhand.errors import Conflict, InvalidRequest, NotFound
from steadyhand.ports import SavedItem, SavedItems, SavedKind, Scope

MAX_SAVED = 100
"""The most items of a key, of each kind."""
MAX_NAME = 80
MAX_CONTENT = 64 * 1024
"""The most characters of an item."""
_SCOPES: Mapping[SavedKind, Scope] = {"view": "read", "prompt": "submit"}


class SavedItemOperations:
    """Lists, saves and deletes the items of the caller's own key."""

    def __init__(self, deps: ControlDeps) -> None:
        self._deps = deps

    async def list_saved(self, caller: Caller, kind: SavedKind) -> Sequence[SavedItem]:
        """Return the items of the key, in the order of their names."""
        caller.require_scope(_SCOPES[kind])
        return await self._items.list_saved(caller.key_id, kind)

    async def save_item(self, caller: Caller, kind: SavedKind, name: str, content: str) -> SavedItem:
        """Save an item in place of the one of its name. Raise `Conflict` if the key has as many as it may have."""
        caller.require_scope(_SCOPES[kind])
        name = name.strip()
        if not name or len(name) > MAX_NAME or _is_unstorable(name):
            raise InvalidRequest.at("/name", f"has to be a text of 1 to {MAX_NAME} characters")
        if len(content) > MAX_CONTENT or _is_unstorable(content):
            raise InvalidRequest.at("/content", f"has to be a text of at most {MAX_CONTENT} characters")
        item = SavedItem(kind, name, content, self._deps.clock())
        if not await self._items.save_item(caller.key_id, item, MAX_SAVED):
            raise Conflict(f"This key has {MAX_SAVED} saved {kind}s already: delete one first.")
        return item

    async def delete_saved(self, caller: Caller, kind: SavedKind, name: str) -> None:
        """Delete an item. Raise `NotFound` if the key has none of this name."""
        caller.require_scope(_SCOPES[kind])
        if not await self._items.delete_saved(caller.key_id, kind, name):
            raise NotFound(f"There is no saved {kind} of this name.")

    @property
    def _items(self) -> SavedItems:
        if self._deps.saved_items is None:
            raise NotFound("This service saves nothing.")
        return self._deps.saved_items


def _is_unstorable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair
        return True
    return "\0" in text
