"""Queries: functions of a connection inside a transaction, so that each reads one consistent state."""

import base64
import binascii
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import (
    Connection,
    bindparam,
    func,
    select,
    text,
)

from steadyhand.errors import InvalidRequest
from steadyhand.events import Event
from steadyhand.job import ENDED, Job, Run, State
from steadyhand.ports import ApiKey, IdempotencyKey, JobFilter, JobPage, RunOutput
from steadyhand.retry import MAX_ANCESTORS, awaits_parent, has_started_agent
from steadyhand.store.lists import MAX_SEQUENCE, matching_sequences
from steadyhand.store.mapping import (
    BRIEF_PROMPT_LENGTH,
    event_from_row,
    job_from_row,
    key_from_row,
    output_from_row,
    run_from_row,
    to_microseconds,
)
from steadyhand.store.schema import (
    IS_RESTARTED,
    IS_UNSTARTED_TURN,
    events,
    idempotency,
    jobs,
    keys,
    run_outputs,
    runs,
)

IDEMPOTENCY_TTL = timedelta(hours=24)
"""The time for which a caller's `Idempotency-Key` refers to the same job."""

_LAST_EVENT = (
    select(func.coalesce(func.max(events.c.seq), 0))
    .where(events.c.job == jobs.c.sequence)
    .scalar_subquery()
    .label("last_event")
)
_JOB = select(*jobs.c, _LAST_EVENT).where(jobs.c.id == bindparam("job_id"))
_RUNS = select(runs).where(runs.c.job == bindparam("job")).order_by(runs.c.number)
_LAST_EVENT_OF_JOB = select(func.coalesce(func.max(events.c.seq), 0)).where(events.c.job == bindparam("job"))
_EVENTS = (
    select(events)
    .join(jobs, jobs.c.sequence == events.c.job)
    .where(jobs.c.id == bindparam("job_id"), events.c.seq > bindparam("after"))
    .order_by(events.c.seq)
    .limit(bindparam("most"))
)
_LARGE_COLUMNS = ("prompt", "answer", "structured_output", "history")
_BRIEF_JOB = select(
    *(column for column in jobs.c if column.name not in _LARGE_COLUMNS),
    func.substr(jobs.c.prompt, 1, BRIEF_PROMPT_LENGTH).label("prompt"),
    _LAST_EVENT,
)
_CHUNK_SIZE = 500
# SQLite is told the index: without statistics it may prefer the one of the states, and read the whole history.
_UNSTARTED_TURNS = text(
    f"SELECT sequence FROM jobs INDEXED BY ix_jobs_turns WHERE {IS_UNSTARTED_TURN} ORDER BY sequence"  # noqa: S608  # our own words
)
_RESTARTED = text(
    f"SELECT sequence FROM jobs INDEXED BY ix_jobs_at_start WHERE {IS_RESTARTED} ORDER BY sequence"  # noqa: S608
)
_ENDED_BEFORE = text(
    "SELECT id FROM jobs INDEXED BY ix_jobs_finished_at WHERE finished_at < :moment AND state IN :states "
    "ORDER BY finished_at, sequence LIMIT :most"
).bindparams(bindparam("states", expanding=True))


def get_job(connection: Connection, job_id: str) -> Job | None:
    """Return a job with its runs, or `None`."""
    row = connection.execute(_JOB, {"job_id": job_id}).mappings().first()
    return None if row is None else job_from_row(row, _runs_of(connection, row["sequence"]))


def _runs_of(connection: Connection, sequence: int) -> list[Run]:
    return [run_from_row(row) for row in connection.execute(_RUNS, {"job": sequence}).mappings()]


def last_event_number(connection: Connection, sequence: int) -> int:
    """Return the number of a job's newest event, 0 if it has none."""
    return int(connection.execute(_LAST_EVENT_OF_JOB, {"job": sequence}).scalar_one())


def get_replayed(connection: Connection, api_key_id: str, key: IdempotencyKey, now: datetime) -> Job | None:
    """Return the job that this idempotency key created in the last 24 hours, or `None`.

    Raise `InvalidRequest` (`idempotency_mismatch`) if the key came with another request.
    """
    oldest = to_microseconds(now - IDEMPOTENCY_TTL)
    row = connection.execute(
        select(idempotency.c.fingerprint, jobs.c.id)
        .join(jobs, jobs.c.sequence == idempotency.c.job)
        .where(
            idempotency.c.api_key_id == api_key_id,
            idempotency.c.key == key.key,
            idempotency.c.created_at > oldest,
        )
    ).first()
    if row is None:
        return None
    if row.fingerprint != key.fingerprint:
        raise InvalidRequest(
            "This Idempotency-Key was used within the last 24 hours with another body.",
            code="idempotency_mismatch",
        )
    return get_job(connection, row.id)


def list_jobs(connection: Connection, job_filter: JobFilter, limit: int, cursor: str | None) -> JobPage:
    """Return a page of jobs in brief, newest first; see `Store.list_jobs`."""
    before = MAX_SEQUENCE if cursor is None else decode_cursor(cursor)
    sequences = matching_sequences(connection, job_filter, before, limit + 1)
    page_sequences = sequences[:limit]
    has_more = len(sequences) > limit and bool(page_sequences)
    return JobPage(
        _brief_jobs(connection, page_sequences), encode_cursor(page_sequences[-1]) if has_more else None
    )


