"""Inserts that are compiled once, for the few statements that every accepted job costs.

`Connection.execute` spends more time on an insert's cache key and parameters than SQLite does on the insert. And each
statement lets go of the interpreter's lock and waits for it again, so many rows go in by one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Column, Connection, Dialect, Insert, Table, bindparam, insert

MOST_ROWS = 16
"""How many rows one statement takes; each count is a statement of its own, compiled when it is first needed."""


class ReadyInsert:
    """An insert of rows that have every column of a table but what the database makes of `giving`."""

    def __init__(
        self, table: Table, *, made: Column[Any] | None = None, giving: Sequence[Column[Any]] = ()
    ) -> None:
        """`made` is a column that the database fills; `giving` are those that are given back."""
        self._table = table
        self._columns = tuple(column.name for column in table.c if column is not made)
        self._giving = tuple(giving)
        self._texts: dict[tuple[str, int], tuple[str, bool]] = {}

    def run(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
        """Insert rows in order, none is fine; gives the columns of `giving`, a tuple a row in no certain order."""
        given: list[tuple[Any, ...]] = []
        for at in range(0, len(rows), MOST_ROWS):
            some = rows[at : at + MOST_ROWS]
            text, positional = self._text(connection.dialect, len(some))
            values = [row[name] for row in some for name in self._columns]
            done = connection.exec_driver_sql(
                text, tuple(values) if positional else dict(zip(self._names(len(some)), values, strict=True))
            )
            if self._giving:
                given += [tuple(row) for row in done.all()]
        return given

    def _names(self, count: int) -> list[str]:
        return [f"{name}_{number}" for number in range(count) for name in self._columns]

    def _text(self, dialect: Dialect, count: int) -> tuple[str, bool]:
        found = self._texts.get((dialect.name, count))
        if found is None:
            rows = [
                {
                    name: bindparam(f"{name}_{number}", type_=self._table.c[name].type)
                    for name in self._columns
                }
                for number in range(count)
            ]
            statement: Insert = insert(self._table).values(rows)
            compiled = (statement.returning(*self._giving) if self._giving else statement).compile(
                dialect=dialect
            )
            if compiled.positiontup is not None and compiled.positiontup != self._names(count):
                raise AssertionError("the parameters are not in the order of the rows")
            found = (str(compiled), dialect.positional)
            self._texts[dialect.name, count] = found
        return found
