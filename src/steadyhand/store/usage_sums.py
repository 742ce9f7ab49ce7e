"""Sums of usage and cost by day and by month, kept in the transaction that settles a call.

A period that begins or ends within a day takes the calls of that part of the day themselves, by their time. All else
comes from the sums, of the level with the fewest rows that has every name that the query needs.
"""

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, RowMapping

from steadyhand.ports import CalendarPeriod, TokenCounts, UsageGroup, UsageQuery, UsageRow, UsageTotal
from steadyhand.store.driver import POSTGRES, Values, execute, fetch_all
from steadyhand.store.ledger_workspace import ledger_workspace
from steadyhand.store.mapping import MICROSECONDS_PER_DAY, to_microseconds
from steadyhand.store.readers import check_time
from steadyhand.store.schema import SUM_NAMES

_TOKEN_COLUMNS = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
_NAMES = ("api_key_id", "agent", "model", "provider", "workspace")
_LEVELS: Mapping[int, frozenset[str]] = {
    0: frozenset(_NAMES[:4]),
    1: frozenset(_NAMES[1:4]),
    2: frozenset(_NAMES[:1]),
    3: frozenset(),
    8: frozenset(_NAMES),
    9: frozenset(_NAMES[4:]),
    10: frozenset(("api_key_id", "workspace")),
}
"""The names that each level of sums by day has; a level of sums by month has a number higher by `_MONTHS`.

The workspace is on levels of its own: all others have as few rows as without it.
"""
_MONTHS = 4
_KEY_MONTHS = 2 + _MONTHS
_GROUP_COLUMNS: Mapping[UsageGroup, str] = {
    "api_key": "api_key_id",
    "agent": "agent",
    "model": "model",
    "provider": "provider",
    "workspace": "workspace",
    "day": "day",
}
_KEY_NAMES = ("level", "api_key_id", "start", "agent", "model", "provider", "workspace")
_EPOCH = date(1970, 1, 1)
_FIRST_DAY, _END_DAY = -(2**31), 2**31
_LAST_DAY = (date.max - _EPOCH).days
_LAST_MONTH = (date.max.replace(day=1) - _EPOCH).days

CallRow = Mapping[str, Any] | RowMapping
"""A row of `calls`."""

_CALL_SUMS = (
    "1 AS calls, input, output, cache_read, cache_write_5m, cache_write_1h, micros, "
    "1 - priced AS unpriced, 1 - complete AS incomplete"
)
_COLUMNS = (*_KEY_NAMES, *SUM_NAMES)
_CALL_COLUMNS = ("settled", "day", *_NAMES, *_TOKEN_COLUMNS, "micros", "priced", "complete")
GREATEST_SUM = 2**63 - 1
"""The greatest number of a column: a sum that would be greater is this one."""
_SUM_OVERFLOW = "integer overflow"
"""The message of SQLite's error."""
_NO_SUMS = (0,) * len(SUM_NAMES)
_MAX_ROWS = 8 * 2 * len(_LEVELS)
"""The most sums in one statement: those of eight calls that have nothing in common."""


# --- writing ---------------------------------------------------------------------------------------


def add_calls(connection: Connection, added: Iterable[CallRow], removed: Iterable[CallRow]) -> None:
    """Add rows of `calls` to the sums and take others out; those that are not settled count for nothing."""
    changes: dict[tuple[Any, ...], list[int]] = {}
    for sign, rows in ((1, added), (-1, removed)):
        for row in rows:
            if row["settled"]:
                names = tuple(row[name] for name in _NAMES)
                sums = changes.setdefault((row["day"], *names), [0] * len(SUM_NAMES))
                for at, amount in enumerate(_amounts(row)):
                    sums[at] += sign * amount
    by_key: dict[tuple[Any, ...], Sequence[int]] = {}
    for (day, *day_names), sums in changes.items():
        if any(sums):
            for sum_key in _sum_keys(day, day_names):
                before = by_key.get(sum_key, _NO_SUMS)
                by_key[sum_key] = [one + other for one, other in zip(before, sums, strict=True)]
    # In one order: two nodes that add to the same sums then wait for each other, and not in a ring.
    sum_rows = [(*sum_key, *by_key[sum_key]) for sum_key in sorted(by_key)]
    # A statement for each row would release the interpreter's lock for each.
    for at in range(0, len(sum_rows), _MAX_ROWS):
        part = sum_rows[at : at + _MAX_ROWS]
        statement = _add_statement(len(part), connection.dialect.name)
        execute(connection, statement, [value for row in part for value in row])


