"""The part of a caller's JSON Schema that an agent takes. Pure.

The agent compiles draft 7 and refuses each keyword that it does not know; the model's API demands draft 2020-12. What
is valid in both is kept. Of the rest the answer is checked afterwards (`json_schema.validation_error`), so the agent's
schema accepts at least each answer that the caller's accepts.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from steadyhand.json_schema.dialects import modernize, resolve_pointer, subschemas
from steadyhand.json_schema.patterns import compile_linear, is_surely_ecmascript

_MAX_NOTE_LENGTH = 2_000
_SAME_KEYWORDS = frozenset(
    {
        "$ref",
        "const",
        "default",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "maxItems",
        "maxLength",
        "maxProperties",
    }
    | {"maximum", "minItems", "minLength", "minProperties", "minimum", "multipleOf", "uniqueItems"}
)
_TEXT_KEYWORDS = frozenset(
    {"$comment", "contentEncoding", "contentMediaType", "description", "format", "title"}
)
_FLAG_KEYWORDS = frozenset({"deprecated", "readOnly", "writeOnly"})
_UNSAYABLE_KEYWORDS = frozenset(
    {"maxContains", "minContains", "prefixItems", "unevaluatedItems", "unevaluatedProperties"}
)
_ROOT_ANNOTATIONS = frozenset({"$ref", "$defs", "definitions", "title", "description", "default", "$comment"})
_MAX_ROOT_REFERENCES = 10


def agent_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checked schema (`json_schema.check_schema`) of an object as an agent takes it."""
    modern = modernize(schema)
    is_exact = not any(_loses_keywords(each) for each in _all_subschemas(modern))
    root: dict[str, Any] = _Restriction(is_exact=is_exact).apply(modern)
    # The model's API wants the type of the object at the root.
    return {"type": "object", **_inline_root_reference(root)}


def _inline_root_reference(root: dict[str, Any]) -> dict[str, Any]:
    target: Any = root
    for _ in range(_MAX_ROOT_REFERENCES):
        if not isinstance(target, dict) or "$ref" not in target or not target.keys() <= _ROOT_ANNOTATIONS:
            break
        target = resolve_pointer(root, target["$ref"])
    if target is root or not isinstance(target, dict) or "$ref" in target:
        return root
    return {**target, **{key: value for key, value in root.items() if key != "$ref"}}


