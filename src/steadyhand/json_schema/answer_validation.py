"""Validation of answers against the schema that their callers sent, within bounds. Pure.

It is loaded with the first answer: `jsonschema` takes a twentieth of the processor time of a start.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from steadyhand.json_schema.dialects import modernize, subschemas
from steadyhand.json_schema.patterns import compile_linear
from steadyhand.json_schema.validation import UNEVALUATED_KEYWORDS, expanded_size

MAX_VALIDATION_STEPS = 20_000
"""The keywords that are checked before the validation of an answer ends without an error."""
_MAX_UNIQUE_ITEMS = 1_000
_MAX_MESSAGE_LENGTH = 160
_NEGATING_KEYWORDS = ("not", "if", "oneOf", "maxContains", *UNEVALUATED_KEYWORDS)
"""Keywords that refuse a value because a schema accepts it; all of that schema has to be checked then."""


class _StepLimitReached(Exception):
    """A validation that would take too long."""


def validation_error(schema: Mapping[str, Any], value: Any) -> str | None:
    """Return in one line the first error of a value, with its place in the value and in the schema; None if valid.

    The schema has to be checked (`check_schema`). A validation that would take too long returns None. It blocks for up
    to a second: call it in a thread.
    """
    modern = modernize(schema)
    counter = _StepCounter(expanded_size(modern))
    checks = {
        **Draft202012Validator.VALIDATORS,
        "type": _check_type,
        "pattern": _check_pattern,
        "patternProperties": _check_pattern_properties,
        "additionalProperties": _check_additional_properties,
    }
    skipped = ["format", *(_NEGATING_KEYWORDS if _has_unchecked_pattern(modern) else ())]
    keywords = {
        name: counter.count_checks(name, check) for name, check in checks.items() if name not in skipped
    }
    keywords |= dict.fromkeys(skipped, _skip)
    validator = extend(Draft202012Validator, keywords)(  # type: ignore[no-untyped-call]
        modern, registry=Registry()
    )
    try:
        error = next(validator.iter_errors(value), None)
    except (_StepLimitReached, RecursionError, Unresolvable, OverflowError, ArithmeticError):
        return None
    return None if error is None else _format_error(error)


def _has_unchecked_pattern(schema: Mapping[str, Any]) -> bool:
    pending: list[Any] = [schema]
    while pending:
        inner = pending.pop()
        if isinstance(inner, Mapping):
            if compile_linear(inner.get("pattern", "")) is None:
                return True
            pending += subschemas(inner)
    return False


def _format_error(error: ValidationError) -> str:
    instance_path = "".join(f"/{part}" for part in error.absolute_path) or "/"
    schema_path = "".join(f"/{part}" for part in error.absolute_schema_path)
    message = " ".join(error.message.split())
    text = message if len(message) <= _MAX_MESSAGE_LENGTH else f"{message[:_MAX_MESSAGE_LENGTH]}…"
    return f"{instance_path}: {text} (schema: {schema_path})"


_KeywordCheck = Callable[[Any, Any, Any, Any], Any]


class _StepCounter:
    def __init__(self, expanded_size: int) -> None:
        self._left = MAX_VALIDATION_STEPS
        self._expanded_size = expanded_size

    def count_checks(self, name: str, check: _KeywordCheck) -> _KeywordCheck:
        is_unique_items = name == "uniqueItems"
        cost = self._expanded_size if name in UNEVALUATED_KEYWORDS else 1

        def counting(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
            # A list of allowed values costs by its length; the properties of an object are counted one by one.
            self._left -= cost + (len(value) // 8 if isinstance(value, list) else 0)
            if self._left < 0:
                raise _StepLimitReached
            if is_unique_items and isinstance(instance, list) and len(instance) > _MAX_UNIQUE_ITEMS:
                return None
            return check(validator, value, instance, schema)

        return counting


_TYPE_CHECK = Draft202012Validator.VALIDATORS["type"]
_ADDITIONAL_PROPERTIES_CHECK = Draft202012Validator.VALIDATORS["additionalProperties"]


def _check_type(validator: Any, types: Any, instance: Any, schema: Any) -> Any:
    # OpenAPI's keyword, which the agent knows as well.
    return (
        None
        if instance is None and schema.get("nullable") is True
        else _TYPE_CHECK(validator, types, instance, schema)
    )


def _check_pattern(_validator: Any, pattern: Any, instance: Any, _schema: Any) -> Iterator[ValidationError]:
    compiled = compile_linear(pattern)
    if isinstance(instance, str) and compiled is not None and not compiled.is_found_in(instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _check_pattern_properties(
    validator: Any, patterns: Any, instance: Any, _schema: Any
) -> Iterator[ValidationError]:
    for pattern, subschema in patterns.items() if isinstance(instance, dict) else ():
        compiled = compile_linear(pattern)
        for key, value in instance.items():
            if compiled is not None and compiled.is_found_in(key):
                yield from validator.descend(value, subschema, path=key, schema_path=pattern)


def _check_additional_properties(validator: Any, additional: Any, instance: Any, schema: Any) -> Any:
    if "patternProperties" not in schema or not isinstance(instance, dict):
        return _ADDITIONAL_PROPERTIES_CHECK(validator, additional, instance, schema)
    compiled = [compile_linear(pattern) for pattern in schema["patternProperties"]]
    rest = {
        key: value
        for key, value in instance.items()
        if not any(each is not None and each.is_found_in(key) for each in compiled)
    }
    plain = {key: value for key, value in schema.items() if key != "patternProperties"}
    return _ADDITIONAL_PROPERTIES_CHECK(validator, additional, rest, plain)


def _skip(*_: Any) -> None:
    return None
