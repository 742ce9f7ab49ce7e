"""Queries: functions of a connection inside a transaction, so that each reads one consistent state."""

import base64
import binascii
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    and_,
    bindparam,
    func,
    or_,
    select,
)

from steadyhand.errors import InvalidRequest
from steadyhand.events import Event, ToolFinished, ToolStarted
from steadyhand.job import ENDED, Job, State
from steadyhand.ports import ApiKey, IdempotencyKey, JobFilter, JobPage, ModelCall, RunOutput
from steadyhand.retry import MAX_ANCESTORS, awaits_parent, has_started_agent
from steadyhand.store.brief_jobs import BriefJobs, read_brief_jobs
from steadyhand.store.driver import POSTGRES, SQLITE, fetch_all
from steadyhand.store.job_sequences import JobSequences
from steadyhand.store.json_texts import field_text, field_values
from steadyhand.store.lists import MAX_SEQUENCE, matching_sequences
from steadyhand.store.mapping import (
    call_from_row,
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
    calls,
    deleted_jobs,
    events,
    idempotency,
    jobs,
    keys,
    run_outputs,
    runs,
)

IDEMPOTENCY_TTL = timedelta(hours=24)
"""The time for which a caller's `Idempotency-Key` refers to the same job."""

_LAST_EVENT = func.coalesce(func.max(events.c.seq), 0).label("last_event")
_LAST_EVENT_OF_JOB = select(_LAST_EVENT).where(events.c.job == bindparam("job")).subquery("newest")
_JOB = select(*jobs.c).where(jobs.c.id == bindparam("job_id"))
_JOB_OF_SEQUENCE = select(*jobs.c).where(jobs.c.sequence == bindparam("sequence"))
# By the number of the job: Postgres then plans for the one partition of events that has it, and locks no other.
_NEWEST_AND_RUNS = (
    select(_LAST_EVENT_OF_JOB.c.last_event, *runs.c)
    .select_from(_LAST_EVENT_OF_JOB.outerjoin(runs, runs.c.job == bindparam("job")))
    .order_by(runs.c.number)
)


def _last_events(*bounds: ColumnElement[bool]) -> Select[Any]:
    newest = select(_LAST_EVENT).where(events.c.job == jobs.c.sequence, *bounds).scalar_subquery()
    query = select(jobs.c.id, jobs.c.sequence, newest.label("last_event"))
    return query.where(jobs.c.id.in_(bindparam("job_ids", expanding=True)))


_LAST_EVENTS = {
    SQLITE: _last_events(),
    POSTGRES: _last_events(events.c.job.between(bindparam("first"), bindparam("last"))),
}


def _events_of_job(dialect: str) -> Select[Any]:
    query = select(events).join(jobs, jobs.c.sequence == events.c.job).where(jobs.c.id == bindparam("job_id"))
    return query.where(events.c.job == bindparam("sequence")) if dialect == POSTGRES else query


_EVENTS = {
    dialect: _events_of_job(dialect)
    .where(events.c.seq > bindparam("after"))
    .order_by(events.c.seq)
    .limit(bindparam("most"))
    for dialect in (SQLITE, POSTGRES)
}
_DELETED = select(deleted_jobs.c.id).where(deleted_jobs.c.id.in_(bindparam("job_ids", expanding=True)))
_CHUNK_SIZE = 500
# SQLite is told the index: without statistics it may prefer the one of the states, and read the whole history.
_UNSTARTED_TURNS = (
    f"SELECT sequence FROM jobs INDEXED BY ix_jobs_turns WHERE {IS_UNSTARTED_TURN} ORDER BY sequence"  # noqa: S608  # our own words
)
_RESTARTED = f"SELECT sequence FROM jobs INDEXED BY ix_jobs_at_start WHERE {IS_RESTARTED} ORDER BY sequence"  # noqa: S608
_ENDED_BEFORE = (
    "SELECT id FROM jobs INDEXED BY ix_jobs_finished_at WHERE finished_at < ? "  # noqa: S608
    f"AND state IN ({', '.join(repr(state.value) for state in sorted(ENDED))}) ORDER BY finished_at, sequence LIMIT ?"
)


