"""JSON Schemas that others send: taken within bounds, and answers checked against them within bounds. Pure.

Nothing is fetched and no pattern is run: a regular expression can be made to run for years. The agent's own check has
those; it runs in the agent's process, under the agent's limits.
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

MOST_BYTES = 64 * 1024
DEEPEST = 40
MOST_SCHEMAS = 5_000
MOST_REFERENCES = 500
MOST_UNFOLDED = 100_000
"""How many schemas it may be with each reference replaced by what it refers to, but for those that go round."""
STEPS = 20_000
"""How many keywords are looked at before an answer counts as one that we could not check."""
_MOST_UNIQUE = 1_000
_SHOWN = 160

_TYPES = frozenset({"null", "boolean", "object", "array", "number", "integer", "string"})
_ONE: tuple[str, ...] = ("additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_ONE += ("additionalItems", "unevaluatedItems", "unevaluatedProperties", "contentSchema")
_MANY = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COUNTS: tuple[str, ...] = (
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
)
_COUNTS += ("minContains", "maxContains")
_NOT_TAKEN = ("$dynamicRef", "$recursiveRef")
_NOT_RUN = ("pattern", "patternProperties", "unevaluatedProperties", "unevaluatedItems", "format")


class _OutOfSteps(Exception):
    """A check that would take too long."""


def accept(schema: Mapping[str, Any], where: str) -> None:
    """Look through a schema before it is used; `where` is the pointer of its place in the request.

    Raises `InvalidRequest` that says what is wrong and where: no schema, too deep, too many, a reference to elsewhere.
    """
    if len(json.dumps(schema, ensure_ascii=False, separators=(",", ":")).encode()) > MOST_BYTES:
        raise InvalidRequest.at(where, f"is larger than {MOST_BYTES // 1024} KiB")
    seen, references = 0, 0
    waiting: list[tuple[Any, str, int]] = [(schema, where, 1)]
    while waiting:
        each, at, depth = waiting.pop()
        seen += 1
        if seen > MOST_SCHEMAS:
            raise InvalidRequest.at(where, f"has more than {MOST_SCHEMAS} schemas in it")
        if depth > DEEPEST:
            raise InvalidRequest.at(where, f"has more than {DEEPEST} levels")
        if isinstance(each, bool):
            continue
        if not isinstance(each, Mapping):
            raise InvalidRequest.at(at, "has to be a JSON Schema: an object or a boolean")
        if "$ref" in each:
            references += 1
            _check_reference(each["$ref"], schema, f"{at}/$ref")
        if references > MOST_REFERENCES:
            raise InvalidRequest.at(where, f"has more than {MOST_REFERENCES} references")
        _check_words(each, at)
        waiting += [(inner, f"{at}/{name}", depth + 1) for name, inner in _below(each, at)]
    if references and _unfolded(schema, where) > MOST_UNFOLDED:
        raise InvalidRequest.at(where, f"unfolds by its references into more than {MOST_UNFOLDED:,} schemas")


def _unfolded(schema: Mapping[str, Any], where: str) -> int:
    """Count the schemas that there are once references are followed: a few lines can refer to each other for ever."""
    sizes: dict[int, int] = {}
    begun: set[int] = set()
    waiting: list[tuple[Any, list[Any] | None]] = [(schema, None)]
    while waiting:
        each, below = waiting.pop()
        if below is not None:
            sizes[id(each)] = min(MOST_UNFOLDED + 1, 1 + sum(sizes.get(id(inner), 0) for inner in below))
        elif isinstance(each, Mapping) and id(each) not in begun:
            begun.add(id(each))
            below = [inner for _, inner in _below(each, where)]
            if str(each.get("$ref", "")).startswith("#/"):
                below.append(_referred(each["$ref"], schema))
            waiting.append((each, below))
            waiting += [(inner, None) for inner in below]
    return sizes[id(schema)]


def _below(schema: Mapping[str, Any], at: str) -> Iterator[tuple[str, Any]]:
    """Give the schemas that lie directly within one, by their place in it."""
    for name in _ONE:
        if name in schema:
            yield name, schema[name]
    for name in (*_MANY, "items"):
        inner = schema.get(name)
        if name == "items" and not isinstance(inner, list):
            if inner is not None:
                yield name, inner
        elif name in schema:
            if not isinstance(inner, list) or not inner:
                raise InvalidRequest.at(f"{at}/{name}", "has to be a list of schemas")
            yield from ((f"{name}/{place}", each) for place, each in enumerate(inner))
    for name in _NAMED:
        if name in schema:
            inner = schema[name]
            if not isinstance(inner, Mapping):
                raise InvalidRequest.at(f"{at}/{name}", "has to be an object of schemas")
            yield from ((f"{name}/{_escaped(key)}", each) for key, each in inner.items())


def moved(schema: Any, to: str) -> Any:
    """Give a schema as it has to stand at the place `to` within another one: its references follow it there."""
    if not isinstance(schema, Mapping):
        return schema
    found = dict(schema)
    reference = found.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        found["$ref"] = to + reference[1:]
    for name in found.keys() & {*_ONE, *_MANY, "items"}:
        inner = found[name]
        found[name] = [moved(each, to) for each in inner] if isinstance(inner, list) else moved(inner, to)
    for name in found.keys() & set(_NAMED):
        found[name] = {key: moved(each, to) for key, each in found[name].items()}
    return found


def _escaped(key: str) -> str:
    return key[:64].replace("~", "~0").replace("/", "~1")


def _check_reference(reference: Any, root: Mapping[str, Any], at: str) -> None:
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise InvalidRequest.at(at, "may only refer to a place within this schema, as in '#/$defs/name'")
    if reference != "#" and not reference.startswith("#/"):
        return  # a named anchor; whether it is there shows when it is used
    if _referred(reference, root) is None:
        raise InvalidRequest.at(at, "refers to nothing in this schema")


def _referred(reference: str, root: Mapping[str, Any]) -> Any:
    """Give what a reference by its place refers to; null for nothing."""
    place: Any = root
    for part in reference[2:].split("/") if len(reference) > 1 else ():
        key = part.replace("%25", "%").replace("~1", "/").replace("~0", "~")
        if isinstance(place, Sequence) and not isinstance(place, str) and key.isdecimal():
            place = place[int(key)] if int(key[:9]) < len(place) else None
        else:
            place = place.get(key) if isinstance(place, Mapping) else None
        if place is None:
            return None
    return place


def _check_words(schema: Mapping[str, Any], at: str) -> None:
    for name in _NOT_TAKEN:
        if name in schema:
            raise InvalidRequest.at(f"{at}/{name}", "is not taken")
    kinds = schema.get("type", [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if not isinstance(kind, str) or kind not in _TYPES:
            raise InvalidRequest.at(f"{at}/type", f"has to be one of {', '.join(sorted(_TYPES))}")
    for name in _NUMBERS:
        # Before they were numbers, two of these were booleans.
        if name in schema and not isinstance(schema[name], int | float):
            raise InvalidRequest.at(f"{at}/{name}", "has to be a number")
    for name in _COUNTS:
        if name in schema and not (_whole(schema[name]) and schema[name] >= 0):
            raise InvalidRequest.at(f"{at}/{name}", "has to be a whole number, 0 or more")
    if schema.get("multipleOf") == 0:
        raise InvalidRequest.at(f"{at}/multipleOf", "has to be above 0")
    _check_lists(schema, at)


def _check_lists(schema: Mapping[str, Any], at: str) -> None:
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise InvalidRequest.at(f"{at}/required", "has to be a list of names")
    if not isinstance(schema.get("enum", []), list):
        raise InvalidRequest.at(f"{at}/enum", "has to be a list")
    if not isinstance(schema.get("pattern", ""), str):
        raise InvalidRequest.at(f"{at}/pattern", "has to be a regular expression")


def _whole(value: Any) -> bool:
    return not isinstance(value, bool) and (isinstance(value, int) or value == int(value))


def fault(schema: Mapping[str, Any], value: Any) -> str | None:
    """Say in one line what of a value does not fit a schema, with both places; null when nothing is found.

    What would take too long counts as nothing found. It blocks for up to a second: call it in a thread.
    """
    kind = validator_for(schema, default=Draft202012Validator)
    steps = _Steps()
    counted = {name: steps.counted(check) for name, check in kind.VALIDATORS.items() if name not in _NOT_RUN}
    counted |= dict.fromkeys(_NOT_RUN, _nothing)
    validator = extend(kind, counted)(  # type: ignore[no-untyped-call]
        schema, registry=Registry()
    )
    try:
        found = next(validator.iter_errors(value), None)
    except (_OutOfSteps, RecursionError, Unresolvable, OverflowError, ArithmeticError):
        return None
    return None if found is None else _sentence(found)


def _sentence(found: ValidationError) -> str:
    at = "".join(f"/{part}" for part in found.absolute_path) or "/"
    place = "".join(f"/{part}" for part in found.absolute_schema_path)
    message = " ".join(found.message.split())
    text = message if len(message) <= _SHOWN else f"{message[:_SHOWN]}…"
    return f"{at}: {text} (schema: {place})"


_Check = Callable[[Any, Any, Any, Any], Any]


class _Steps:
    def __init__(self) -> None:
        self._left = STEPS

    def counted(self, check: _Check) -> _Check:
        def counting(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
            # A list of allowed values is gone through; an object of properties has a step for each below it.
            self._left -= 1 + (len(value) // 8 if isinstance(value, list) else 0)
            if self._left < 0:
                raise _OutOfSteps
            if check is _UNIQUE and isinstance(instance, list) and len(instance) > _MOST_UNIQUE:
                return None
            if check is _ADDITIONAL and "patternProperties" in schema:
                return None  # which properties are additional depends on the patterns
            return check(validator, value, instance, schema)

        return counting


_UNIQUE = Draft202012Validator.VALIDATORS["uniqueItems"]
_ADDITIONAL = Draft202012Validator.VALIDATORS["additionalProperties"]


def _nothing(*_: Any) -> None:
    return None
