"""Inserts that are compiled once, for the few statements that every accepted job needs.

`Connection.execute` spends more time on an insert's cache key and parameters than SQLite spends on the insert. Each
statement also is a way to the server, or releases the interpreter's lock and waits for it again, so one statement
inserts many rows.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Column, Connection, Dialect, Insert, String, Table, bindparam, insert

from steadyhand.store.driver import POSTGRES, execute_on_postgres, execute_on_sqlite

MAX_ROWS_PER_STATEMENT = 16
"""The most rows in one statement. Each number of rows has a statement of its own, compiled at its first use."""


class CompiledInsert:
    """An insert of rows that have every column of a table but `generated`, an integer key that the database counts up.

    Such a table has a unique column `id`.

    With `key`, a row replaces the one that has the same key. Rows of one call must not share a key.
    """

    def __init__(
        self, table: Table, *, generated: Column[int] | None = None, key: Column[Any] | None = None
    ) -> None:
        self._table = table
        self._generated = generated
        self._key = key
        self._columns = tuple(column.name for column in table.c if column is not generated)
        self._statements: dict[tuple[str, int], tuple[str, bool]] = {}
        self._postgres_texts: dict[int, bytes] = {}

    def run(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """Insert rows in order and return their generated keys, if the table generates one. An empty list is allowed.

        SQLite counts row by row within a statement, and no other connection writes during a transaction, so the last
        key determines all others. Reading each key from SQLite would cost a change of thread for every row. Postgres
        promises no order, and returns them with the ids.
        """
        if connection.dialect.name == POSTGRES:
            return self._run_on_postgres(connection, rows)
        generated_values: list[int] = []
        for at in range(0, len(rows), MAX_ROWS_PER_STATEMENT):
            batch = rows[at : at + MAX_ROWS_PER_STATEMENT]
            text, positional = self._compiled(connection.dialect, len(batch))
            values = [row[name] for row in batch for name in self._columns]
            result = execute_on_sqlite(
                connection,
                text,
                values if positional else dict(zip(self._parameter_names(len(batch)), values, strict=True)),
            )
            if self._generated is not None:
                last = result.lastrowid or 0
                generated_values += range(last - len(batch) + 1, last + 1)
        return generated_values

    def _run_on_postgres(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        keys: dict[str, int] = {}
        for at in range(0, len(rows), MAX_ROWS_PER_STATEMENT):
            batch = rows[at : at + MAX_ROWS_PER_STATEMENT]
            values = [row[name] for row in batch for name in self._columns]
            result = execute_on_postgres(connection, self._postgres_text(len(batch)), values)
            if self._generated is not None:
                keys.update(result.fetchall())
        return [] if self._generated is None else [keys[row["id"]] for row in rows]

    def _postgres_text(self, count: int) -> bytes:
        text = self._postgres_texts.get(count)
        if text is None:
            # With types: of a column that has nothing but nulls the server would not know it.
            types = [
                "text" if isinstance(self._table.c[name].type, String) else "bigint" for name in self._columns
            ]
            numbers = itertools.count(1)
            rows = ", ".join(
                f"({', '.join(f'${next(numbers)}::{each}' for each in types)})" for _ in range(count)
            )
            names = ", ".join(f'"{name}"' for name in self._columns)
            returned = "" if self._generated is None else f" RETURNING id, {self._generated.name}"
            statement = f"INSERT INTO {self._table.name} ({names}) VALUES {rows}"  # noqa: S608  # our own words
            text = f"{statement}{self._on_conflict_clause()}{returned}".encode()
            self._postgres_texts[count] = text
        return text

    def _parameter_names(self, count: int) -> list[str]:
        return [f"{name}_{number}" for number in range(count) for name in self._columns]

    def _compiled(self, dialect: Dialect, count: int) -> tuple[str, bool]:
        cached = self._statements.get((dialect.name, count))
        if cached is None:
            rows = [
                {
                    name: bindparam(f"{name}_{number}", type_=self._table.c[name].type)
                    for name in self._columns
                }
                for number in range(count)
            ]
            statement: Insert = insert(self._table).values(rows)
            compiled = statement.compile(dialect=dialect)
            if compiled.positiontup is not None and compiled.positiontup != self._parameter_names(count):
                raise AssertionError("the parameters are not in the order of the rows")
            cached = (str(compiled) + self._on_conflict_clause(), dialect.positional)
            self._statements[dialect.name, count] = cached
        return cached

    def _on_conflict_clause(self) -> str:
        """Return the clause, valid in SQLite and Postgres, for a row whose key exists already."""
        if self._key is None:
            return ""
        new = ", ".join(f'"{name}" = excluded."{name}"' for name in self._columns if name != self._key.name)
        return f" ON CONFLICT ({self._key.name}) DO UPDATE SET {new}"
