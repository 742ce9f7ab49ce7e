"""Validation of JSON Schemas that callers send, and of answers against them, within bounds. Pure.

Nothing is fetched and no pattern is run: a regular expression can be made to run for years. The agent's own check
includes patterns; it runs in the agent's process, under the agent's limits.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend, validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from steadyhand.errors import InvalidRequest

MAX_BYTES = 64 * 1024
MAX_DEPTH = 40
MAX_SUBSCHEMAS = 5_000
MAX_REFERENCES = 500
MAX_EXPANDED_SCHEMAS = 100_000
"""The maximum number of schemas once each reference is replaced by its target; a cycle counts once."""
MAX_VALIDATION_STEPS = 20_000
"""The keywords that are checked before the validation of an answer ends without an error."""
_MAX_UNIQUE_ITEMS = 1_000
_MAX_MESSAGE_LENGTH = 160

_TYPES = frozenset({"null", "boolean", "object", "array", "number", "integer", "string"})
_SCHEMA_KEYWORDS: tuple[str, ...] = (
    "additionalProperties",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
)
_SCHEMA_KEYWORDS += ("additionalItems", "unevaluatedItems", "unevaluatedProperties", "contentSchema")
_SCHEMA_LIST_KEYWORDS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SCHEMA_MAP_KEYWORDS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
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
_SKIPPED_KEYWORDS = ("pattern", "patternProperties", "unevaluatedProperties", "unevaluatedItems", "format")


class _StepLimitReached(Exception):
    """A validation that would take too long."""


def check_schema(schema: Mapping[str, Any], pointer: str) -> None:
    """Check a schema before it is used; `pointer` is the JSON pointer of the schema in the request.

    Raise `InvalidRequest` at the wrong place: not a schema, too deep, too large, a reference to another document.
    """
    if len(json.dumps(schema, ensure_ascii=False, separators=(",", ":")).encode()) > MAX_BYTES:
        raise InvalidRequest.at(pointer, f"is larger than {MAX_BYTES // 1024} KiB")
    count, references = 0, 0
    pending: list[tuple[Any, str, int]] = [(schema, pointer, 1)]
    while pending:
        subschema, at, depth = pending.pop()
        count += 1
        if count > MAX_SUBSCHEMAS:
            raise InvalidRequest.at(pointer, f"has more than {MAX_SUBSCHEMAS} schemas in it")
        if depth > MAX_DEPTH:
            raise InvalidRequest.at(pointer, f"has more than {MAX_DEPTH} levels")
        if isinstance(subschema, bool):
            continue
        if not isinstance(subschema, Mapping):
            raise InvalidRequest.at(at, "has to be a JSON Schema: an object or a boolean")
        if "$ref" in subschema:
            references += 1
            _check_reference(subschema["$ref"], schema, f"{at}/$ref")
        if references > MAX_REFERENCES:
            raise InvalidRequest.at(pointer, f"has more than {MAX_REFERENCES} references")
        _check_keywords(subschema, at)
        pending += [(inner, f"{at}/{name}", depth + 1) for name, inner in _subschemas(subschema, at)]
    if references and _expanded_size(schema, pointer) > MAX_EXPANDED_SCHEMAS:
        raise InvalidRequest.at(
            pointer, f"expands by its references to more than {MAX_EXPANDED_SCHEMAS:,} schemas"
        )


def _expanded_size(schema: Mapping[str, Any], pointer: str) -> int:
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
            children = [inner for _, inner in _subschemas(subschema, pointer)]
            if str(subschema.get("$ref", "")).startswith("#/"):
                children.append(_resolve_reference(subschema["$ref"], schema))
            pending.append((subschema, children))
            pending += [(inner, None) for inner in children]
    return sizes[id(schema)]


def _subschemas(schema: Mapping[str, Any], pointer: str) -> Iterator[tuple[str, Any]]:
    """Yield the direct subschemas of a schema, each with its relative pointer."""
    for name in _SCHEMA_KEYWORDS:
        if name in schema:
            yield name, schema[name]
    for name in (*_SCHEMA_LIST_KEYWORDS, "items"):
        inner = schema.get(name)
        if name == "items" and not isinstance(inner, list):
            if inner is not None:
                yield name, inner
        elif name in schema:
            if not isinstance(inner, list) or not inner:
                raise InvalidRequest.at(f"{pointer}/{name}", "has to be a list of schemas")
            yield from ((f"{name}/{index}", subschema) for index, subschema in enumerate(inner))
    for name in _SCHEMA_MAP_KEYWORDS:
        if name in schema:
            inner = schema[name]
            if not isinstance(inner, Mapping):
                raise InvalidRequest.at(f"{pointer}/{name}", "has to be an object of schemas")
            yield from ((f"{name}/{_escape_pointer(key)}", subschema) for key, subschema in inner.items())


def rebase_references(schema: Any, base: str) -> Any:
    """Return a schema for the place `base` in another schema, with its references adapted."""
    if not isinstance(schema, Mapping):
        return schema
    copy = dict(schema)
    reference = copy.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        copy["$ref"] = base + reference[1:]
    for name in copy.keys() & {*_SCHEMA_KEYWORDS, *_SCHEMA_LIST_KEYWORDS, "items"}:
        inner = copy[name]
        copy[name] = (
            [rebase_references(item, base) for item in inner]
            if isinstance(inner, list)
            else rebase_references(inner, base)
        )
    for name in copy.keys() & set(_SCHEMA_MAP_KEYWORDS):
        copy[name] = {key: rebase_references(item, base) for key, item in copy[name].items()}
    return copy


def _escape_pointer(key: str) -> str:
    return key[:64].replace("~", "~0").replace("/", "~1")


def _check_reference(reference: Any, root: Mapping[str, Any], pointer: str) -> None:
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise InvalidRequest.at(pointer, "may only refer to a place within this schema, as in '#/$defs/name'")
    if reference != "#" and not reference.startswith("#/"):
        return  # a named anchor; a missing one is an error when it is used
    if _resolve_reference(reference, root) is None:
        raise InvalidRequest.at(pointer, "refers to nothing in this schema")


def _resolve_reference(reference: str, root: Mapping[str, Any]) -> Any:
    """Return the target of a reference by pointer, or None."""
    node: Any = root
    for part in reference[2:].split("/") if len(reference) > 1 else ():
        key = part.replace("%25", "%").replace("~1", "/").replace("~0", "~")
        if isinstance(node, Sequence) and not isinstance(node, str) and key.isdecimal():
            node = node[int(key)] if int(key[:9]) < len(node) else None
        else:
            node = node.get(key) if isinstance(node, Mapping) else None
        if node is None:
            return None
    return node


def _check_keywords(schema: Mapping[str, Any], pointer: str) -> None:
    for name in _UNSUPPORTED_KEYWORDS:
        if name in schema:
            raise InvalidRequest.at(f"{pointer}/{name}", "is not supported")
    type_names = schema.get("type", [])
    for type_name in type_names if isinstance(type_names, list) else [type_names]:
        if not isinstance(type_name, str) or type_name not in _TYPES:
            raise InvalidRequest.at(f"{pointer}/type", f"has to be one of {', '.join(sorted(_TYPES))}")
    for name in _NUMBER_KEYWORDS:
        # In older drafts two of these were booleans.
        if name in schema and not isinstance(schema[name], int | float):
            raise InvalidRequest.at(f"{pointer}/{name}", "has to be a number")
    for name in _COUNT_KEYWORDS:
        if name in schema and not (_is_integer(schema[name]) and schema[name] >= 0):
            raise InvalidRequest.at(f"{pointer}/{name}", "has to be a whole number, 0 or more")
    if schema.get("multipleOf") == 0:
        raise InvalidRequest.at(f"{pointer}/multipleOf", "has to be above 0")
    _check_lists(schema, pointer)


def _check_lists(schema: Mapping[str, Any], pointer: str) -> None:
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise InvalidRequest.at(f"{pointer}/required", "has to be a list of names")
    if not isinstance(schema.get("enum", []), list):
        raise InvalidRequest.at(f"{pointer}/enum", "has to be a list")
    if not isinstance(schema.get("pattern", ""), str):
        raise InvalidRequest.at(f"{pointer}/pattern", "has to be a regular expression")


def _is_integer(value: Any) -> bool:
    return not isinstance(value, bool) and (isinstance(value, int) or value == int(value))


def validation_error(schema: Mapping[str, Any], value: Any) -> str | None:
    """Return in one line the first error of a value, with its place in the value and in the schema; None if valid.

    A validation that would take too long returns None. It blocks for up to a second: call it in a thread.
    """
    validator_class = validator_for(schema, default=Draft202012Validator)
    counter = _StepCounter()
    keywords = {
        name: counter.count_checks(check)
        for name, check in validator_class.VALIDATORS.items()
        if name not in _SKIPPED_KEYWORDS
    }
    keywords |= dict.fromkeys(_SKIPPED_KEYWORDS, _skip)
    validator = extend(validator_class, keywords)(  # type: ignore[no-untyped-call]
        schema, registry=Registry()
    )
    try:
        error = next(validator.iter_errors(value), None)
    except (_StepLimitReached, RecursionError, Unresolvable, OverflowError, ArithmeticError):
        return None
    return None if error is None else _format_error(error)


def _format_error(error: ValidationError) -> str:
    instance_path = "".join(f"/{part}" for part in error.absolute_path) or "/"
    schema_path = "".join(f"/{part}" for part in error.absolute_schema_path)
    message = " ".join(error.message.split())
    text = message if len(message) <= _MAX_MESSAGE_LENGTH else f"{message[:_MAX_MESSAGE_LENGTH]}…"
    return f"{instance_path}: {text} (schema: {schema_path})"


_KeywordCheck = Callable[[Any, Any, Any, Any], Any]


class _StepCounter:
    def __init__(self) -> None:
        self._left = MAX_VALIDATION_STEPS

    def count_checks(self, check: _KeywordCheck) -> _KeywordCheck:
        def counting(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
            # A list of allowed values costs by its length; the properties of an object are counted one by one.
            self._left -= 1 + (len(value) // 8 if isinstance(value, list) else 0)
            if self._left < 0:
                raise _StepLimitReached
            if (
                check is _UNIQUE_ITEMS_CHECK
                and isinstance(instance, list)
                and len(instance) > _MAX_UNIQUE_ITEMS
            ):
                return None
            if check is _ADDITIONAL_PROPERTIES_CHECK and "patternProperties" in schema:
                return None  # which properties are additional depends on the patterns
            return check(validator, value, instance, schema)

        return counting


_UNIQUE_ITEMS_CHECK = Draft202012Validator.VALIDATORS["uniqueItems"]
_ADDITIONAL_PROPERTIES_CHECK = Draft202012Validator.VALIDATORS["additionalProperties"]


def _skip(*_: Any) -> None:
    return None
