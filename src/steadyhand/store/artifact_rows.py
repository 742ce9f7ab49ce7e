"""The rows of the files that jobs leave: functions of a connection inside a transaction.

A file is written first and stored then. Its row is there before its content, so nothing is written that nobody would
remove: neither after a crash nor if its job is deleted meanwhile.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, bindparam, delete, exists, insert, or_, select, text, update

from steadyhand.errors import Conflict, NotFound
from steadyhand.ports.artifacts import StoredArtifact
from steadyhand.store.mapping import to_microseconds
from steadyhand.store.schema import artifact_chunks, artifacts, jobs, runs

WRITING, STORED, REPLACED = "writing", "stored", "replaced"
WRITING_TTL = timedelta(days=1)
"""The time after which nobody writes a file any more that is not stored."""

_JOB = select(jobs.c.sequence).where(jobs.c.id == bindparam("job_id"))
_HAS_LATER_RUN = exists().where(runs.c.job == jobs.c.sequence, runs.c.number > bindparam("run_number"))
_JOB_OF_RUN = _JOB.where(~_HAS_LATER_RUN).scalar_subquery()
_STORED_FILES = (
    select(artifacts)
    .join(jobs, jobs.c.sequence == artifacts.c.job)
    .where(jobs.c.id == bindparam("job_id"), artifacts.c.state == STORED)
    .order_by(artifacts.c.run, artifacts.c.sequence)
)
_STORE = (
    update(artifacts)
    .where(
        artifacts.c.sequence == bindparam("file"),
        artifacts.c.state.in_((WRITING, STORED)),
        artifacts.c.job == _JOB_OF_RUN,
    )
    .values(state=STORED, run=bindparam("run_number"), at=bindparam("moment"))
)
_REPLACE = (
    update(artifacts)
    .where(
        artifacts.c.job == _JOB.scalar_subquery(),
        artifacts.c.name == bindparam("file_name"),
        artifacts.c.state == STORED,
        artifacts.c.run <= bindparam("run_number"),
        artifacts.c.sequence != bindparam("file"),
    )
    .values(state=REPLACED)
)
_CHUNK = select(artifact_chunks.c.data).where(
    artifact_chunks.c.artifact == bindparam("file"), artifact_chunks.c.number == bindparam("chunk")
)
# The first condition is that of the index.
_UNUSED = (
    select(artifacts.c.sequence, artifacts.c.object_key)
    .where(
        text("(job IS NULL OR state <> 'stored')"),
        or_(artifacts.c.state != WRITING, artifacts.c.at <= bindparam("moment")),
    )
    .order_by(artifacts.c.sequence)
    .limit(bindparam("most"))
)
_UNUSED_IN_DATABASE = _UNUSED.where(artifacts.c.object_key.is_(None))


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file that is to be stored: a new one, or one that is stored already and has not changed."""

    id: int
    name: str


def begin_file(
    connection: Connection,
    job_id: str,
    run: int,
    *,
    name: str,
    size: int,
    digest: str,
    object_key: str | None,
    now: datetime,
) -> int:
    """Add the row of a file that will be written, and return its id. Raise `NotFound` without the job."""
    job = connection.execute(_JOB, {"job_id": job_id}).scalar()
    if job is None:
        raise NotFound("Job not found")
    row = {
        "job": job,
        "name": name,
        "run": run,
        "state": WRITING,
        "size": size,
        "digest": digest,
        "object_key": object_key,
        "at": to_microseconds(now),
    }
    file: int = connection.execute(insert(artifacts).returning(artifacts.c.sequence), row).scalar_one()
    return file


def add_chunk(connection: Connection, file: int, number: int, data: bytes) -> None:
    """Add a piece of a file's content."""
    connection.execute(insert(artifact_chunks), {"artifact": file, "number": number, "data": data})


