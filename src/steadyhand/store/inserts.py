"""Inserts that are compiled once, for the few statements that every accepted job costs.

`Connection.execute` spends more time on an insert's cache key and parameters than SQLite does on the insert.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Column, Connection, CursorResult, Dialect, Insert, Table, insert


class ReadyInsert:
    """An insert of rows that have every column of a table but `giving`, which the database makes and gives back."""

    def __init__(self, table: Table, giving: Column[Any] | None = None) -> None:
        self._columns = tuple(column.name for column in table.c if column is not giving)
        self._statement: Insert = insert(table) if giving is None else insert(table).returning(giving)
        self._texts: dict[str, tuple[str, bool]] = {}

    def run(self, connection: Connection, row: Mapping[str, Any]) -> CursorResult[Any]:
        """Insert one row."""
        text, positional = self._text(connection.dialect)
        values = tuple(row[name] for name in self._columns) if positional else dict(row)
        return connection.exec_driver_sql(text, values)

    def run_all(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert rows in order; none is fine."""
        if not rows:
            return
        text, positional = self._text(connection.dialect)
        if positional:
            connection.exec_driver_sql(text, [tuple(row[name] for name in self._columns) for row in rows])
        else:
            connection.exec_driver_sql(text, [dict(row) for row in rows])

    def _text(self, dialect: Dialect) -> tuple[str, bool]:
        found = self._texts.get(dialect.name)
        if found is None:
            compiled = self._statement.compile(dialect=dialect, column_keys=list(self._columns))
            found = (str(compiled), dialect.positional)
            self._texts[dialect.name] = found
        return found
