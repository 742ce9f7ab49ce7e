"""The OpenAPI document is the one that clients were generated from, but for its prose."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.compat.document import PROFILES, served, service_of, without_prose
from tests.service_fixtures import make_service_root

SNAPSHOTS = Path(__file__).parent / "openapi"


def snapshot(profile: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SNAPSHOTS / f"{profile}.json").read_text("ascii"))
    return found


def leaves(node: Any, before: str = "") -> dict[str, Any]:
    """Return every plain value of a document by its JSON pointer, so that a difference names its place."""
    if not isinstance(node, dict | list) or not node:
        return {before: node}
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    found: dict[str, Any] = {}
    for key, value in pairs:
        found |= leaves(value, f"{before}/{str(key).replace('~', '~0').replace('/', '~1')}")
    return found


@pytest.mark.parametrize("profile", PROFILES)
def test_the_document_without_prose_is_the_stored_one(
    profile: str, reachable_tmp: Path, stand_in: Path
) -> None:
    with service_of(profile, make_service_root(reachable_tmp), stand_in) as service:
        now = served(service)
    before = snapshot(profile)
    assert sorted(now["components"]["schemas"]) == sorted(before["components"]["schemas"])
    assert leaves(now) == leaves(before)


def test_prose_is_taken_out_and_a_property_that_is_called_title_is_kept() -> None:
    said = {"title": "T", "description": "D", "examples": [1], "type": "object", "required": ["title"]}
    title = {"title": "Title", "type": "string", "default": {"description": "data"}}
    schema = said | {"properties": {"title": title, "description": title, "properties": {"properties": {}}}}
    bare = {"type": "string", "default": {"description": "data"}}
    assert without_prose({"components": {"schemas": {"summary": schema}, "examples": {}}}) == {
        "components": {
            "schemas": {
                "summary": {
                    "type": "object",
                    "required": ["title"],
                    "properties": {"title": bare, "description": bare, "properties": {"properties": {}}},
                }
            }
        }
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_the_snapshot_holds_properties_that_are_named_like_prose(profile: str) -> None:
    schemas = snapshot(profile)["components"]["schemas"]
    assert [name for name, schema in schemas.items() if "title" in schema.get("properties", {})]