def _newest_events(dialect: str) -> Select[Any]:
    name = field_text(dialect, events.c.data, "name")
    is_tool = and_(events.c.type == ToolStarted.type, name.in_(bindparam("tools", expanding=True)))
    return (
        _events_of_job(dialect)
        .where(or_(events.c.type.in_(bindparam("types", expanding=True)), is_tool))
        .order_by(events.c.seq.desc())
        .limit(bindparam("most"))
    )


def _tool_results(dialect: str) -> Select[Any]:
    return _events_of_job(dialect).where(
        events.c.type == ToolFinished.type,
        field_text(dialect, events.c.data, "tool_id").in_(bindparam("ids", expanding=True)),
    )


_NEWEST_EVENTS = {dialect: _newest_events(dialect) for dialect in (SQLITE, POSTGRES)}
_TOOL_RESULTS = {dialect: _tool_results(dialect) for dialect in (SQLITE, POSTGRES)}


def get_job(connection: Connection, job_id: str) -> Job | None:
    """Return a job with its runs, or `None`."""
    row = connection.execute(_JOB, {"job_id": job_id}).mappings().first()
    return None if row is None else _job_of(connection, row)


def find_conversation(connection: Connection, api_key_id: str, conversation: str) -> Job | None:
    """Return the only job of a key with this conversation; see `Store.find_conversation`."""
    job_filter = JobFilter(api_key_id=api_key_id, conversation=conversation)
    sequences = matching_sequences(connection, job_filter, MAX_SEQUENCE, 2)
    if len(sequences) != 1:
        return None
    row = connection.execute(_JOB_OF_SEQUENCE, {"sequence": sequences[0]}).mappings().one()
    return _job_of(connection, row)


def _job_of(connection: Connection, row: RowMapping) -> Job:
    """Return the job of a row, with its runs and the number of its newest event."""
    found = connection.execute(_NEWEST_AND_RUNS, {"job": row["sequence"]}).mappings().all()
    job_runs = [run_from_row(each) for each in found if each["number"] is not None]
    return job_from_row({**row, "last_event": found[0]["last_event"]}, job_runs)


def last_event_numbers(
    connection: Connection, job_ids: Collection[str], sequences: Collection[int]
) -> dict[str, tuple[int, int]]:
    """Return the sequence of each job that exists, and the number of its newest event, 0 if it has none.

    Postgres looks for them between the first and the last of `sequences` alone, which are those of the jobs.
    """
    values: dict[str, Any] = {"job_ids": list(job_ids)}
    if connection.dialect.name == POSTGRES:
        values |= {"first": min(sequences, default=0), "last": max(sequences, default=0)}
    rows = connection.execute(_LAST_EVENTS[connection.dialect.name], values)
    return {row.id: (row.sequence, row.last_event) for row in rows}


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


def list_jobs(
    connection: Connection, job_filter: JobFilter, limit: int, cursor: str | None, brief_jobs: BriefJobs
) -> JobPage:
    """Return a page of jobs in brief, newest first; see `Store.list_jobs`."""
    before = MAX_SEQUENCE if cursor is None else decode_cursor(cursor)
    sequences = matching_sequences(connection, job_filter, before, limit + 1)
    page_sequences = sequences[:limit]
    has_more = len(sequences) > limit and bool(page_sequences)
    return JobPage(
        brief_jobs.read(connection, page_sequences), encode_cursor(page_sequences[-1]) if has_more else None
    )


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


def list_events(
    connection: Connection, job_id: str, after: int, limit: int, sequences: JobSequences
) -> list[Event]:
    """Return a job's events after a number; see `Store.list_events`."""
    job = _values_of_job(connection, job_id, sequences)
    if job is None:
        return []
    values = {**job, "after": after, "most": limit}
    rows = connection.execute(_EVENTS[connection.dialect.name], values).mappings()
    return [event_from_row(job_id, row) for row in rows]


def _values_of_job(connection: Connection, job_id: str, sequences: JobSequences) -> dict[str, Any] | None:
    """Return the values of `_events_of_job`; None if the job does not exist."""
    if connection.dialect.name != POSTGRES:
        return {"job_id": job_id}
    sequence = sequences.find(connection, job_id)
    return None if sequence is None else {"job_id": job_id, "sequence": sequence}