def read_chunk(connection: Connection, file: int, number: int) -> bytes | None:
    """Return a piece of a file's content; None after the last one."""
    data = connection.execute(_CHUNK, {"file": file, "chunk": number}).scalar()
    return None if data is None else bytes(data)


def store_files(
    connection: Connection,
    job_id: str,
    run: int,
    files: Sequence[NewFile],
    *,
    removed: Collection[str],
    now: datetime,
) -> None:
    """Let files take the place of those of the same names. Raise as `Artifacts.save` does."""
    moment = to_microseconds(now)
    for file in files:
        values = {"file": file.id, "job_id": job_id, "run_number": run, "moment": moment}
        if not connection.execute(_STORE, values).rowcount:
            raise _refusal(connection, job_id)
        _replace(connection, job_id, run, file.name, file.id)
    if (
        not files
        and connection.execute(select(_JOB_OF_RUN), {"job_id": job_id, "run_number": run}).scalar() is None
    ):
        raise _refusal(connection, job_id)
    for name in removed:
        _replace(connection, job_id, run, name, 0)


def _replace(connection: Connection, job_id: str, run: int, name: str, file: int) -> None:
    values = {"job_id": job_id, "run_number": run, "file_name": name, "file": file}
    connection.execute(_REPLACE, values)


def _refusal(connection: Connection, job_id: str) -> NotFound | Conflict:
    if connection.execute(_JOB, {"job_id": job_id}).scalar() is None:
        return NotFound("Job not found")
    return Conflict("A later run of the job has begun.", code="run_is_over")


def discard_files(connection: Connection, files: Sequence[int]) -> None:
    """Mark files that were not stored as unused. An object may still be on its way: its row stays until it is old."""
    is_new = (artifacts.c.state == WRITING) & artifacts.c.object_key.is_(None)
    connection.execute(
        update(artifacts).where(artifacts.c.sequence.in_(files), is_new).values(state=REPLACED)
    )


def list_stored(connection: Connection, job_id: str) -> Mapping[str, StoredArtifact]:
    """Return the stored files of a job by name: those of the latest run."""
    rows = connection.execute(_STORED_FILES, {"job_id": job_id}).mappings()
    return {
        row["name"]: StoredArtifact(
            row["sequence"], row["name"], row["run"], row["size"], row["digest"], row["object_key"]
        )
        for row in rows
    }


def is_stored(connection: Connection, file: int) -> bool:
    """Return True if a file is still the one of its name."""
    query = select(artifacts.c.state).where(artifacts.c.sequence == file, artifacts.c.job.is_not(None))
    return bool(connection.execute(query).scalar() == STORED)


def list_unused(
    connection: Connection, now: datetime, limit: int, *, with_objects: bool
) -> Sequence[tuple[int, str | None]]:
    """Return some files that no job has any more, each with the name of its object."""
    query = _UNUSED if with_objects else _UNUSED_IN_DATABASE
    values = {"moment": to_microseconds(now - WRITING_TTL), "most": limit}
    return [(row.sequence, row.object_key) for row in connection.execute(query, values)]


def delete_files(connection: Connection, files: Sequence[int]) -> None:
    """Delete the rows of files with their content."""
    connection.execute(delete(artifact_chunks).where(artifact_chunks.c.artifact.in_(files)))
    connection.execute(delete(artifacts).where(artifacts.c.sequence.in_(files)))


def replace_older(
    connection: Connection, names: Collection[str], moment: datetime, spared: Collection[str]
) -> None:
    """Mark the files of these names that were stored before `moment` as unused, except those of some jobs."""
    kept = select(jobs.c.sequence).where(jobs.c.id.in_(list(spared)))
    connection.execute(
        update(artifacts)
        .where(
            artifacts.c.at < to_microseconds(moment),
            artifacts.c.name.in_(list(names)),
            artifacts.c.state == STORED,
            artifacts.c.job.not_in(kept),
        )
        .values(state=REPLACED)
    )
