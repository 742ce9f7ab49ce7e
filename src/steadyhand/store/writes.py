"""What changes the database: functions of a connection inside a transaction, run one at a time by the writer.

Each may be run a second time after a rollback, so none keeps anything outside the database.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from steadyhand.errors import Conflict, NotFound
from steadyhand.events import Draft, Event
from steadyhand.job import ENDED, Job, Run, State, as_stored
from steadyhand.ports import Added, ApiKey, Call, Idempotency, RunOutput
from steadyhand.store import reads
from steadyhand.store.bulk_insert import ReadyInsert
from steadyhand.store.mapping import (
    call_row,
    event_row,
    job_row,
    key_row,
    micros,
    numbered,
    output_row,
    run_row,
)
from steadyhand.store.schema import calls, events, idempotency, jobs, keys, run_outputs, runs

_INSERT_JOB = ReadyInsert(jobs, made=jobs.c.sequence)
_INSERT_EVENT = ReadyInsert(events)
_INSERT_RUN = ReadyInsert(runs)
_INSERT_IDEMPOTENCY = ReadyInsert(idempotency)
_INSERT_CALL = ReadyInsert(calls, key=calls.c.id)
_FORGET_OLD_KEYS = delete(idempotency).where(idempotency.c.created_at <= bindparam("moment"))
_SEQUENCE_OF = select(jobs.c.sequence).where(jobs.c.id == bindparam("job_id"))


def add_job(
    connection: Connection, job: Job, drafts: Sequence[Draft], wanted: Idempotency | None, now: datetime
) -> Added:
    """Do `Store.add`; keys of more than a day ago are forgotten on the way."""
    if wanted is not None:
        oldest = micros(now - reads.IDEMPOTENCY_LIFE)
        connection.execute(_FORGET_OLD_KEYS, {"moment": oldest})
        known = reads.replayed_job(connection, job.api_key_id, wanted, now)
        if known is not None:
            return Added(known, replayed=True)
    (added,) = add_jobs(connection, [(job, drafts)])
    if wanted is not None:
        row = {
            "api_key_id": job.api_key_id,
            "key": wanted.key,
            "fingerprint": wanted.fingerprint,
            "job": added.job.sequence,
            "created_at": micros(now),
        }
        _INSERT_IDEMPOTENCY.run(connection, [row])
    return added


def add_jobs(connection: Connection, new: Sequence[tuple[Job, Sequence[Draft]]]) -> list[Added]:
    """Do `Store.add` for jobs without an idempotency key, in order, by as few statements as can be."""
    sequences = _INSERT_JOB.run(connection, [job_row(job) for job, _ in new])
    stored = list(zip(sequences, new, strict=True))
    _INSERT_RUN.run(connection, [run_row(sequence, run) for sequence, (job, _) in stored for run in job.runs])
    _INSERT_EVENT.run(
        connection,
        [
            event_row(sequence, event)
            for sequence, (job, drafts) in stored
            for event in numbered(job.id, 0, drafts)
        ],
    )
    return [
        Added(as_stored(job, len(drafts), sequence), replayed=False) for sequence, (job, drafts) in stored
    ]


def change_job(
    connection: Connection,
    job_id: str,
    expected: frozenset[State],
    change: Callable[[Job], Job],
    drafts: Sequence[Draft],
) -> tuple[Job, Sequence[Event]]:
    """Do `Store.change`. The job's id, sequence and event count are the store's and stay as they are."""
    job = reads.job(connection, job_id)
    if job is None:
        raise NotFound("Job not found")
    if job.state not in expected:
        raise Conflict(f"The job is {job.state}.")
    added = numbered(job_id, job.last_event, drafts)
    changed = replace(change(job), id=job.id, sequence=job.sequence, last_event=job.last_event + len(added))
    _update_row(connection, job.sequence, job_row(job), job_row(changed))
    _update_runs(connection, job.sequence, job.runs, changed.runs)
    _insert_events(connection, job.sequence, added)
    return changed, added


def _update_row(
    connection: Connection, sequence: int, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    values = {name: value for name, value in after.items() if value != before[name]}
    if values:
        connection.execute(update(jobs).where(jobs.c.sequence == sequence).values(values))


def _update_runs(connection: Connection, sequence: int, before: Sequence[Run], after: Sequence[Run]) -> None:
    kept = {run.number: run for run in before}
    wanted = {run.number: run for run in after}
    for number in kept.keys() - wanted.keys():
        connection.execute(delete(runs).where(runs.c.job == sequence, runs.c.number == number))
    for number, run in wanted.items():
        if number not in kept:
            _INSERT_RUN.run(connection, [run_row(sequence, run)])
        elif run != kept[number]:
            where = (runs.c.job == sequence, runs.c.number == number)
            connection.execute(update(runs).where(*where).values(run_row(sequence, run)))


def _insert_events(connection: Connection, sequence: int, added: Sequence[Event]) -> None:
    _INSERT_EVENT.run(connection, [event_row(sequence, event) for event in added])


def append_events(connection: Connection, job_id: str, drafts: Sequence[Draft]) -> Sequence[Event]:
    """Do `Store.append`. Raises `NotFound` when the job is gone."""
    sequence = _sequence_of(connection, job_id)
    added = numbered(job_id, reads.last_event(connection, sequence), drafts)
    _insert_events(connection, sequence, added)
    return added


def keep_output(connection: Connection, job_id: str, run: int, output: RunOutput) -> None:
    """Do `Store.keep_output`; what was kept of the same run is replaced."""
    sequence = _sequence_of(connection, job_id)
    connection.execute(delete(run_outputs).where(run_outputs.c.job == sequence, run_outputs.c.run == run))
    connection.execute(insert(run_outputs), output_row(sequence, run, output))


def delete_job(connection: Connection, job_id: str) -> bool:
    """Do `Store.delete`; the rows that refer to the job go with it."""
    found = connection.execute(select(jobs.c.sequence, jobs.c.state).where(jobs.c.id == job_id)).first()
    if found is None:
        return False
    if State(found.state) not in ENDED:
        raise Conflict(f"The job is {found.state}; only one that has ended can be deleted.")
    connection.execute(delete(jobs).where(jobs.c.sequence == found.sequence))
    return True


def keep_key(connection: Connection, key: ApiKey) -> None:
    """Do `Store.keep_key`."""
    connection.execute(delete(keys).where(keys.c.id == key.id))
    connection.execute(insert(keys), key_row(key))


def keep_calls(connection: Connection, some: Sequence[Call]) -> list[None]:
    """Do `Ledger.keep_call` for calls, in order: of those with one id the last one is kept."""
    newest = {call.id: call for call in some}
    _INSERT_CALL.run(connection, [call_row(call) for call in newest.values()])
    return [None] * len(some)


def settle_open(connection: Connection) -> int:
    """Do `Ledger.settle_open`."""
    settled = {"settled": 1, "complete": 0, "micros": calls.c.reserved_micros}
    return connection.execute(update(calls).where(calls.c.settled == 0).values(settled)).rowcount


def _sequence_of(connection: Connection, job_id: str) -> int:
    sequence: int | None = connection.execute(_SEQUENCE_OF, {"job_id": job_id}).scalar()
    if sequence is None:
        raise NotFound("Job not found")
    return sequence
