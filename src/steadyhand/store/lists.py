"""Lists of jobs: the sequences that match a filter, newest first, without a look at the jobs before them.

A filter is served by sources. Each is a range of an index in the order of `sequence`, and has at least the jobs that
match. The most selective ones are merged; each job that they name is then compared with the whole filter. SQLite is
told which index to use: its own choice depends on statistics, and a wrong one reads the whole history.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from sqlalchemy import Connection

from steadyhand.job import State
from steadyhand.ports import JobFilter
from steadyhand.store.driver import POSTGRES, fetch_all
from steadyhand.store.mapping import metadata_matches, metadata_tag, to_json, to_microseconds
from steadyhand.store.readers import check_time
from steadyhand.store.schema import ZONE_SIZE
from steadyhand.store.search import job_search

MAX_SEQUENCE = 2**63 - 1
_FEW = 2000
"""A source with fewer jobs than this is read as a whole rather than in parts."""
_MAX_SOURCES = 5000
"""With more of them, their first jobs alone take too long to find."""
_FEW_WITH_TEXT = 100
"""So many jobs are looked up in the full-text index one by one."""
_NEWEST = 1000
"""So many of the newest jobs are read before many sources are."""
_MIN_ID_PREFIX = 3
"""A shorter beginning of an id is that of many jobs."""
_CHUNK = 32
_MAX_CHUNK = 512
_NAMES = ("api_key_id", "agent", "workspace")
_GROUP_INDEX = "ix_jobs_group"
_SESSION_NAMES = ("session_id", "session_name", "conversation")

Fetch = Callable[[int, int], Sequence[int]]
"""Returns the next sequences of a source below one, at most so many, the highest first."""


@dataclass(frozen=True, slots=True)
class Query:
    """A filter on a connection, with the sequences between which jobs match: `low` is included, `before` is not."""

    connection: Connection
    job_filter: JobFilter
    low: int
    before: int

    def rows(self, text: str, *values: Any) -> Sequence[Any]:
        """Return the rows of a query. It is interrupted at the limit of the read."""
        check_time(self.connection)
        return fetch_all(self.connection, text, values)

    def numbers(self, text: str, *values: Any) -> list[int]:
        """Return the numbers that a query has in its column `number`, in falling order.

        SQLite returns them in one row: for each row, the thread gives the interpreter away and waits for it.
        """
        if self.connection.dialect.name == POSTGRES:
            return sorted((row[0] for row in self.rows(text, *values)), reverse=True)
        ((numbers,),) = self.rows(f"SELECT group_concat(number) FROM ({text})", *values)  # noqa: S608
        return sorted(map(int, numbers.split(",")), reverse=True) if numbers else []

    @property
    def names(self) -> dict[str, str]:
        """The key, the agent and the workspace, as far as the filter has them."""
        return {name: value for name in _NAMES if (value := getattr(self.job_filter, name)) is not None}


def matching_sequences(connection: Connection, job_filter: JobFilter, before: int, count: int) -> list[int]:
    """Return the sequences of the newest jobs below `before` that match, at most `count`."""
    bounds = _bounds(connection, job_filter, before)
    if bounds is None:
        return []
    query = Query(connection, job_filter, *bounds)
    return list(islice(_matching(query, _candidates(query), count), count))


def _bounds(connection: Connection, job_filter: JobFilter, before: int) -> tuple[int, int] | None:
    """Return the range of sequences in which jobs were created in the time of the filter, None if there are none."""
    after, until = job_filter.created_after, job_filter.created_before
    if after is None and until is None:
        return 0, before
    conditions = [] if after is None else [f"last_created > {to_microseconds(after):d}"]
    conditions += [] if until is None else [f"first_created < {to_microseconds(until):d}"]
    text = f"SELECT min(zone), max(zone) FROM job_zones WHERE {' AND '.join(conditions)}"  # noqa: S608  # numbers
    first, last = connection.exec_driver_sql(text).one()
    if first is None:
        return None
    return first * ZONE_SIZE, min(before, (last + 1) * ZONE_SIZE)


def _matching(query: Query, candidates: Iterable[int], count: int) -> Iterator[int]:
    """Return the candidates that match the whole filter."""
    if _is_one_source(query):
        yield from candidates
        return
    iterator, chunk = iter(candidates), count
    while sequences := list(islice(iterator, chunk)):
        matching = _compare(query, sequences)
        yield from (sequence for sequence in sequences if sequence in matching)
        chunk = min(2 * chunk, _MAX_CHUNK)


def _is_one_source(query: Query) -> bool:
    """Return True if the source of the filter has the jobs that match and no others.

    So it is with nothing, a time, one name or states alone.
    """
    job_filter, names = query.job_filter, query.names
    if names:
        return len(names) == 1 and job_filter == JobFilter(
            job_filter.api_key_id, agent=job_filter.agent, workspace=job_filter.workspace
        )
    if job_filter.states:
        return job_filter == JobFilter(states=job_filter.states)
    time = JobFilter(created_after=job_filter.created_after, created_before=job_filter.created_before)
    return job_filter == time


def _compare(query: Query, sequences: Sequence[int]) -> set[int]:
    """Return those of these jobs that match the filter; its search is not compared."""
    job_filter = query.job_filter
    conditions, values = [], []
    for name in (*_NAMES, *_SESSION_NAMES):
        expected = getattr(job_filter, name)
        if expected is not None:
            conditions.append(f"{name} = ?")
            values.append(expected)
    if job_filter.states:
        conditions.append(f"state IN ({_places(job_filter.states)})")
        values += sorted(job_filter.states)
    conditions += _time_conditions(job_filter)
    if job_filter.id_prefix:
        conditions.append(f"substr(id, 1, {len(job_filter.id_prefix):d}) = ?")
        values.append(job_filter.id_prefix)
    for value in job_filter.metadata.values():
        # Most rows need not be parsed. A text that JSON escapes may stand in the row in another way.
        if value.isascii() and to_json(value) == f'"{value}"':
            conditions.append("instr(metadata, ?) > 0")
            values.append(value)
    where = "".join(f" AND {condition}" for condition in conditions)
    # Without other indexes: the sequences are the primary key.
    from_where = f"FROM jobs NOT INDEXED WHERE sequence IN ({_places(sequences)}){where}"
    if not job_filter.metadata:
        return set(query.numbers(f"SELECT sequence AS number {from_where}", *sequences, *values))
    rows = query.rows(f"SELECT sequence, metadata {from_where}", *sequences, *values)
    return {row[0] for row in rows if metadata_matches(row[1], job_filter.metadata)}


def _time_conditions(job_filter: JobFilter) -> list[str]:
    moments = ((">", job_filter.created_after), ("<", job_filter.created_before))
    return [f"created_at {operator} {to_microseconds(moment):d}" for operator, moment in moments if moment]


# --- the choice of the sources ----------------------------------------------------------------------


def _candidates(query: Query) -> Iterator[int]:
    """Return sequences from the highest, among them each job that matches."""
    job_filter = query.job_filter
    session_name = next((name for name in _SESSION_NAMES if getattr(job_filter, name) is not None), None)
    if session_name is not None:
        of_session = _session_jobs(query, session_name)
        return of_session if job_filter.search is None else _with_text(query, of_session)
    return _without_search(query) if job_filter.search is None else _search(query)


def _without_search(query: Query) -> Iterator[int]:
    job_filter = query.job_filter
    if job_filter.id_prefix and len(job_filter.id_prefix) >= _MIN_ID_PREFIX:
        return iter(_by_id(query, job_filter.id_prefix))
    if job_filter.metadata:
        return _by_metadata(query)
    return _by_names(query)


def _session_jobs(query: Query, name: str) -> Iterator[int]:
    columns, key = {name: getattr(query.job_filter, name)}, query.job_filter.api_key_id
    if name != "session_id" and key is not None:
        columns["api_key_id"] = key
    return _pull(_range(query, f"ix_jobs_{name}", **columns), query.before)


def _by_id(query: Query, prefix: str) -> list[int]:
    # The next text after all that begin so; ids are hexadecimal digits.
    text = (
        "SELECT sequence AS number FROM jobs INDEXED BY uq_jobs_id "
        "WHERE id >= ? AND id < ? AND sequence >= ? AND sequence < ?"
    )
    return query.numbers(text, prefix, prefix + "g", query.low, query.before)


def _by_names(query: Query) -> Iterator[int]:
    """Return the jobs of a key, an agent or a workspace, and of states."""
    names, states = query.names, query.job_filter.states
    if not names and not states:
        return _pull(_range(query, None), query.before)
    if not names:
        by_state = [_range(query, "ix_jobs_state", state=state) for state in sorted(states)]
        return _merge([(first[0], fetch) for fetch in by_state if (first := fetch(query.before, 1))])
    if len(names) > 1 or states:
        sources = _group_ranges(query)
        if sources is not None:
            return _merge(sources)
    ranges = [_range(query, f"ix_jobs_{name}", **{name: value}) for name, value in names.items()]
    rarest = ranges[0] if len(ranges) == 1 else min(ranges, key=lambda each: len(each(query.before, _FEW)))
    return _pull(rarest, query.before)


def _by_metadata(query: Query) -> Iterator[int]:
    """Return the jobs with the rarest of the values, in the groups of the key, the agent and the workspace."""
    tags = [metadata_tag(name, value) for name, value in query.job_filter.metadata.items()]
    text = "SELECT count(*) FROM (SELECT 1 FROM job_tags WHERE tag = ? LIMIT ?) AS few"
    counts = [query.rows(text, tag, _FEW)[0][0] for tag in tags]
    count, tag = min(zip(counts, tags, strict=True))
    if count < _FEW:
        text = "SELECT job AS number FROM job_tags WHERE tag = ? AND job >= ? AND job < ?"
        return iter(query.numbers(text, tag, query.low, query.before))
    if query.job_filter.states or query.job_filter.api_key_id is None:
        return _newest_first(query, lambda below: _merge(_tag_ranges(below, tag)))
    return _merge(_tag_ranges(query, tag))


def _newest_first(query: Query, others: Callable[[Query], Iterator[int]]) -> Iterator[int]:
    """Return the newest jobs with the names and states of the filter, then those of other sources below them.

    Of what is frequent the newest jobs often have a page already, and the first jobs of many sources take long to find.
    """
    count, last = 0, query.before
    for last in islice(_by_names(query), _NEWEST):
        count += 1
        yield last
    if count == _NEWEST:
        yield from others(replace(query, before=last))


def _search(query: Query) -> Iterator[int]:
    """Return the jobs that match the search, the key, the agent and the workspace."""
    search = job_search(query.connection, query.job_filter)

    def fetch(before: int, count: int) -> list[int]:
        return query.numbers(search.newest, search.expression, before, query.low, count)

    job_filter = query.job_filter
    if job_filter.metadata or job_filter.states or job_filter.id_prefix:
        if len(found := fetch(query.before, _FEW)) < _FEW:
            return iter(found)
        others = list(islice(_matching(query, _without_search(query), _CHUNK), _FEW_WITH_TEXT))
        if len(others) < _FEW_WITH_TEXT:
            return _with_text(query, others)
    return _pull(fetch, query.before)


def _with_text(query: Query, sequences: Iterable[int]) -> Iterator[int]:
    """Return those of these jobs that match the search, each looked up by itself."""
    search = job_search(query.connection, query.job_filter)
    return (sequence for sequence in sequences if query.rows(search.one, search.expression, sequence))


# --- sources -----------------------------------------------------------------------------------------


def _range(query: Query, index: str | None, **columns: str | None) -> Fetch:
    """Return the source of the jobs with these values in the first columns of an index; None is all of the time."""
    # A group may have no workspace; the index is the same.
    in_group = index == _GROUP_INDEX
    conditions = "".join(
        f" AND {name} IS ?" if in_group and name == "workspace" else f" AND {name} = ?" for name in columns
    )
    if index is None:
        conditions += "".join(f" AND {each}" for each in _time_conditions(query.job_filter))
    hint = "NOT INDEXED" if index is None else f"INDEXED BY {index}"
    text = (
        f"SELECT sequence AS number FROM jobs {hint} WHERE sequence < ? AND sequence >= ?{conditions} "  # noqa: S608  # our own words
        "ORDER BY sequence DESC LIMIT ?"
    )
    return lambda before, count: query.numbers(text, before, query.low, *columns.values(), count)


def _group_ranges(query: Query) -> list[tuple[int, Fetch]] | None:
    """Return a source for each group of the filter and each state, with its first job; None if they are too many."""
    where, values = _group_conditions(query)
    states = sorted(query.job_filter.states or State)
    ((count,),) = query.rows(f"SELECT count(*) FROM job_groups{where}", *values)  # noqa: S608  # our own words
    if count * len(states) > _MAX_SOURCES:
        return None
    text = (
        "SELECT api_key_id, agent, workspace, given.column1, (SELECT sequence FROM jobs INDEXED BY ix_jobs_group "  # noqa: S608
        "WHERE api_key_id = job_groups.api_key_id AND agent = job_groups.agent AND workspace IS job_groups.workspace "
        "AND state = given.column1 AND sequence < ? AND sequence >= ? ORDER BY sequence DESC LIMIT 1) AS first "
        f"FROM job_groups, (VALUES {', '.join(['(?)'] * len(states))}) AS given{where}"
    )
    return [
        (first, _range(query, _GROUP_INDEX, api_key_id=key, agent=agent, workspace=workspace, state=state))
        for key, agent, workspace, state, first in query.rows(text, query.before, query.low, *states, *values)
        if first is not None
    ]


def _tag_ranges(query: Query, tag: int) -> list[tuple[int, Fetch]]:
    """Return a source for each group of the filter that has jobs with this tag, with its first job."""
    where, values = _group_conditions(query)
    first = (
        "(SELECT job FROM job_tags WHERE tag = ? AND group_id = {group} AND job < ? AND job >= ? "
        "ORDER BY job DESC LIMIT 1)"
    )
    ((count,),) = query.rows(f"SELECT count(*) FROM job_groups{where}", *values)  # noqa: S608  # our own words
    if count <= _MAX_SOURCES:
        text = f"SELECT id, {first.format(group='job_groups.id')} FROM job_groups{where}"  # noqa: S608
        rows = query.rows(text, tag, query.before, query.low, *values)
    else:
        # From one group of the tag to the next, without a look at the jobs between them.
        text = (
            "WITH RECURSIVE tagged (id) AS (SELECT min(group_id) FROM job_tags WHERE tag = ? UNION ALL "  # noqa: S608
            "SELECT (SELECT min(group_id) FROM job_tags WHERE tag = ? AND group_id > tagged.id) FROM tagged "
            f"WHERE tagged.id IS NOT NULL) SELECT job_groups.id, {first.format(group='tagged.id')} "
            f"FROM tagged CROSS JOIN job_groups ON job_groups.id = tagged.id{where}"
        )
        rows = query.rows(text, tag, tag, tag, query.before, query.low, *values)
    return [(first_job, _tag_range(query, tag, group)) for group, first_job in rows if first_job is not None]


def _tag_range(query: Query, tag: int, group: int) -> Fetch:
    text = (
        "SELECT job AS number FROM job_tags WHERE tag = ? AND group_id = ? AND job < ? AND job >= ? "
        "ORDER BY job DESC LIMIT ?"
    )
    return lambda before, count: query.numbers(text, tag, group, before, query.low, count)


def _group_conditions(query: Query) -> tuple[str, list[str]]:
    names = query.names
    return (" WHERE " + " AND ".join(f"{name} = ?" for name in names) if names else ""), list(names.values())


def _pull(fetch: Fetch, before: int) -> Iterator[int]:
    """Return the sequences of a source below one, read in parts that grow."""
    count = _CHUNK
    while sequences := fetch(before, count):
        yield from sequences
        if len(sequences) < count:
            return
        before, count = sequences[-1], min(2 * count, _MAX_CHUNK)


def _merge(sources: Iterable[tuple[int, Fetch]]) -> Iterator[int]:
    """Return the sequences of all sources, the highest first; a source is read once its first sequence is reached."""
    fetches = list(sources)
    heap = [(-first, number) for number, (first, _) in enumerate(fetches)]
    rest: dict[int, Iterator[int]] = {}
    heapq.heapify(heap)
    while heap:
        sequence, number = -heap[0][0], heap[0][1]
        yield sequence
        if number not in rest:
            rest[number] = _pull(fetches[number][1], sequence)
        following = next(rest[number], None)
        if following is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (-following, number))


def _places(values: Sequence[Any] | frozenset[Any]) -> str:
    return ", ".join("?" * len(values))
