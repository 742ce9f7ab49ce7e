"""Validation of JSON Schemas that callers send, and of answers against them, within bounds. Pure.

Nothing is fetched, and a pattern is run only by an engine that cannot take long. Other patterns are left to the agent's
own check, which runs in the agent's process, under the agent's limits.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from steadyhand.errors import InvalidRequest
from steadyhand.json_schema.agent_form import agent_schema
from steadyhand.json_schema.dialects import (
    DIALECTS,
    SCHEMA_KEYWORDS,
    SCHEMA_LIST_KEYWORDS,
    SCHEMA_MAP_KEYWORDS,
    dialect_of,
    find_anchors,
    resolve_pointer,
    subschemas,
)
from steadyhand.json_schema.patterns import compile_linear, is_surely_ecmascript

MAX_BYTES = 64 * 1024
MAX_DEPTH = 40
MAX_SUBSCHEMAS = 5_000
MAX_REFERENCES = 500
MAX_EXPANDED_SCHEMAS = 100_000
"""The maximum number of schemas once each reference is replaced by its target; a cycle counts once."""

_TYPES = frozenset({"null", "boolean", "object", "array", "number", "integer", "string"})
_NUMBER_KEYWORDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COUNT_KEYWORDS: tuple[str, ...] = (
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
)
_COUNT_KEYWORDS += ("minContains", "maxContains")
_UNSUPPORTED_KEYWORDS = ("$dynamicRef", "$recursiveRef")
UNSUPPORTED_SCHEMA = "unsupported_schema"
"""The code for a valid schema that no agent can be asked for."""
UNEVALUATED_KEYWORDS = ("unevaluatedProperties", "unevaluatedItems")
MAX_AGENT_SCHEMA_BYTES = 96 * 1024
"""The largest schema in the form for the agent, which is one argument of its command line."""


def unsupported(pointer: str, reason: str) -> InvalidRequest:
    """Return the error for a valid schema that no agent can be asked for."""
    return InvalidRequest.at(pointer, reason, code=UNSUPPORTED_SCHEMA)


def check_output_schema(schema: Mapping[str, Any], pointer: str) -> None:
    """Check a schema of an answer, as `check_schema`; the answer is always one object."""
    check_schema(schema, pointer)
    types = schema.get("type", "object")
    if "object" not in (types if isinstance(types, list) else [types]):
        raise unsupported(f"{pointer}/type", "has to be object: the answer is one object")
    size = len(json.dumps(agent_schema(schema), ensure_ascii=False, separators=(",", ":")).encode())
    if size > MAX_AGENT_SCHEMA_BYTES:
        raise unsupported(pointer, f"is larger than {MAX_AGENT_SCHEMA_BYTES // 1024} KiB in the agent's form")


def check_schema(schema: Mapping[str, Any], pointer: str) -> None:
    """Check a schema before it is used; `pointer` is the JSON pointer of the schema in the request.

    Raise `InvalidRequest` at the wrong place: not a schema, too deep, too large, a reference to another document.
    """
    if (
        len(json.dumps(schema, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))
        > MAX_BYTES
    ):
        raise InvalidRequest.at(pointer, f"is larger than {MAX_BYTES // 1024} KiB")
    if dialect_of(schema) is None:
        known = ", ".join(sorted(f"{name}" for name in DIALECTS if name != "schema"))
        raise unsupported(f"{pointer}/$schema", f"names an unknown dialect of JSON Schema; known are {known}")
    _SchemaCheck(schema, pointer).run()


class _SchemaCheck:
    """Checks the schemas in one document, and those that its references lead to."""

    def __init__(self, root: Mapping[str, Any], pointer: str) -> None:
        self._root = root
        self._pointer = pointer
        self._references = 0
        self._uses: set[str] = set()
        """The keywords in use that only go with each other under conditions."""

    def run(self) -> None:
        pending: list[tuple[Any, str, int]] = [(self._root, self._pointer, 1)]
        targets: list[tuple[Any, str]] = []
        visited: set[int] = set()
        count = 0
        while pending:
            schema, at, depth = pending.pop()
            count += 1
            if count > MAX_SUBSCHEMAS:
                raise InvalidRequest.at(self._pointer, f"has more than {MAX_SUBSCHEMAS} schemas in it")
            if depth > MAX_DEPTH:
                raise InvalidRequest.at(self._pointer, f"has more than {MAX_DEPTH} levels")
            if isinstance(schema, Mapping):
                visited.add(id(schema))
                self._check(schema, at)
                pending += [(inner, f"{at}/{name}", depth + 1) for name, inner in _subschemas(schema, at)]
                if "$ref" in schema:
                    targets.append((self._reference_target(schema["$ref"], f"{at}/$ref"), f"{at}/$ref"))
            elif not isinstance(schema, bool):
                raise InvalidRequest.at(at, "has to be a JSON Schema: an object or a boolean")
            while targets and not pending:
                # A target may be at a place that holds no schema else.
                target, at = targets.pop()
                pending += [] if id(target) in visited else [(target, at, 1)]
        if self._references and expanded_size(self._root) > MAX_EXPANDED_SCHEMAS:
            raise InvalidRequest.at(
                self._pointer, f"expands by its references to more than {MAX_EXPANDED_SCHEMAS:,} schemas"
            )
        if "patternProperties" in self._uses and len(self._uses) > 1:
            raise unsupported(self._pointer, "has unevaluated keywords beside patternProperties")

    def _check(self, schema: Mapping[str, Any], at: str) -> None:
        _check_keywords(schema, at)
        self._uses |= schema.keys() & {"patternProperties", *UNEVALUATED_KEYWORDS}
        if schema is not self._root:
            _check_embedded_id(schema, at)

    def _reference_target(self, reference: Any, at: str) -> Any:
        self._references += 1
        if self._references > MAX_REFERENCES:
            raise InvalidRequest.at(self._pointer, f"has more than {MAX_REFERENCES} references")
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise InvalidRequest.at(at, "may only refer to a place within this schema, as in '#/$defs/name'")
        target = find_reference_target(self._root, reference)
        if target is None:
            raise InvalidRequest.at(at, "refers to nothing in this schema")
        return target


def find_reference_target(root: Mapping[str, Any], reference: str) -> Any:
    """Return the target of a reference by pointer or by a name of a schema, or None."""
    if reference == "#" or reference.startswith("#/"):
        return resolve_pointer(root, reference)
    return find_anchors(root).get(unquote(reference))


def _check_embedded_id(schema: Mapping[str, Any], pointer: str) -> None:
    """Refuse references below an `$id`: they would be relative to it."""
    identifier = schema.get("$id")
    if not isinstance(identifier, str) or identifier.startswith("#"):
        return
    pending: list[Any] = [schema]
    while pending:
        inner = pending.pop()
        if isinstance(inner, Mapping):
            if "$ref" in inner:
                raise unsupported(f"{pointer}/$id", "is not supported in a schema with references")
            pending += subschemas(inner)


def expanded_size(schema: Mapping[str, Any]) -> int:
    """Return the number of schemas once references are followed: a small schema can expand to a huge one."""
    sizes: dict[int, int] = {}
    visited: set[int] = set()
    pending: list[tuple[Any, list[Any] | None]] = [(schema, None)]
    while pending:
        subschema, children = pending.pop()
        if children is not None:
            sizes[id(subschema)] = min(
                MAX_EXPANDED_SCHEMAS + 1, 1 + sum(sizes.get(id(inner), 0) for inner in children)
            )
        elif isinstance(subschema, Mapping) and id(subschema) not in visited:
            visited.add(id(subschema))
            children = list(subschemas(subschema))
            if "$ref" in subschema and subschema["$ref"] != "#":
                children.append(find_reference_target(schema, subschema["$ref"]))
            pending.append((subschema, children))
            pending += [(inner, None) for inner in children]
    return sizes[id(schema)]


def _subschemas(schema: Mapping[str, Any], pointer: str) -> Iterator[tuple[str, Any]]:
    """Yield the direct subschemas of a schema, each with its relative pointer; raise `InvalidRequest`."""
    for name, inner in schema.items():
        if name in SCHEMA_KEYWORDS or (name == "items" and not isinstance(inner, list)):
            yield name, inner
        elif name in SCHEMA_LIST_KEYWORDS or name == "items":
            if not isinstance(inner, list) or not inner:
                raise InvalidRequest.at(f"{pointer}/{name}", "has to be a list of schemas")
            yield from ((f"{name}/{index}", subschema) for index, subschema in enumerate(inner))
        elif name in SCHEMA_MAP_KEYWORDS or name == "dependencies":
            if not isinstance(inner, Mapping):
                raise InvalidRequest.at(f"{pointer}/{name}", "has to be an object of schemas")
            for key, subschema in inner.items():
                if name == "dependencies" and isinstance(subschema, list):
                    _check_names(subschema, f"{pointer}/{name}/{_escape_pointer(key)}")
                else:
                    yield f"{name}/{_escape_pointer(key)}", subschema


def _escape_pointer(key: str) -> str:
    return key[:64].replace("~", "~0").replace("/", "~1")


def _check_keywords(schema: Mapping[str, Any], pointer: str) -> None:
    for name in _UNSUPPORTED_KEYWORDS:
        if name in schema:
            raise unsupported(f"{pointer}/{name}", "is not supported")
    type_names = schema.get("type", "object")
    for type_name in (type_names or [None]) if isinstance(type_names, list) else [type_names]:
        if not isinstance(type_name, str) or type_name not in _TYPES:
            raise InvalidRequest.at(f"{pointer}/type", f"has to be one of {', '.join(sorted(_TYPES))}")
    for name in _NUMBER_KEYWORDS:
        # In older drafts two of these were booleans.
        if name in schema and not isinstance(schema[name], int | float):
            raise InvalidRequest.at(f"{pointer}/{name}", "has to be a number")
    for name in _COUNT_KEYWORDS:
        if name in schema and not (_is_integer(schema[name]) and schema[name] >= 0):
            raise InvalidRequest.at(f"{pointer}/{name}", "has to be a whole number, 0 or more")
    if schema.get("multipleOf", 1) <= 0:
        raise InvalidRequest.at(f"{pointer}/multipleOf", "has to be above 0")
    if not isinstance(schema.get("uniqueItems", False), bool):
        raise InvalidRequest.at(f"{pointer}/uniqueItems", "has to be true or false")
    _check_lists(schema, pointer)
    _check_patterns(schema, pointer)


def _check_lists(schema: Mapping[str, Any], pointer: str) -> None:
    _check_names(schema.get("required", []), f"{pointer}/required")
    if not isinstance(schema.get("enum", [None]), list) or not schema.get("enum", [None]):
        raise InvalidRequest.at(f"{pointer}/enum", "has to be a list of at least one value")
    dependent = schema.get("dependentRequired", {})
    if not isinstance(dependent, Mapping):
        raise InvalidRequest.at(f"{pointer}/dependentRequired", "has to be an object of lists")
    for key, names in dependent.items():
        _check_names(names, f"{pointer}/dependentRequired/{_escape_pointer(key)}")


def _check_names(names: Any, pointer: str) -> None:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidRequest.at(pointer, "has to be a list of names")


def _check_patterns(schema: Mapping[str, Any], pointer: str) -> None:
    pattern = schema.get("pattern", "")
    if not isinstance(pattern, str):
        raise InvalidRequest.at(f"{pointer}/pattern", "has to be a regular expression")
    if not is_surely_ecmascript(pattern) and compile_linear(pattern) is None:
        raise unsupported(f"{pointer}/pattern", "is no regular expression that can be checked")
    for name in (
        schema.get("patternProperties", ()) if isinstance(schema.get("patternProperties"), Mapping) else ()
    ):
        if compile_linear(name) is None:
            raise unsupported(
                f"{pointer}/patternProperties", "has a name that is no regular expression that can be checked"
            )


def _is_integer(value: Any) -> bool:
    return not isinstance(value, bool) and (
        isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    )
