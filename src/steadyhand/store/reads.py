"""What reads the database: functions of a connection inside a transaction, so that each sees one moment."""

import base64
import binascii
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    func,
    select,
)

from steadyhand.errors import InvalidRequest
from steadyhand.events import Event
from steadyhand.job import ENDED, Job, Run, State
from steadyhand.ports import ApiKey, Filter, Idempotency, Page, RunOutput
from steadyhand.store.mapping import (
    BRIEF_PROMPT,
    event_of,
    job_of,
    key_of,
    metadata_says,
    micros,
    output_of,
    run_of,
    to_json,
)
from steadyhand.store.schema import events, idempotency, jobs, keys, run_outputs, runs

IDEMPOTENCY_LIFE = timedelta(hours=24)
"""For how long a caller's `Idempotency-Key` means the same job."""

_LAST_EVENT = (
    select(func.coalesce(func.max(events.c.seq), 0))
    .where(events.c.job == jobs.c.sequence)
    .scalar_subquery()
    .label("last_event")
)
_JOB = select(*jobs.c, _LAST_EVENT).where(jobs.c.id == bindparam("job_id"))
_RUNS = select(runs).where(runs.c.job == bindparam("job")).order_by(runs.c.number)
_NUMBER_OF_LAST = select(func.coalesce(func.max(events.c.seq), 0)).where(events.c.job == bindparam("job"))
_EVENTS = (
    select(events)
    .join(jobs, jobs.c.sequence == events.c.job)
    .where(jobs.c.id == bindparam("job_id"), events.c.seq > bindparam("after"))
    .order_by(events.c.seq)
    .limit(bindparam("most"))
)
_LARGE = ("prompt", "answer", "structured_output", "history")
_BRIEF = select(
    *(column for column in jobs.c if column.name not in _LARGE),
    func.substr(jobs.c.prompt, 1, BRIEF_PROMPT).label("prompt"),
    _LAST_EVENT,
)
_CHUNK = 500
_HIGHEST_SEQUENCE = 2**63 - 1


def job(connection: Connection, job_id: str) -> Job | None:
    """Give a job with its runs, or null."""
    row = connection.execute(_JOB, {"job_id": job_id}).mappings().first()
    return None if row is None else job_of(row, _runs_of(connection, row["sequence"]))


def _runs_of(connection: Connection, sequence: int) -> list[Run]:
    return [run_of(row) for row in connection.execute(_RUNS, {"job": sequence}).mappings()]


def last_event(connection: Connection, sequence: int) -> int:
    """Give the number of a job's newest event, 0 when it has none."""
    return int(connection.execute(_NUMBER_OF_LAST, {"job": sequence}).scalar_one())


def replayed_job(connection: Connection, api_key_id: str, wanted: Idempotency, now: datetime) -> Job | None:
    """Give the job that a caller's key made within the last 24 hours, or null.

    Raises `InvalidRequest` (`idempotency_mismatch`) when the key came with another request.
    """
    oldest = micros(now - IDEMPOTENCY_LIFE)
    found = connection.execute(
        select(idempotency.c.fingerprint, jobs.c.id)
        .join(jobs, jobs.c.sequence == idempotency.c.job)
        .where(
            idempotency.c.api_key_id == api_key_id,
            idempotency.c.key == wanted.key,
            idempotency.c.created_at > oldest,
        )
    ).first()
    if found is None:
        return None
    if found.fingerprint != wanted.fingerprint:
        raise InvalidRequest(
            "This Idempotency-Key was used within the last 24 hours with another body.",
            code="idempotency_mismatch",
        )
    return job(connection, found.id)


def page(connection: Connection, which: Filter, limit: int, cursor: str | None) -> Page:
    """Do `Store.page`: jobs in brief, newest first."""
    below = _HIGHEST_SEQUENCE if cursor is None else read_cursor(cursor)
    wanted: list[int] = []
    for sequence in _matching(connection, which, below, limit):
        wanted.append(sequence)
        if len(wanted) > limit:
            break
    shown = wanted[:limit]
    more = len(wanted) > limit and bool(shown)
    return Page(_briefs(connection, shown), write_cursor(shown[-1]) if more else None)


def _matching(connection: Connection, which: Filter, below: int, limit: int) -> Iterator[int]:
    """Give the sequences that match, from the highest below `below`, reading no more than is asked for."""
    chunk = _CHUNK if which.metadata else limit + 1
    query = (
        select(jobs.c.sequence, jobs.c.metadata)
        .where(*_conditions(which))
        .order_by(jobs.c.sequence.desc())
        .limit(chunk)
    )
    while True:
        rows = connection.execute(query.where(jobs.c.sequence < below)).all()
        for sequence, metadata in rows:
            if not which.metadata or metadata_says(metadata, which.metadata):
                yield sequence
        if len(rows) < chunk:
            return
        below = rows[-1][0]


