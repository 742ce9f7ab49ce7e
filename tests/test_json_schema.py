"""Schemas that others send are taken within bounds; answers are checked without fetching or running anything."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from steadyhand import json_schema
from steadyhand.errors import InvalidRequest

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}},
        "age": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]},
    },
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"tag": {"enum": ["a", "b"]}},
}


def test_a_common_schema_is_taken_and_names_both_places_of_a_fault() -> None:
    json_schema.check_schema(PERSON, "/s")
    assert json_schema.validation_error(PERSON, {"name": "x", "tags": ["a"], "age": None}) is None
    assert json_schema.validation_error(PERSON, {"name": "x", "tags": ["a", "c"]}) == (
        "/tags/1: 'c' is not one of ['a', 'b'] (schema: /properties/tags/items/enum)"
    )
    assert "(schema: /required)" in str(json_schema.validation_error(PERSON, {}))
    assert "(schema: /additionalProperties)" in str(
        json_schema.validation_error(PERSON, {"name": "x", "more": 1})
    )


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("schema", "pointer", "text"),
    [
        ({"$ref": "http://127.0.0.1:9/s.json"}, "/s/$ref", "within this schema"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "/s/properties/a/$ref", "within this schema"),
        ({"$ref": "#/$defs/none"}, "/s/$ref", "refers to nothing"),
        ({"$ref": 5}, "/s/$ref", "within this schema"),
        ({"$dynamicRef": "#a"}, "/s/$dynamicRef", "not supported"),
        ({"type": "text"}, "/s/type", "one of array"),
        ({"type": ["string", 4]}, "/s/type", "one of array"),
        ({"properties": []}, "/s/properties", "object of schemas"),
        ({"properties": {"a/b": "string"}}, "/s/properties/a~1b", "JSON Schema"),
        ({"anyOf": []}, "/s/anyOf", "list of schemas"),
        ({"items": [{"type": "x"}]}, "/s/items/0/type", "one of array"),
        ({"not": {"required": "a"}}, "/s/not/required", "list of names"),
        ({"enum": "a"}, "/s/enum", "list"),
        ({"enum": []}, "/s/enum", "at least one"),
        ({"type": []}, "/s/type", "one of array"),
        ({"$schema": "https://example.org/my-dialect"}, "/s/$schema", "unknown dialect"),
        ({"$schema": ["a"]}, "/s/$schema", "unknown dialect"),
        ({"$ref": "#/hidden", "hidden": {"type": "text"}}, "/s/$ref/type", "one of array"),
        ({"$ref": "#missing"}, "/s/$ref", "refers to nothing"),
        ({"minLength": "a"}, "/s/minLength", "whole number"),
        ({"minLength": []}, "/s/minLength", "whole number"),
        ({"uniqueItems": "yes"}, "/s/uniqueItems", "true or false"),
        ({"dependentRequired": {"a": "b"}}, "/s/dependentRequired/a", "list of names"),
        ({"properties": {"a": {"pattern": "a\\Z"}}}, "/s/properties/a/pattern", "can be checked"),
        ({"patternProperties": {"(?=a)": True}}, "/s/patternProperties", "can be checked"),
        ({"patternProperties": {"a": True}, "unevaluatedProperties": False}, "/s", "unevaluated"),
        ({"not": {"$id": "other", "allOf": [{"$ref": "#"}]}}, "/s/not/$id", "references"),
        ({"minimum": "a"}, "/s/minimum", "number"),
        ({"minItems": -1}, "/s/minItems", "whole number"),
        ({"minItems": True}, "/s/minItems", "whole number"),
        ({"maxLength": 1.5}, "/s/maxLength", "whole number"),
        ({"multipleOf": 0}, "/s/multipleOf", "above 0"),
        ({"pattern": 4}, "/s/pattern", "regular expression"),
        (nested(json_schema.MAX_DEPTH + 1), "/s", "levels"),
        ({"anyOf": [{}] * (json_schema.MAX_SUBSCHEMAS + 1)}, "/s", "schemas"),
        ({"anyOf": [{"$ref": "#"}] * (json_schema.MAX_REFERENCES + 1)}, "/s", "references"),
        ({"description": "x" * json_schema.MAX_BYTES}, "/s", "KiB"),
    ],
)
def test_what_is_no_schema_or_too_much_is_refused_with_its_place(
    schema: dict[str, Any], pointer: str, text: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        json_schema.check_schema(schema, "/s")
    assert caught.value.field_errors[0].pointer == pointer
    assert text in caught.value.detail


def test_what_the_library_takes_for_a_schema_is_taken() -> None:
    for schema in (PERSON, {}, {"items": [True, False]}, {"$defs": {"a": True}, "$ref": "#/$defs/a"}):
        Draft202012Validator.check_schema(PERSON)
        json_schema.check_schema(schema, "")


def test_a_pattern_that_would_explode_is_matched_in_linear_time() -> None:
    schema = {
        "properties": {"a": {"pattern": "^(a+)+$"}},
        "patternProperties": {"^(a+)+$": {"type": "integer"}},
        "additionalProperties": False,
    }
    json_schema.check_schema(schema, "")
    long = "a" * 10_000
    assert "/properties/a/pattern" in str(json_schema.validation_error(schema, {"a": long + "!"}))
    assert "/additionalProperties" in str(json_schema.validation_error(schema, {long + "!": 1}))
    assert json_schema.validation_error(schema, {"aa": 1}) is None
    # This one only the agent's engine knows: it is left to the agent, and refuses nothing here.
    schema = {"not": {"pattern": "^(?=(a+)+$)b"}}
    json_schema.check_schema(schema, "")
    assert json_schema.validation_error(schema, "a" * 60 + "!") is None


def test_a_schema_that_explodes_is_refused_and_given_up() -> None:
    defs = {f"n{i}": {"allOf": [{"$ref": f"#/$defs/n{i + 1}"}] * 2} for i in range(30)}
    bomb = {"$ref": "#/$defs/n0", "$defs": {**defs, "n30": {"type": "integer"}}}
    with pytest.raises(InvalidRequest, match="expands"):
        json_schema.check_schema(bomb, "")
    assert json_schema.validation_error(bomb, 4) is None
    endless = {"$ref": "#"}
    json_schema.check_schema(endless, "")
    assert json_schema.validation_error(endless, 4) is None


def test_an_answer_that_explodes_is_given_up() -> None:
    schema = {"items": {"allOf": [{"type": "integer"}] * 100}}
    assert json_schema.validation_error(schema, [1] * 100_000) is None
    objects = {"uniqueItems": True}
    assert json_schema.validation_error(objects, [{"a": i} for i in range(20_000)]) is None
    assert json_schema.validation_error(objects, [{"a": 1}, {"a": 1}]) is not None


def test_a_fault_is_one_short_line() -> None:
    found = json_schema.validation_error({"type": "integer"}, json.dumps(["x\n" * 5_000]))
    assert found is not None
    assert len(found) < 300
    assert "\n" not in found