@lru_cache(maxsize=_MAX_ROWS)
def _add_statement(count: int, dialect: str) -> str:
    """Return the statement that adds so many rows to the sums; each has a key of its own.

    A sum that does not fit in a column is the greatest one. Postgres would refuse it, and SQLite make it a fraction.
    """
    row = f"({', '.join('?' * len(_COLUMNS))})"
    added = ", ".join(
        f"{name} = least(usage_sums.{name}::numeric + excluded.{name}, {GREATEST_SUM})"
        if dialect == POSTGRES
        else f"{name} = min(usage_sums.{name} + excluded.{name}, {GREATEST_SUM})"
        for name in SUM_NAMES
    )
    return (
        f"INSERT INTO usage_sums ({', '.join(_COLUMNS)}) VALUES {', '.join([row] * count)} "  # noqa: S608  # our own words
        f"ON CONFLICT ({', '.join(_KEY_NAMES)}) DO UPDATE SET {added}"
    )


def settled_calls(connection: Connection, ids: Sequence[str]) -> list[CallRow]:
    """Return those of these calls that are settled, with the columns that the sums need."""
    query = f"SELECT {', '.join(_CALL_COLUMNS)} FROM calls WHERE id IN ({', '.join('?' * len(ids))}) AND settled = 1"  # noqa: S608
    return [dict(zip(_CALL_COLUMNS, row, strict=True)) for row in fetch_all(connection, query, ids)]


def _amounts(row: CallRow) -> tuple[int, ...]:
    return (1, *(row[name] for name in (*_TOKEN_COLUMNS, "micros")), 1 - row["priced"], 1 - row["complete"])