def _all_subschemas(root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    pending: list[Any] = [root]
    while pending:
        schema = pending.pop()
        if isinstance(schema, Mapping):
            found.append(schema)
            pending += subschemas(schema)
    return found


def _loses_keywords(schema: Mapping[str, Any]) -> bool:
    return (
        not _UNSAYABLE_KEYWORDS.isdisjoint(schema)
        or not is_surely_ecmascript(schema.get("pattern", ""))
        or not _keeps_pattern_properties(schema)
    )


def _keeps_pattern_properties(schema: Mapping[str, Any]) -> bool:
    """Return False if the agent may refuse the patterns of names; it does so if one matches a listed property."""
    for pattern in schema.get("patternProperties", {}):
        compiled = compile_linear(pattern)
        if compiled is None or not is_surely_ecmascript(pattern):
            return False
        if any(compiled.is_found_in(name) for name in schema.get("properties", {})):
            return False
    return True


class _Restriction:
    """Restricts the schemas of one document; `is_exact` if nothing is lost in any of them."""

    def __init__(self, *, is_exact: bool) -> None:
        self._is_exact = is_exact

    def apply(self, schema: Any) -> Any:
        """Return a schema with the keywords that an agent takes, in the order of the caller."""
        if not isinstance(schema, Mapping):
            return schema
        kept: dict[str, Any] = {}
        notes: list[str] = []
        for key, value in schema.items():
            if (
                key in _SAME_KEYWORDS
                or (key in _TEXT_KEYWORDS and isinstance(value, str))
                or (key in _FLAG_KEYWORDS and isinstance(value, bool))
                or (key == "examples" and isinstance(value, list))
            ):
                kept[key] = value
            elif key in ("$defs", "definitions", "properties"):
                kept[key] = {name: self.apply(inner) for name, inner in value.items()}
            elif key in ("allOf", "anyOf"):
                kept[key] = [self.apply(inner) for inner in value]
            elif key == "propertyNames":
                kept[key] = self.apply(value)
            else:
                self._apply_keyword(key, value, schema, kept, notes)
        self._finish(schema, kept, notes)
        return kept

    def _apply_keyword(
        self, key: str, value: Any, schema: Mapping[str, Any], kept: dict[str, Any], notes: list[str]
    ) -> None:
        if key == "type":
            kept[key] = _types(value, is_nullable=schema.get("nullable") is True)
        elif key in ("required", "enum"):
            kept[key] = _without_duplicates(value)
        elif key == "not" or (
            key in ("if", "then", "else") and "if" in schema and {"then", "else"} & schema.keys()
        ):
            if self._is_exact:
                kept[key] = self.apply(value)
        elif (key == "items" and "prefixItems" not in schema) or (
            key == "contains" and schema.get("minContains", 1) != 0
        ):
            kept[key] = self.apply(value)
        elif key == "pattern" and is_surely_ecmascript(value):
            kept[key] = value
        elif key == "pattern":
            notes.append(f"It matches the regular expression {value}")
        elif key == "patternProperties" and _keeps_pattern_properties(schema):
            kept[key] = {pattern: self.apply(inner) for pattern, inner in value.items()}
        elif key == "additionalProperties" and _keeps_pattern_properties(schema):
            kept[key] = self.apply(value)

    def _apply_tuple(
        self, prefix: Sequence[Any], schema: Mapping[str, Any], kept: dict[str, Any], notes: list[str]
    ) -> None:
        """Keep the length of a tuple and the kinds of its items; describe their order in words."""
        rest = schema.get("items", True)
        branches = [self.apply(each) for each in (*prefix, rest) if each is not False]
        if branches and True not in branches and {} not in branches:
            distinct = _without_duplicates(branches)
            kept["items"] = distinct[0] if len(distinct) == 1 else {"anyOf": distinct}
        if rest is False:
            kept["maxItems"] = min(len(prefix), schema.get("maxItems", len(prefix)))
        notes.append(
            f"The items are, in this order: {json.dumps(branches[: len(prefix)], ensure_ascii=False)}"
        )

    def _finish(self, schema: Mapping[str, Any], kept: dict[str, Any], notes: list[str]) -> None:
        if "prefixItems" in schema:
            self._apply_tuple(schema["prefixItems"], schema, kept, notes)
        if "oneOf" in schema:
            branches = [self.apply(inner) for inner in schema["oneOf"]]
            if self._is_exact:
                kept["oneOf"] = branches
            else:  # a branch that lost a keyword may take what another one takes, too
                kept.setdefault("allOf", []).append({"anyOf": branches})
        dependencies = self._dependencies(schema)
        if dependencies:
            kept["dependencies"] = dependencies
        if notes:
            text = " ".join([*([kept["description"]] if "description" in kept else []), *notes])
            kept["description"] = text[:_MAX_NOTE_LENGTH]

    def _dependencies(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Return both kinds of dependencies by the keyword of draft 7, which draft 2020-12 still describes."""
        dependencies: dict[str, Any] = {
            name: _without_duplicates(names) for name, names in schema.get("dependentRequired", {}).items()
        }
        for name, inner in schema.get("dependentSchemas", {}).items():
            restricted = self.apply(inner)
            if name in dependencies:
                restricted = {"allOf": [restricted, {"required": dependencies[name]}]}
            dependencies[name] = restricted
        return dependencies


def _types(types: Any, *, is_nullable: bool) -> Any:
    if not isinstance(types, list) and not is_nullable:
        return types
    listed = types if isinstance(types, list) else [types]
    return list(dict.fromkeys([*listed, *(["null"] if is_nullable else [])]))


def _without_duplicates(values: Sequence[Any]) -> list[Any]:
    return list({json.dumps(value, sort_keys=True): value for value in values}.values())
