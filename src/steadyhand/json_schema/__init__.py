"""JSON Schemas that callers send: checked, translated for the agent, and the answers checked against them. Pure."""

from collections.abc import Mapping
from typing import Any

from steadyhand.json_schema.agent_form import agent_schema
from steadyhand.json_schema.dialects import modernize, rebase_references
from steadyhand.json_schema.validation import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_REFERENCES,
    MAX_SUBSCHEMAS,
    check_output_schema,
    check_schema,
    unsupported,
)

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_REFERENCES",
    "MAX_SUBSCHEMAS",
    "agent_schema",
    "check_output_schema",
    "check_schema",
    "modernize",
    "rebase_references",
    "unsupported",
    "validation_error",
]


def validation_error(schema: Mapping[str, Any], value: Any) -> str | None:
    """Return in one line the first error of a value, with its place in the value and in the schema; None if valid.

    The schema has to be checked (`check_schema`). A validation that would take too long returns None. It blocks for up
    to a second: call it in a thread.
    """
    from steadyhand.json_schema import answer_validation  # noqa: PLC0415  # only an answer with a schema needs it

    return answer_validation.validation_error(schema, value)