def list_newest_events(
    connection: Connection,
    job_id: str,
    types: frozenset[str],
    tools: frozenset[str],
    limit: int,
    *,
    sequences: JobSequences,
) -> list[Event]:
    """Return the newest events of types and calls of tools; see `Store.list_newest_events`."""
    job = _values_of_job(connection, job_id, sequences)
    if job is None:
        return []
    values = {
        **job,
        "types": sorted(types),
        "tools": field_values(connection, sorted(tools)),
        "most": limit,
    }
    rows = list(connection.execute(_NEWEST_EVENTS[connection.dialect.name], values).mappings())[::-1]
    found = [event_from_row(job_id, row) for row in rows]
    ids = sorted({event.data["tool_id"] for event in found if event.type == ToolStarted.type})
    ids = [
        each for each in ids if each.encode("utf-8", "ignore").decode() == each
    ]  # SQL has no half characters
    for chunk in range(0, len(ids), _CHUNK_SIZE):
        values = {**job, "ids": field_values(connection, ids[chunk : chunk + _CHUNK_SIZE])}
        results = connection.execute(_TOOL_RESULTS[connection.dialect.name], values).mappings()
        found += [event_from_row(job_id, row) for row in results if row["type"] not in types]
    return sorted(found, key=lambda event: event.seq)


def list_calls(connection: Connection, job_id: str, limit: int) -> list[ModelCall]:
    """Return the newest calls of a job; see `Ledger.list_calls`."""
    query = select(calls).where(calls.c.job_id == job_id).order_by(calls.c.at.desc(), calls.c.id.desc())
    return [call_from_row(row) for row in connection.execute(query.limit(limit)).mappings()][::-1]


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
    query = select(*jobs.c).where(jobs.c.state.in_(sorted(states))).order_by(jobs.c.sequence)
    rows = connection.execute(query).mappings().all()
    return [_job_of(connection, row) for row in rows]


def list_ended_before(connection: Connection, moment: datetime, limit: int) -> list[str]:
    """Return ids of jobs that ended before a time; see `Store.list_ended_before`."""
    if not fetch_all(connection, _ENDED_BEFORE, (to_microseconds(moment), 1)):
        return []  # mostly
    awaited = list_awaited(connection)
    rows = fetch_all(connection, _ENDED_BEFORE, (to_microseconds(moment), limit + len(awaited)))
    return [job_id for (job_id,) in rows if job_id not in awaited][:limit]


def list_restarted(connection: Connection) -> list[Job]:
    """Return the interrupted jobs that the next start queues again; see `Store.list_restarted`."""
    found = read_brief_jobs(connection, [row[0] for row in fetch_all(connection, _RESTARTED)])
    return [job for job in found if job.state is State.INTERRUPTED and job.at_start is not None]


def list_awaited(connection: Connection) -> dict[str, str]:
    """Return the jobs whose session a turn needs, each with such a turn; see `Store.list_awaited`."""
    turns = read_brief_jobs(connection, [row[0] for row in fetch_all(connection, _UNSTARTED_TURNS)])
    pending = {turn.parent_job_id: turn.id for turn in turns if awaits_parent(turn)}
    awaited: dict[str, str] = {}
    for _ in range(MAX_ANCESTORS):
        found = {job_id: turn_id for job_id, turn_id in pending.items() if job_id and job_id not in awaited}
        if not found:
            break
        awaited |= found
        ancestors = read_brief_jobs(connection, list(_sequences_of(connection, found).values()))
        # A job that never ran has no session: the turn continues the one before it.
        pending = {
            each.parent_job_id: found[each.id]
            for each in ancestors
            if each.state.ended and not has_started_agent(each)
        }
    return awaited


def list_deleted(connection: Connection, job_ids: Sequence[str]) -> list[str]:
    """Return those of these jobs that were deleted lately; see `Store.list_deleted`."""
    return list(connection.scalars(_DELETED, {"job_ids": list(job_ids)}))


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