def _brief_jobs(connection: Connection, sequences: Sequence[int]) -> list[Job]:
    rows = connection.execute(_BRIEF_JOB.where(jobs.c.sequence.in_(sequences))).mappings()
    rows_by_sequence = {row["sequence"]: dict(row) for row in rows}
    query = select(runs).where(runs.c.job.in_(sequences)).order_by(runs.c.job, runs.c.number)
    runs_by_job: dict[int, list[Run]] = {sequence: [] for sequence in sequences}
    for row in connection.execute(query).mappings():
        runs_by_job[row["job"]].append(run_from_row(row))
    return [job_from_row(rows_by_sequence[sequence], runs_by_job[sequence]) for sequence in sequences]


def encode_cursor(sequence: int) -> str:
    """Return the opaque cursor of the page after a job."""
    return base64.urlsafe_b64encode(str(sequence).encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> int:
    """Return the sequence in a cursor. Raise `InvalidRequest` (`bad_cursor`) if `encode_cursor` did not make it."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        digits = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
        sequence = int(digits)
    except (ValueError, binascii.Error):
        sequence = 0
    if not 0 < sequence <= MAX_SEQUENCE or encode_cursor(sequence) != cursor:
        raise InvalidRequest.at("?cursor", "is not a cursor that this service gave", code="bad_cursor")
    return sequence


def list_events(connection: Connection, job_id: str, after: int, limit: int) -> list[Event]:
    """Return a job's events after a number; see `Store.list_events`."""
    values = {"job_id": job_id, "after": after, "most": limit}
    return [event_from_row(job_id, row) for row in connection.execute(_EVENTS, values).mappings()]


def get_output(connection: Connection, job_id: str) -> RunOutput | None:
    """Return the newest output of a job; see `Store.get_output`."""
    query = (
        select(run_outputs)
        .join(jobs, jobs.c.sequence == run_outputs.c.job)
        .where(jobs.c.id == job_id)
        .order_by(run_outputs.c.run.desc())
        .limit(1)
    )
    row = connection.execute(query).mappings().first()
    return None if row is None else output_from_row(row)


def list_in_states(connection: Connection, states: frozenset[State]) -> list[Job]:
    """Return the jobs in these states; see `Store.list_in_states`."""
    query = select(*jobs.c, _LAST_EVENT).where(jobs.c.state.in_(sorted(states))).order_by(jobs.c.sequence)
    rows = connection.execute(query).mappings().all()
    return [job_from_row(row, _runs_of(connection, row["sequence"])) for row in rows]


def list_ended_before(connection: Connection, moment: datetime, limit: int) -> list[str]:
    """Return ids of jobs that ended before a time; see `Store.list_ended_before`."""
    awaited = list_awaited(connection)
    values = {"moment": to_microseconds(moment), "most": limit + len(awaited), "states": sorted(ENDED)}
    job_ids = connection.execute(_ENDED_BEFORE, values).scalars()
    return [job_id for job_id in job_ids if job_id not in awaited][:limit]


def list_restarted(connection: Connection) -> list[Job]:
    """Return the interrupted jobs that the next start queues again; see `Store.list_restarted`."""
    found = _brief_jobs_in_chunks(connection, list(connection.execute(_RESTARTED).scalars()))
    return [job for job in found if job.state is State.INTERRUPTED and job.at_start is not None]


def list_awaited(connection: Connection) -> dict[str, str]:
    """Return the jobs whose session a turn needs, each with such a turn; see `Store.list_awaited`."""
    turns = _brief_jobs_in_chunks(connection, list(connection.execute(_UNSTARTED_TURNS).scalars()))
    pending = {turn.parent_job_id: turn.id for turn in turns if awaits_parent(turn)}
    awaited: dict[str, str] = {}
    for _ in range(MAX_ANCESTORS):
        found = {job_id: turn_id for job_id, turn_id in pending.items() if job_id and job_id not in awaited}
        if not found:
            break
        awaited |= found
        ancestors = _brief_jobs_in_chunks(connection, list(_sequences_of(connection, found).values()))
        # A job that never ran has no session: the turn continues the one before it.
        pending = {
            each.parent_job_id: found[each.id]
            for each in ancestors
            if each.state.ended and not has_started_agent(each)
        }
    return awaited


def _brief_jobs_in_chunks(connection: Connection, sequences: Sequence[int]) -> list[Job]:
    chunks = (sequences[at : at + _CHUNK_SIZE] for at in range(0, len(sequences), _CHUNK_SIZE))
    return [job for chunk in chunks for job in _brief_jobs(connection, chunk)]


def _sequences_of(connection: Connection, job_ids: Collection[str]) -> dict[str, int]:
    ids = sorted(job_ids)
    sequences: dict[str, int] = {}
    for at in range(0, len(ids), _CHUNK_SIZE):
        query = select(jobs.c.id, jobs.c.sequence).where(jobs.c.id.in_(ids[at : at + _CHUNK_SIZE]))
        sequences.update((row.id, row.sequence) for row in connection.execute(query))
    return sequences


def all_exist(connection: Connection, job_ids: Collection[str]) -> bool:
    """Return True if each of these jobs exists."""
    return len(_sequences_of(connection, job_ids)) == len(job_ids)


def list_keys(connection: Connection) -> list[ApiKey]:
    """Return the keys, oldest first; see `Store.list_keys`."""
    query = select(keys).order_by(keys.c.created_at, keys.c.id)
    return [key_from_row(row) for row in connection.execute(query).mappings()]


def check_readable(connection: Connection) -> None:
    """Run a query that any readable database answers."""
    connection.execute(select(func.count()).select_from(select(jobs.c.sequence).limit(1).subquery())).scalar()
