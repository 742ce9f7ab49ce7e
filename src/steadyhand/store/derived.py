"""Rows that are derived from jobs, in the transaction that writes these: groups, tags, zones and the search index."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping

from steadyhand.store.bulk_insert import CompiledInsert
from steadyhand.store.driver import execute, fetch_all
from steadyhand.store.mapping import metadata_tags
from steadyhand.store.schema import ZONE_SIZE, job_tags
from steadyhand.store.search import TextRow, add_texts, remove_texts, text_row

SEARCH_PROGRESS = "search"
"""The name of a row of `progress`: the jobs up to its value are not in the search index yet."""
SOURCE_COLUMNS = (
    "sequence",
    "api_key_id",
    "agent",
    "workspace",
    "created_at",
    "metadata",
    "record",
    "prompt",
)
"""The columns of `jobs` from which the rows here are derived."""

_INSERT_TAG = CompiledInsert(job_tags)
_SELECT_GROUP = "SELECT id FROM job_groups WHERE api_key_id = ? AND agent = ? AND workspace IS ?"
_INSERT_GROUP = (
    "INSERT INTO job_groups (api_key_id, agent, workspace) VALUES (?, ?, ?) "
    "ON CONFLICT DO NOTHING RETURNING id"
)
_DELETE_UNUSED_GROUP = (
    "DELETE FROM job_groups WHERE api_key_id = :key AND agent = :agent AND workspace IS :workspace AND NOT EXISTS "
    "(SELECT 1 FROM jobs INDEXED BY ix_jobs_group "
    "WHERE api_key_id = :key AND agent = :agent AND workspace IS :workspace)"
)
_DELETE_TAG = "DELETE FROM job_tags WHERE tag = ? AND group_id = ? AND job = ?"
_WIDEN_ZONE = (
    "INSERT INTO job_zones (zone, first_created, last_created) VALUES (?, ?, ?) ON CONFLICT (zone) DO UPDATE SET "
    "first_created = CASE WHEN excluded.first_created < job_zones.first_created THEN excluded.first_created "
    "ELSE job_zones.first_created END, "
    "last_created = CASE WHEN excluded.last_created > job_zones.last_created THEN excluded.last_created "
    "ELSE job_zones.last_created END"
)
_DELETE_EMPTY_ZONES = "DELETE FROM job_zones WHERE zone < (SELECT min(sequence) FROM jobs) / ?"
_SEARCH_BEGINS = "SELECT value FROM progress WHERE name = ?"


@dataclass(frozen=True, slots=True)
class JobSource:
    """The fields of a job from which the rows are derived; `metadata` is JSON."""

    text: TextRow
    created_at: int
    metadata: str | None

    @property
    def names(self) -> tuple[str, str, str | None]:
        """The key, the agent and the workspace: the job's group."""
        return self.text.api_key_id, self.text.agent, self.text.workspace


def source_of_row(row: RowMapping) -> JobSource:
    """Return the source of a job by its row, which has at least `SOURCE_COLUMNS`."""
    return JobSource(text_row(row), row["created_at"], row["metadata"])


def source_of_columns(sequence: int, columns: Mapping[str, Any], title: str | None) -> JobSource:
    """Return the source of a job by the columns that `job_row` made, and its title."""
    names = (columns["api_key_id"], columns["agent"], columns["workspace"])
    return JobSource(
        TextRow(sequence, *names, title, columns["prompt"]), columns["created_at"], columns["metadata"]
    )


def add(connection: Connection, sources: Sequence[JobSource]) -> None:
    """Derive the rows of new jobs."""
    groups = {names: _group_id(connection, names) for names in {source.names for source in sources}}
    _INSERT_TAG.run(connection, _tag_rows(sources, groups))
    _widen_zones(connection, sources)
    add_texts(connection, [source.text for source in sources])


def remove(connection: Connection, sources: Sequence[JobSource]) -> None:
    """Remove the rows of jobs that are deleted in this transaction."""
    groups = {names: _group_id(connection, names) for names in {source.names for source in sources}}
    tags = [(row["tag"], row["group_id"], row["job"]) for row in _tag_rows(sources, groups)]
    for tag in tags:
        execute(connection, _DELETE_TAG, tag)
    for names in groups:
        execute(
            connection, _DELETE_UNUSED_GROUP, dict(zip(("key", "agent", "workspace"), names, strict=True))
        )
    execute(connection, _DELETE_EMPTY_ZONES, (ZONE_SIZE,))
    first = first_searchable(connection)
    remove_texts(connection, [source.text for source in sources if source.text.sequence >= first])


def replace(connection: Connection, before: JobSource, after: JobSource) -> None:
    """Derive the rows of a job anew, if a field that they depend on has changed."""
    if before != after:
        remove(connection, [before])
        add(connection, [after])
        if after.text.sequence < first_searchable(connection):
            remove_texts(connection, [after.text])


def first_searchable(connection: Connection) -> int:
    """Return the sequence from which on jobs are in the search index; those before it are added from the last one."""
    row = execute(connection, _SEARCH_BEGINS, (SEARCH_PROGRESS,)).fetchone()
    return 0 if row is None else int(row[0]) + 1


def _group_id(connection: Connection, names: tuple[str, str, str | None]) -> int:
    # Another one of the same names, which came meanwhile, is taken as it is.
    found = (
        fetch_all(connection, _SELECT_GROUP, names)
        or fetch_all(connection, _INSERT_GROUP, names)
        or fetch_all(connection, _SELECT_GROUP, names)
    )
    return int(found[0][0])


def _tag_rows(
    sources: Iterable[JobSource], groups: Mapping[tuple[str, str, str | None], int]
) -> list[dict[str, int]]:
    return [
        {"tag": tag, "group_id": groups[source.names], "job": source.text.sequence}
        for source in sources
        for tag in metadata_tags(source.metadata)
    ]


def _widen_zones(connection: Connection, sources: Iterable[JobSource]) -> None:
    times: dict[int, list[int]] = {}
    for source in sources:
        times.setdefault(source.text.sequence // ZONE_SIZE, []).append(source.created_at)
    rows = [(zone, min(created), max(created)) for zone, created in times.items()]
    for row in rows:  # one, or two at a border
        execute(connection, _WIDEN_ZONE, row)