def _conditions(which: Filter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if which.api_key_id is not None:
        found.append(jobs.c.api_key_id == which.api_key_id)
    if which.states:
        found.append(jobs.c.state.in_(sorted(which.states)))
    if which.agent is not None:
        found.append(jobs.c.agent == which.agent)
    if which.workspace is not None:
        found.append(jobs.c.workspace == which.workspace)
    for column in (jobs.c.session_id, jobs.c.session_name, jobs.c.conversation):
        wanted = getattr(which, column.name)
        if wanted is not None:
            found.append(column == wanted)
    if which.created_after is not None:
        found.append(jobs.c.created_at > micros(which.created_after))
    if which.created_before is not None:
        found.append(jobs.c.created_at < micros(which.created_before))
    if which.id_prefix:
        # The first condition lets the index help, the second is exact (LIKE would ignore case on SQLite).
        found.append(jobs.c.id >= which.id_prefix)
        found.append(func.substr(jobs.c.id, 1, len(which.id_prefix)) == which.id_prefix)
    # A first sieve that every database has: the value's text must stand in the JSON. `metadata_says` judges.
    texts = (to_json(value)[1:-1] for value in which.metadata.values())
    found.extend(jobs.c.metadata.contains(text, autoescape=True) for text in texts)
    return found


def _briefs(connection: Connection, sequences: Sequence[int]) -> list[Job]:
    rows = connection.execute(_BRIEF.where(jobs.c.sequence.in_(sequences))).mappings()
    found = {row["sequence"]: row for row in rows}
    query = select(runs).where(runs.c.job.in_(sequences)).order_by(runs.c.job, runs.c.number)
    attempts: dict[int, list[Run]] = {sequence: [] for sequence in sequences}
    for row in connection.execute(query).mappings():
        attempts[row["job"]].append(run_of(row))
    return [job_of(found[sequence], attempts[sequence]) for sequence in sequences]


def write_cursor(sequence: int) -> str:
    """Give the opaque cursor of the page that follows a job."""
    return base64.urlsafe_b64encode(str(sequence).encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> int:
    """Give the sequence in a cursor. Raises `InvalidRequest` (`bad_cursor`) for what `write_cursor` never gave."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        digits = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
        sequence = int(digits)
    except (ValueError, binascii.Error):
        sequence = 0
    if not 0 < sequence <= _HIGHEST_SEQUENCE or write_cursor(sequence) != cursor:
        raise InvalidRequest.at("?cursor", "is not a cursor that this service gave", code="bad_cursor")
    return sequence


def job_events(connection: Connection, job_id: str, after: int, limit: int) -> list[Event]:
    """Do `Store.events`."""
    values = {"job_id": job_id, "after": after, "most": limit}
    return [event_of(job_id, row) for row in connection.execute(_EVENTS, values).mappings()]


def newest_output(connection: Connection, job_id: str) -> RunOutput | None:
    """Do `Store.output`."""
    query = (
        select(run_outputs)
        .join(jobs, jobs.c.sequence == run_outputs.c.job)
        .where(jobs.c.id == job_id)
        .order_by(run_outputs.c.run.desc())
        .limit(1)
    )
    row = connection.execute(query).mappings().first()
    return None if row is None else output_of(row)


def jobs_in(connection: Connection, states: frozenset[State]) -> list[Job]:
    """Do `Store.in_states`."""
    query = select(*jobs.c, _LAST_EVENT).where(jobs.c.state.in_(sorted(states))).order_by(jobs.c.sequence)
    rows = connection.execute(query).mappings().all()
    return [job_of(row, _runs_of(connection, row["sequence"])) for row in rows]


def ended_before(connection: Connection, moment: datetime, limit: int) -> list[str]:
    """Do `Store.ended_before`."""
    query = (
        select(jobs.c.id)
        .where(jobs.c.finished_at < micros(moment), jobs.c.state.in_(sorted(ENDED)))
        .order_by(jobs.c.finished_at, jobs.c.sequence)
        .limit(limit)
    )
    return list(connection.execute(query).scalars())


def all_keys(connection: Connection) -> list[ApiKey]:
    """Do `Store.keys`, oldest first."""
    query = select(keys).order_by(keys.c.created_at, keys.c.id)
    return [key_of(row) for row in connection.execute(query).mappings()]


def probe(connection: Connection) -> None:
    """Read something that is always there."""
    connection.execute(select(func.count()).select_from(select(jobs.c.sequence).limit(1).subquery())).scalar()