def _sum_keys(day: int, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Return the primary key of each sum to which the calls of a day with these names belong."""
    month = _month_start(day)
    for level, level_names in _LEVELS.items():
        key, *others = (
            value if name in level_names else "" for name, value in zip(_NAMES, names, strict=True)
        )
        yield level, key, day, *others
        yield level + _MONTHS, key, month, *others


def _month_start(day: int) -> int:
    return ((_EPOCH + timedelta(days=day)).replace(day=1) - _EPOCH).days


def narrowest_level(names: Collection[str], period: CalendarPeriod = "day") -> int:
    """Return the level of sums by day or by month with the fewest rows that has these names."""
    level = min(
        (number for number, level_names in _LEVELS.items() if set(names) <= level_names),
        key=lambda number: len(_LEVELS[number]),
    )
    return level if period == "day" else level + _MONTHS


# --- reading ---------------------------------------------------------------------------------------


def sum_usage(connection: Connection, query: UsageQuery) -> list[UsageRow]:
    """Return the sums of calls by group; see `Ledger.usage`."""
    if query.limit is None or query.by[:1] != ("api_key",) or query.api_key_id is not None:
        return _sum(connection, query)
    # The first name in the order of the groups: key by key, no page reads the sums of all.
    rows: list[UsageRow] = []
    for key in _keys(connection, query.after[0] if query.after else ""):
        check_time(connection)
        one_key = replace(query, api_key_id=key, limit=query.limit - len(rows))
        rows += _sum(
            connection, one_key if query.after and query.after[0] == key else replace(one_key, after=())
        )
        if len(rows) >= query.limit:
            break
    return rows


def _keys(connection: Connection, first: str) -> Iterator[str]:
    """Return the keys that have calls, from this one on."""
    query = f"SELECT min(api_key_id) FROM usage_sums WHERE level = {_KEY_MONTHS} AND api_key_id "  # noqa: S608
    ((key,),) = fetch_all(connection, query + ">= ?", (first,))
    while key is not None:
        yield key
        ((key,),) = fetch_all(connection, query + "> ?", (key,))


def _sum(connection: Connection, query: UsageQuery) -> list[UsageRow]:
    source = _Source(query)
    groups = [_GROUP_COLUMNS[by] for by in query.by]
    rows_to_add = source.select(groups)
    columns = [*groups, *SUM_NAMES] if source.has_whole_groups else [*groups, "{sums}"]
    statement = f"SELECT {', '.join(columns)} FROM ({rows_to_add}) AS parts WHERE "  # noqa: S608
    statement += "calls > 0" if source.has_whole_groups else "true"
    if query.after:
        statement += f" AND ({', '.join(groups)}) > ({', '.join(f':after_{name}' for name in groups)})"
        source.parameters |= {
            f"after_{name}": _after(name, value) for name, value in zip(groups, query.after, strict=True)
        }
    if groups and not source.has_whole_groups:
        statement += f" GROUP BY {', '.join(groups)} HAVING sum(calls) > 0"
    if groups:
        statement += f" ORDER BY {', '.join(groups)}"
    if query.limit is not None:
        statement += f" LIMIT {query.limit:d}"
    return [
        UsageRow(
            {by: _group_text(by, value) for by, value in zip(query.by, row, strict=False)},
            _total(dict(zip(SUM_NAMES, row[len(groups) :], strict=True))),
        )
        for row in _fetch_sums(connection, statement, source.parameters)
    ]


def _fetch_sums(connection: Connection, statement: str, parameters: Values) -> list[tuple[Any, ...]]:
    """Return the rows of a statement with the sums of all columns in place of `{sums}`.

    SQLite refuses a sum that does not fit in 64 bits. Two halves of each number have sums that fit, but adding both up
    takes 1.7 times as long, so they are asked for only then.
    """
    sums, halves = (
        ", ".join(f"coalesce({each.format(name)}, 0) AS {name}" for name in SUM_NAMES)
        for each in ("sum({0})", "sum({0} >> 32) * 4294967296 + sum({0} & 4294967295)")
    )
    try:
        return fetch_all(connection, statement.replace("{sums}", sums), parameters)
    except sqlite3.OperationalError as error:
        if str(error) != _SUM_OVERFLOW:
            raise
    return fetch_all(connection, statement.replace("{sums}", halves), parameters)


@dataclass(slots=True)
class _Source:
    """The rows that a query adds up: disjoint parts, each from the table that has it in the fewest rows."""

    query: UsageQuery
    parameters: dict[str, Any]
    has_whole_groups: bool
    """True if each row is a group by itself. Then SQLite need not add up, and sorts no more rows than a page has."""

    def __init__(self, query: UsageQuery) -> None:
        self.query = query
        self.parameters = {}
        self.has_whole_groups = False

    def select(self, groups: Sequence[str]) -> str:
        """Return the query of the rows with these columns and the sums."""
        query = self.query
        by_call = query.job_id is not None or query.since_run is not None
        since = None if query.since is None else to_microseconds(query.since)
        until = None if query.until is None else to_microseconds(query.until)
        if by_call:
            return self._calls(groups, since, until, by_day=False)
        first_day = _FIRST_DAY if since is None else -(-since // MICROSECONDS_PER_DAY)
        end_day = _END_DAY if until is None else until // MICROSECONDS_PER_DAY
        if first_day > end_day:  # within one day
            return self._calls(groups, since, until)
        parts = []
        if since is not None and since % MICROSECONDS_PER_DAY:
            parts.append(self._calls(groups, since, first_day * MICROSECONDS_PER_DAY))
        if until is not None and until % MICROSECONDS_PER_DAY:
            parts.append(self._calls(groups, end_day * MICROSECONDS_PER_DAY, until))
        periods = list(self._periods(groups, first_day, end_day))
        level = self._level(groups)
        known = {*groups, *self._filters()}
        self.has_whole_groups = not parts and len(periods) == 1 and known >= {"day", *_LEVELS[level]}
        parts += [self._sums(groups, level, *period) for period in periods]
        return " UNION ALL ".join(parts)

    def _level(self, groups: Sequence[str]) -> int:
        """Return the level with the fewest rows that has the names of the groups and of the filters."""
        return narrowest_level({*groups, *self._filters()} - {"day", "job_id"})

    def _periods(self, groups: Sequence[str], first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Return the parts of these days: the number to add to the level of days, the first day and the end of each."""
        first_month = first if first == _FIRST_DAY else _next_month(first)
        end_month = end if end == _END_DAY else _month_start(end)
        if "day" in groups or first_month >= end_month:
            yield 0, first, end
            return
        yield _MONTHS, first_month, end_month
        for part in ((first, first_month), (end_month, end)):
            if part[0] < part[1]:
                yield 0, *part

    def _sums(self, groups: Sequence[str], level: int, months: int, first: int, end: int) -> str:
        filters = {name: value for name, value in self._filters().items() if name != "job_id"}
        columns = [f"start AS {name}" if name == "day" else name for name in groups]
        conditions = [f"level = {level + months:d}"]
        # Both let the primary key find the days.
        if "api_key_id" not in _LEVELS[level]:
            conditions.append("api_key_id = ''")
        elif "api_key_id" not in filters and (first, end) != (_FIRST_DAY, _END_DAY):
            conditions.append(
                f"api_key_id IN (SELECT api_key_id FROM usage_sums WHERE level = {_KEY_MONTHS})"  # noqa: S608
            )
        conditions += [f"start >= {first:d}"] * (first != _FIRST_DAY) + [f"start < {end:d}"] * (
            end != _END_DAY
        )
        conditions += [f"{name} = :{name}" for name in filters]
        return f"SELECT {', '.join([*columns, *SUM_NAMES])} FROM usage_sums WHERE {' AND '.join(conditions)}"  # noqa: S608

    def _calls(
        self, groups: Sequence[str], since: int | None, until: int | None, *, by_day: bool = True
    ) -> str:
        conditions = ["settled = 1"]
        if by_day:  # the index has the days, and the times of each
            conditions.append(f"day = {(since or 0) // MICROSECONDS_PER_DAY:d}")
        conditions += [] if since is None else [f"at >= {since:d}"]
        conditions += [] if until is None else [f"at < {until:d}"]
        conditions += [f"{name} = :{name}" for name in self._filters()]
        if self.query.since_run is not None:
            conditions.append(f"run >= {self.query.since_run:d}")
        return f"SELECT {', '.join([*groups, _CALL_SUMS])} FROM calls WHERE {' AND '.join(conditions)}"  # noqa: S608

    def _filters(self) -> dict[str, str]:
        query = self.query
        filters = {
            "api_key_id": query.api_key_id,
            "agent": query.agent,
            "model": query.model,
            "workspace": None if query.workspace is None else ledger_workspace(query.workspace),
            "job_id": query.job_id,
        }
        found = {name: value for name, value in filters.items() if value is not None}
        self.parameters |= found
        return found


def _next_month(day: int) -> int:
    """Return the first day of the first month that begins on this day or later."""
    if day > _LAST_DAY:  # of the calendar
        return _END_DAY
    month = _month_start(day)
    if month == day:
        return month
    return _END_DAY if month == _LAST_MONTH else _month_start(month + 31)


def _after(name: str, value: str) -> str | int:
    return (date.fromisoformat(value) - _EPOCH).days if name == "day" else value


def _group_text(by: UsageGroup, value: Any) -> str:
    return (_EPOCH + timedelta(days=value)).isoformat() if by == "day" else str(value)


def _total(row: Mapping[str, int]) -> UsageTotal:
    sums = {name: min(int(row[name]), GREATEST_SUM) for name in ("calls", "micros", *_TOKEN_COLUMNS)}
    tokens = TokenCounts(**{name: sums[name] for name in _TOKEN_COLUMNS})
    return UsageTotal(sums["calls"], tokens, sums["micros"], not row["unpriced"], not row["incomplete"])
