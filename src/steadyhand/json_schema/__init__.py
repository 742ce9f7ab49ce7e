"""JSON Schemas that callers send: checked, translated for the agent, and the answers checked against them. Pure."""

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
    validation_error,
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
