"""Find keys by their names, and names by the ids of keys. Without the scope `admin` only ids are known."""

from collections.abc import Mapping
from typing import Any

from steadyhand.cli.sanitize import one_line
from steadyhand.client import Client
from steadyhand.errors import Forbidden, InvalidRequest, NotFound


def load_key_names(client: Client) -> Mapping[str, str]:
    """Return the names of all keys by their ids; none if the caller may not list keys."""
    try:
        rows = [key.document for key in client.list_keys()]
    except (Forbidden, NotFound):
        return {}
    return {str(row.get("id")): str(row["name"]) for row in rows if row.get("name")}


def resolve_key_id(client: Client, text: str) -> str:
    """Return the id of a key from its name, id or prefix; the text itself if the caller may not list keys."""
    try:
        return find_key_id(client, text)
    except Forbidden:
        return text


def key_label(key: Mapping[str, Any]) -> str:
    """Return a key as its id and name."""
    return f"{one_line(key.get('id', '?'), 40)} ({one_line(key.get('name', ''), 100)})"


def find_key_id(client: Client, text: str) -> str:
    """Return the whole id. An exact id or name wins over a prefix, and an active key over revoked ones."""
    rows = [key.document for key in client.list_keys()]
    exact_matches = [row for row in rows if text in (row["id"], row.get("name"))]
    id_prefix = text.removeprefix("k_")
    prefix_matches = [row for row in rows if id_prefix and row["id"].removeprefix("k_").startswith(id_prefix)]
    matches = exact_matches or prefix_matches
    matches = [row for row in matches if row.get("revoked_at") is None] or matches
    if not matches:
        raise NotFound(f"There is no key {one_line(text, 60)!r}.")
    if len(matches) > 1:
        names = ", ".join(key_label(row) for row in matches[:10])
        raise InvalidRequest(f"{one_line(text, 60)!r} means several keys: {names}")
    return str(matches[0]["id"])
