"""Writes: functions of a connection inside a transaction, run one at a time by the writer.

Each may run again after a rollback, so none keeps state outside the database.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from steadyhand.errors import Conflict, NotFound
from steadyhand.events import Event, EventDraft
from steadyhand.job import ENDED, Job, Run, State, with_store_fields
from steadyhand.ports import AddResult, ApiKey, IdempotencyKey, ModelCall, RunOutput, TickClaim
from steadyhand.store import announcements, derived, leftover_events, reads, schedules, usage_sums
from steadyhand.store.bulk_insert import CompiledInsert
from steadyhand.store.changed_jobs import note_changed
from steadyhand.store.driver import POSTGRES, execute, fetch_all
from steadyhand.store.mapping import (
    call_row,
    event_row,
    job_row,
    key_row,
    number_events,
    output_row,
    run_row,
    to_microseconds,
)
from steadyhand.store.outbox import OutboxHook
from steadyhand.store.schema import (
    calls,
    deleted_jobs,
    events,
    idempotency,
    jobs,
    keys,
    run_outputs,
    runs,
    saved_items,
)

DELETED_JOBS_TTL = timedelta(days=30)
"""How long the store remembers that it has deleted a job, for nodes that have files of it."""
_FORGOTTEN_AT_ONCE = 1000

_INSERT_JOB = CompiledInsert(jobs, generated=jobs.c.sequence)
_INSERT_EVENT = CompiledInsert(events)
_INSERT_RUN = CompiledInsert(runs)
_INSERT_IDEMPOTENCY = CompiledInsert(idempotency)
_INSERT_CALL = CompiledInsert(calls, key=calls.c.id)
_INSERT_DELETED = CompiledInsert(deleted_jobs, key=deleted_jobs.c.id)
_FORGET_DELETED = delete(deleted_jobs).where(
    deleted_jobs.c.id.in_(
        select(deleted_jobs.c.id)
        .where(deleted_jobs.c.deleted_at <= bindparam("moment"))
        .order_by(deleted_jobs.c.deleted_at)
        .limit(_FORGOTTEN_AT_ONCE)
    )
)
_DELETE_OLD_KEYS = delete(idempotency).where(idempotency.c.created_at <= bindparam("moment"))
_WITH_IDS = jobs.c.id.in_(bindparam("job_ids", expanding=True))
_DERIVED_COLUMNS = select(*(jobs.c[name] for name in derived.SOURCE_COLUMNS)).where(_WITH_IDS)
_STATES = select(jobs.c.id, jobs.c.state).where(_WITH_IDS)
_DELETE_JOBS = delete(jobs).where(_WITH_IDS)
_CURRENT_RUNS = select(
    jobs.c.id,
    jobs.c.state,
    select(func.max(runs.c.number)).where(runs.c.job == jobs.c.sequence).scalar_subquery().label("number"),
).where(_WITH_IDS)
_SELECT_SEQUENCE = select(jobs.c.sequence).where(jobs.c.id == bindparam("job_id"))


def add_job(
    connection: Connection,
    job: Job,
    drafts: Sequence[EventDraft],
    key: IdempotencyKey | None,
    now: datetime,
    *,
    claim: TickClaim | None = None,
) -> AddResult:
    """Store a new job, and delete idempotency keys older than a day; see `Store.add`."""
    if key is not None:
        _lock_idempotency(connection, job.api_key_id, key.key)
        oldest = to_microseconds(now - reads.IDEMPOTENCY_TTL)
        connection.execute(_DELETE_OLD_KEYS, {"moment": oldest})
        replayed = reads.get_replayed(connection, job.api_key_id, key, now)
        if replayed is not None:
            return AddResult(replayed, replayed=True)
    if claim is not None:
        schedules.claim_tick(connection, claim, job)
    (added,) = add_jobs(connection, [(job, drafts)])
    if key is not None:
        row = {
            "api_key_id": job.api_key_id,
            "key": key.key,
            "fingerprint": key.fingerprint,
            "job": added.job.sequence,
            "created_at": to_microseconds(now),
        }
        _INSERT_IDEMPOTENCY.run(connection, [row])
    return added


def _lock_idempotency(connection: Connection, api_key_id: str, key: str) -> None:
    """Let the same request on another node wait for this transaction. SQLite has one writer at a time."""
    if connection.dialect.name == POSTGRES:
        digest = hashlib.sha256(f"{api_key_id} {key}".encode("utf-8", "surrogatepass")).digest()
        execute(
            connection, "SELECT pg_advisory_xact_lock(?)", (int.from_bytes(digest[:8], "big", signed=True),)
        )


def add_jobs(
    connection: Connection, jobs_with_drafts: Sequence[tuple[Job, Sequence[EventDraft]]]
) -> list[AddResult]:
    """Store jobs without an idempotency key, in order, with as few statements as possible; see `Store.add`."""
    parents = {job.parent_job_id for job, _ in jobs_with_drafts if job.parent_job_id is not None}
    if parents and not reads.all_exist(connection, parents):
        raise NotFound("Job not found")
    rows = [job_row(job) for job, _ in jobs_with_drafts]
    sequences = _INSERT_JOB.run(connection, rows)
    stored = list(zip(sequences, jobs_with_drafts, strict=True))
    derived.add(
        connection,
        [
            derived.source_of_columns(sequence, row, job.spec.title)
            for (sequence, (job, _)), row in zip(stored, rows, strict=True)
        ],
    )
    _INSERT_RUN.run(connection, [run_row(sequence, run) for sequence, (job, _) in stored for run in job.runs])
    numbered = [(sequence, number_events(job.id, 0, drafts)) for sequence, (job, drafts) in stored]
    _INSERT_EVENT.run(
        connection, [event_row(sequence, event) for sequence, added in numbered for event in added]
    )
    for (_, added), (job, _) in zip(numbered, jobs_with_drafts, strict=True):
        announcements.announce_events(connection, job.id, added)
    return [
        AddResult(with_store_fields(job, len(drafts), sequence), replayed=False)
        for sequence, (job, drafts) in stored
    ]


def update_job(
    connection: Connection,
    job_id: str,
    expected: frozenset[State],
    update_function: Callable[[Job], Job],
    drafts: Sequence[EventDraft],
    *,
    hook: OutboxHook | None = None,
    check_change: Callable[[Connection, Job, Job], None] | None = None,
) -> tuple[Job, Sequence[Event]]:
    """Replace a job; see `Store.update_job`. Its id, sequence and event count never change.

    `check_change` raises an error to refuse the change, by what the transaction sees.
    """
    lock_jobs(connection, [job_id])
    job = reads.get_job(connection, job_id)
    if job is None:
        raise NotFound("Job not found")
    if job.state not in expected:
        raise Conflict(f"The job is {job.state}.")
    added = number_events(job_id, job.last_event, drafts)
    changed = replace(
        update_function(job), id=job.id, sequence=job.sequence, last_event=job.last_event + len(added)
    )
    if check_change is not None:
        check_change(connection, job, changed)
    before, after = job_row(job), job_row(changed)
    note_changed(connection, (job.sequence,))
    _update_row(connection, job.sequence, before, after)
    derived.replace(
        connection,
        derived.source_of_columns(job.sequence, before, job.spec.title),
        derived.source_of_columns(job.sequence, after, changed.spec.title),
    )
    _update_runs(connection, job.sequence, job.runs, changed.runs)
    _insert_events(connection, job.sequence, added)
    announcements.announce_events(connection, job_id, added)
    if hook is not None:
        hook.add(connection, added, lambda: changed)
    return changed, added


def lock_jobs(connection: Connection, job_ids: Collection[str]) -> Sequence[int]:
    """Lock jobs until the end of the transaction, in a statement of its own: what it reads next is then the newest.

    SQLite has one writer at a time. Of Postgres several nodes may write the events of one job.
    Return the sequences of those that exist, none on SQLite.
    """
    if connection.dialect.name == POSTGRES:
        ids = sorted(job_ids)
        places = ", ".join("?" * len(ids))
        query = f"SELECT sequence FROM jobs WHERE id IN ({places}) ORDER BY id FOR NO KEY UPDATE"  # noqa: S608  # only places
        return [sequence for (sequence,) in fetch_all(connection, query, ids)]
    return ()


def _update_row(
    connection: Connection, sequence: int, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    values = {name: value for name, value in after.items() if value != before[name]}
    if values:
        connection.execute(update(jobs).where(jobs.c.sequence == sequence).values(values))


def _update_runs(connection: Connection, sequence: int, before: Sequence[Run], after: Sequence[Run]) -> None:
    old_runs = {run.number: run for run in before}
    new_runs = {run.number: run for run in after}
    for number in old_runs.keys() - new_runs.keys():
        connection.execute(delete(runs).where(runs.c.job == sequence, runs.c.number == number))
    for number, run in new_runs.items():
        if number not in old_runs:
            _INSERT_RUN.run(connection, [run_row(sequence, run)])
        elif run != old_runs[number]:
            where = (runs.c.job == sequence, runs.c.number == number)
            connection.execute(update(runs).where(*where).values(run_row(sequence, run)))


def _insert_events(connection: Connection, sequence: int, added: Sequence[Event]) -> None:
    _INSERT_EVENT.run(connection, [event_row(sequence, event) for event in added])


@dataclass(frozen=True, slots=True)
class EventAppend:
    """The arguments of one `Store.append_events`, and what stores the deliveries about its events."""

    job_id: str
    drafts: Sequence[EventDraft]
    hook: OutboxHook | None = None
    run: int | None = None


def append_events(connection: Connection, appends: Sequence[EventAppend]) -> list[Sequence[Event]]:
    """Store events with their numbers, of many jobs at once; see `Store.append_events`.

    Raise `NotFound` if one of the jobs does not exist, and `Conflict` if one of the runs is over.
    """
    job_ids = {each.job_id for each in appends}
    last_numbers = reads.last_event_numbers(connection, job_ids, lock_jobs(connection, job_ids))
    _require_runs(connection, [(each.job_id, each.run) for each in appends if each.run is not None])
    rows: list[dict[str, Any]] = []
    added: list[Sequence[Event]] = []
    for each in appends:
        if each.job_id not in last_numbers:
            raise NotFound("Job not found")
        sequence, last = last_numbers[each.job_id]
        numbered = number_events(each.job_id, last, each.drafts)
        last_numbers[each.job_id] = (sequence, last + len(numbered))
        rows += [event_row(sequence, event) for event in numbered]
        added.append(numbered)
    note_changed(connection, (row["job"] for row in rows))
    _INSERT_EVENT.run(connection, rows)
    for each, events_added in zip(appends, added, strict=True):
        announcements.announce_events(connection, each.job_id, events_added)
        if each.hook is not None:
            each.hook.add(connection, events_added, partial(reads.get_job, connection, each.job_id))
    return added


def _require_runs(connection: Connection, appends: Sequence[tuple[str, int]]) -> None:
    """Raise `Conflict` unless each of these runs is the newest of its job, which runs, or no run is stored yet."""
    if not appends:
        return
    rows = connection.execute(_CURRENT_RUNS, {"job_ids": list({job_id for job_id, _ in appends})})
    current = {row.id: (row.state, row.number) for row in rows}
    for job_id, run in appends:
        state, newest = current.get(job_id, (State.RUNNING, None))
        if newest is not None and (state != State.RUNNING or newest != run):
            raise Conflict("The run is over.")


def save_output(connection: Connection, job_id: str, run: int, output: RunOutput) -> None:
    """Store the output of a run and replace an earlier one of it; see `Store.save_output`."""
    sequence = _get_sequence(connection, job_id)
    connection.execute(delete(run_outputs).where(run_outputs.c.job == sequence, run_outputs.c.run == run))
    connection.execute(insert(run_outputs), output_row(sequence, run, output))


def delete_job(connection: Connection, job_id: str, now: datetime) -> bool:
    """Delete a job and the rows that refer to it; see `Store.delete`."""
    row = connection.execute(select(jobs.c.sequence, jobs.c.state).where(jobs.c.id == job_id)).first()
    if row is None:
        return False
    if State(row.state) not in ENDED:
        raise Conflict(f"The job is {row.state}; only one that has ended can be deleted.")
    turn_id = reads.list_awaited(connection).get(job_id)
    if turn_id is not None:
        raise Conflict(
            f"The job {turn_id} continues its conversation and has not begun yet; cancel it first, or wait."
        )
    sequences = _delete_jobs(connection, [job_id], now)
    if connection.dialect.name == POSTGRES:
        leftover_events.delete(connection, sequences)
    return True


def delete_jobs(connection: Connection, job_ids: Sequence[str], now: datetime) -> list[str]:
    """Delete those of these jobs that may be deleted, and return the ids of the others; see `Store.delete_all`.

    On Postgres their events are left, where nothing reads them; see `leftover_events`.
    """
    awaited = reads.list_awaited(connection)
    states = connection.execute(_STATES, {"job_ids": list(job_ids)}).all()
    refused = [row.id for row in states if State(row.state) not in ENDED or row.id in awaited]
    _delete_jobs(connection, [row.id for row in states if row.id not in refused], now)
    return refused


def _delete_jobs(connection: Connection, job_ids: Sequence[str], now: datetime) -> Sequence[int]:
    """Delete jobs with the rows that refer to them, and return their sequences."""
    if not job_ids:
        return ()
    rows = connection.execute(_DERIVED_COLUMNS, {"job_ids": list(job_ids)}).mappings().all()
    connection.execute(_DELETE_JOBS, {"job_ids": list(job_ids)})
    deleted_at = to_microseconds(now)
    _INSERT_DELETED.run(connection, [{"id": job_id, "deleted_at": deleted_at} for job_id in job_ids])
    connection.execute(_FORGET_DELETED, {"moment": to_microseconds(now - DELETED_JOBS_TTL)})
    sequences = [row["sequence"] for row in rows]
    note_changed(connection, sequences)
    derived.remove(connection, [derived.source_of_row(row) for row in rows])
    return sequences


def save_key(connection: Connection, key: ApiKey) -> None:
    """Store a key; see `Store.save_key`."""
    connection.execute(delete(keys).where(keys.c.id == key.id))
    connection.execute(insert(keys), key_row(key))
    if key.revoked_at is not None:
        connection.execute(delete(saved_items).where(saved_items.c.api_key_id == key.id))
    announcements.announce(connection, announcements.KEYS_CHANNEL)


def save_calls(connection: Connection, calls_to_save: Sequence[ModelCall]) -> list[None]:
    """Store calls in order; of several with one id the last is kept. See `Ledger.save_call`."""
    rows = {call.id: call_row(call) for call in calls_to_save}
    earlier = usage_sums.settled_calls(connection, list(rows))
    _INSERT_CALL.run(connection, list(rows.values()))
    usage_sums.add_calls(connection, added=rows.values(), removed=earlier)
    return [None] * len(calls_to_save)


def _get_sequence(connection: Connection, job_id: str) -> int:
    sequence: int | None = connection.execute(_SELECT_SEQUENCE, {"job_id": job_id}).scalar()
    if sequence is None:
        raise NotFound("Job not found")
    return sequence
