"""Values in stored JSON, which is compact and in ASCII.

SQLite reads it by its functions of JSON. Those of Postgres refuse a whole document for one escaped NUL in a text of it,
which is no error of ours: a text is found there by a pattern, as it stands in the document. The fields of
our own objects come before those that hold foreign ones, and a quotation mark within a text has a backslash before it,
so the first place that looks like the field is the field. All else is read here.
"""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, func

from steadyhand.store.driver import POSTGRES
from steadyhand.store.mapping import to_json


def field_text(dialect: str, column: Column[str], name: str) -> ColumnElement[Any]:
    """Return the text in a field of an object, to compare with `field_values`."""
    if dialect == POSTGRES:
        return func.substring(column, rf'"{name}":"((?:[^"\\]|\\.)*)"')
    return func.json_extract(column, f"$.{name}")


def field_values(connection: Connection, texts: Sequence[str]) -> list[str]:
    """Return texts as `field_text` has them."""
    return [to_json(text)[1:-1] for text in texts] if connection.dialect.name == POSTGRES else list(texts)


def fields_expression(connection: Connection, column: str, names: Sequence[str]) -> str:
    """Return the expression that `parse_fields` reads."""
    if connection.dialect.name == POSTGRES:
        return column
    fields = ", ".join(f"'$.{name}'" for name in names)
    return f"json_extract({column}, {fields})"


def parse_fields(connection: Connection, text: str, names: Sequence[str]) -> list[Any]:
    """Return the values of fields; a name with a dot is that of a field of an object. One that is missing is None."""
    document = json.loads(text)
    return [_field(document, name) for name in names] if connection.dialect.name == POSTGRES else document


def _field(document: Any, name: str) -> Any:
    for part in name.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document
