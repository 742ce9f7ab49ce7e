"""Schemas of every dialect become schemas that the agent takes, and never stricter than the caller's own."""

from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from steadyhand import json_schema
from steadyhand.json_schema import agent_schema
from steadyhand.json_schema.dialects import modernize
from steadyhand.json_schema.patterns import is_surely_ecmascript

POINT = {
    "type": "array",
    "prefixItems": [{"type": "number"}, {"type": "string"}],
    "minItems": 2,
    "items": False,
}
CAT = {
    "type": "object",
    "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}},
    "required": ["kind"],
}
DOG = {"type": "object", "properties": {"kind": {"const": "dog"}}, "required": ["kind"]}
PET = {
    "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
    "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}},
}
DEFS = {"Cat": CAT, "Dog": DOG}


def of(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, **more}


# Each: the caller's schema, values of `a` that are right, and values that are not.
ORDINARY: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {
    "2020-12": (
        of({"type": "string"}, **{"$schema": "https://json-schema.org/draft/2020-12/schema"}),
        ["x"],
        [1],
    ),
    "2019-09": (
        of({"type": "string"}, **{"$schema": "https://json-schema.org/draft/2019-09/schema"}),
        ["x"],
        [1],
    ),
    "draft 4": (
        of(
            {"type": "integer", "minimum": 3, "exclusiveMinimum": True, "id": "#three"},
            **{"$schema": "http://json-schema.org/draft-04/schema#"},
        ),
        [4],
        [3],
    ),
    "a reference with siblings in draft 7": (
        {
            **of({"$ref": "#/definitions/word", "maxLength": 1}, definitions={"word": {"type": "string"}}),
            "$schema": "http://json-schema.org/draft-07/schema#",
        },
        ["two"],
        [1],
    ),
    "tuple": (of(POINT), [[1, "x"]], [["x", 1], [1], [1, "x", 2]]),
    "tuple of draft 7": (
        of({"items": [{"type": "number"}], "additionalItems": {"type": "string"}}),
        [[1, "x"]],
        [[1, 2]],
    ),
    "discriminated union": (
        of(PET, **{"$defs": DEFS}),
        [{"kind": "cat", "lives": 9}, {"kind": "dog"}],
        [{"kind": "cow"}],
    ),
    "example": (of({"type": "string", "example": "x", "examples": "no list", "x-order": 1}), ["y"], [1]),
    "nullable": (of({"type": "string", "nullable": True}), ["x", None], [1]),
    "a name in place of a pointer": (
        of({"$ref": "#word"}, **{"$defs": {"w": {"$anchor": "word", "type": "string"}}}),
        ["x"],
        [1],
    ),
    "a reference to an odd place": (
        of(
            {"$ref": "#/components/schemas/W"},
            components={"schemas": {"W": {"type": "string", "example": 1}}},
        ),
        ["x"],
        [1],
    ),
    "a pattern that the agent refuses": (of({"type": "string", "pattern": r"^\_\-x$"}), ["_-x"], ["x"]),
    "a property that matches a pattern": (
        of({"type": "object", "properties": {"ab": {}}, "patternProperties": {"^a": {"type": "string"}}}),
        [{"ab": "x"}],
        [{"ab": 1}],
    ),
    "dependent": (
        of({"dependentRequired": {"b": ["c", "c"]}, "dependentSchemas": {"b": {"required": ["d"]}}}),
        [{"b": 1, "c": 1, "d": 1}, {}],
        [{"b": 1, "c": 1}, {"b": 1, "d": 1}],
    ),
    "dependencies": (of({"dependencies": {"b": ["c"]}}), [{"b": 1, "c": 1}], [{"b": 1}]),
    "unevaluated": (
        of({"allOf": [{"properties": {"b": {}}}], "unevaluatedProperties": False}),
        [{"b": 1}],
        [{"c": 1}],
    ),
    "if alone": (of({"if": {"required": ["b"]}}), [{}, {"b": 1}], []),
    "then alone": (of({"then": {"required": ["b"]}}), [{}], []),
    "counted contains": (of({"contains": {"const": 1}, "minContains": 2}), [[1, 1]], [[1]]),
    "contains nothing": (of({"contains": {"const": 1}, "minContains": 0}), [[]], []),
    "negation of a tuple": (of({"not": POINT}), [["x", 1]], [[1, "x"]]),
    "names twice": (of({"required": ["b", "b"], "enum": [{"b": 1}, {"b": 1}]}), [{"b": 1}], [{}]),
}


@pytest.mark.parametrize("form", ORDINARY)
def test_an_ordinary_schema_is_taken_and_the_answer_is_checked_against_it(form: str) -> None:
    schema, right, wrong = ORDINARY[form]
    json_schema.check_output_schema(schema, "")
    for value in right:
        assert json_schema.validation_error(schema, {"a": value}) is None
    for value in wrong:
        assert json_schema.validation_error(schema, {"a": value}) is not None


@pytest.mark.parametrize("form", ORDINARY)
def test_the_agents_schema_is_valid_in_both_dialects_and_refuses_no_right_answer(form: str) -> None:
    schema, right, _ = ORDINARY[form]
    translated = agent_schema(schema)
    for dialect in (Draft7Validator, Draft202012Validator):
        dialect.check_schema(translated)
        for value in right:
            assert dialect(translated).is_valid({"a": value})


def test_a_schema_that_needs_no_translation_stays_as_it_is() -> None:
    schema = {
        "type": "object",
        "description": "A person.",
        "properties": {
            "name": {"type": "string", "minLength": 1, "pattern": "^[A-Z]"},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 3},
            "age": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}], "default": None},
            "not": {"not": {"const": 3}},
        },
        "required": ["name"],
        "additionalProperties": False,
        "$defs": {"tag": {"enum": ["a", "b"], "title": "Tag"}},
    }
    assert agent_schema(schema) == modernize(schema) == schema
    assert list(agent_schema(schema)) == list(schema)


def test_the_order_of_a_tuple_is_told_to_the_model() -> None:
    translated = agent_schema(of({**POINT, "description": "A point."}))["properties"]["a"]
    assert translated["items"] == {"anyOf": [{"type": "number"}, {"type": "string"}]}
    assert (translated["minItems"], translated["maxItems"]) == (2, 2)
    assert translated["description"] == (
        'A point. The items are, in this order: [{"type": "number"}, {"type": "string"}]'
    )


def test_a_reference_at_the_root_becomes_the_object_that_it_means() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}
    translated = agent_schema({"$defs": {"Node": node}, "$ref": "#/$defs/Node"})
    assert translated == {"$defs": {"Node": node}, **node}


@pytest.mark.parametrize(
    ("pattern", "is_taken"),
    [
        (r"^[\w.+-]+@[\w-]+\.[a-z]{2,}$", True),
        (r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$", True),
        (r"^(?:a|b)*?[^x]\u00e9$", True),
        (r"\-", False),
        (r"[\w-a]", False),
        ("(?P<n>a)", False),
        ("a{2,1}", False),
        ("(?=a)*", False),
        ("a**", False),
        ("*a", False),
        ("(a", False),
        ("a)", False),
        ("]", False),
        (r"\1", False),
    ],
)
def test_a_pattern_is_left_to_the_agent_only_if_its_engine_surely_takes_it(
    pattern: str, *, is_taken: bool
) -> None:
    assert is_surely_ecmascript(pattern) is is_taken
