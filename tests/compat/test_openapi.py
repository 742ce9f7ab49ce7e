"""The OpenAPI document is the one that clients were generated from, but for its prose."""

import copy
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.compat.document import PROFILES, served, service_of, without_prose
from tests.service_fixtures import make_service_root

SNAPSHOTS = Path(__file__).parent / "openapi"
ADDITIONS = tomllib.loads((Path(__file__).parent / "additions.toml").read_text("ascii"))
"""What the document has more than the snapshots: each addition that was meant, by its place."""


def snapshot(profile: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SNAPSHOTS / f"{profile}.json").read_text("ascii"))
    return found


def without_additions(document: dict[str, Any], profile: str) -> dict[str, Any]:
    """Return the document without the listed additions, each of which it must have."""
    left = copy.deepcopy(document)
    for component, names in ADDITIONS["properties"].items():
        schema = left["components"]["schemas"][component]
        for name in names:
            del schema["properties"][name]
            if name in schema.get("required", ()):
                schema["required"].remove(name)
    for place, values in ADDITIONS["values"].items():
        component, name = place.split(".")
        schema = left["components"]["schemas"][component]["properties"][name]
        (listed,) = [each["enum"] for each in (schema, *schema.get("anyOf", ())) if "enum" in each]
        for value in values:
            listed.remove(value)
    for component, names in ADDITIONS["nullable"].items():
        properties = left["components"]["schemas"][component]["properties"]
        for name in names:
            schema = properties[name]
            value, null = schema.pop("anyOf")
            assert null == {"type": "null"}
            properties[name] = schema | value
    for component, names in ADDITIONS["optional"].items():
        schema = left["components"]["schemas"][component]
        assert not set(names) & set(schema.get("required", ()))
        schema["required"] = sorted([*schema.get("required", ()), *names])
    for name in ADDITIONS["document"]["schemas"]:
        del left["components"]["schemas"][name]
    for path in ADDITIONS["document"]["paths"]:
        del left["paths"][path]
    remove_parameters(left["paths"])
    change_responses(left["paths"], profile)
    return left


def remove_parameters(paths: dict[str, Any]) -> None:
    """Take the listed parameters out, and the listed values of the items of others."""
    for place, names in ADDITIONS["parameters"].items():
        method, path = place.split(" ")
        parameters = paths[path][method.lower()]["parameters"]
        assert set(names) <= {each["name"] for each in parameters}
        parameters[:] = [each for each in parameters if each["name"] not in names]
    for place, values in ADDITIONS["parameter_values"].items():
        method, path, name = place.split(" ")
        (schema,) = [
            each["schema"] for each in paths[path][method.lower()]["parameters"] if each["name"] == name
        ]
        for value in values:
            schema["items"]["enum"].remove(value)


def change_responses(paths: dict[str, Any], profile: str) -> None:
    """Take the listed statuses out, and give the errors of the classic profile the body that they had."""
    for status, places in ADDITIONS["responses"].items():
        for place in places:
            method, path = place.split(" ")
            if profile == "classic" and path not in paths:
                continue
            del paths[path][method.lower()]["responses"][status]
    for place in ADDITIONS["classic"]["invalid"] if profile == "classic" else ():
        method, path = place.split(" ")
        response = paths[path][method.lower()]["responses"]["422"]
        schema = response["content"]["application/json"]["schema"]
        assert schema["$ref"] == "#/components/schemas/ClassicProblem"
        schema["$ref"] = "#/components/schemas/Problem"


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
        now = without_additions(served(service), profile)
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
