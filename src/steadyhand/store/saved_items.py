"""Saved items in SQL: functions of a connection inside a transaction."""

from collections.abc import Sequence

from sqlalchemy import Connection, delete, func, insert, select

from steadyhand.ports import SavedItem, SavedKind
from steadyhand.store.mapping import from_microseconds, to_microseconds
from steadyhand.store.schema import saved_items


def list_saved(connection: Connection, api_key_id: str, kind: SavedKind) -> Sequence[SavedItem]:
    """Return the items of a key; see `SavedItems.list_saved`."""
    query = (
        select(saved_items)
        .where(saved_items.c.api_key_id == api_key_id, saved_items.c.kind == kind)
        .order_by(saved_items.c.name)
    )
    return [
        SavedItem(kind, row["name"], row["content"], from_microseconds(row["saved_at"]))
        for row in connection.execute(query).mappings()
    ]


def save_item(connection: Connection, api_key_id: str, item: SavedItem, most: int) -> bool:
    """Store an item; see `SavedItems.save_item`."""
    delete_saved(connection, api_key_id, item.kind, item.name)
    count = select(func.count()).where(
        saved_items.c.api_key_id == api_key_id, saved_items.c.kind == item.kind
    )
    if connection.execute(count).scalar_one() >= most:
        return False
    row = {
        "api_key_id": api_key_id,
        "kind": item.kind,
        "name": item.name,
        "content": item.content,
        "saved_at": to_microseconds(item.saved_at),
    }
    connection.execute(insert(saved_items), row)
    return True


def delete_saved(connection: Connection, api_key_id: str, kind: SavedKind, name: str) -> bool:
    """Delete an item; see `SavedItems.delete_saved`."""
    deleted = connection.execute(
        delete(saved_items).where(
            saved_items.c.api_key_id == api_key_id, saved_items.c.kind == kind, saved_items.c.name == name
        )
    )
    return deleted.rowcount > 0
