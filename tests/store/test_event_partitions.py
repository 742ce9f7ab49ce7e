"""The events on Postgres lie in ranges of jobs: made ahead, read one at a time, dropped whole by retention."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection
from tests.store.nodes import open_node_store, run

from steadyhand.events import Message
from steadyhand.job import Job, State
from steadyhand.ports import JobFilter
from steadyhand.store import SqlStore, job_samples, leftover_events, open_store, reads, writes
from steadyhand.store.brief_jobs import read_brief_jobs
from steadyhand.store.driver import fetch_all
from steadyhand.store.job_sequences import JobSequences
from steadyhand.store.postgres import event_partitions
from steadyhand.store.postgres.event_partitions import RANGE
from steadyhand.store.postgres.partition_upkeep import _UPKEEP_LOCK, PartitionUpkeep
from steadyhand.testing.contracts.samples import NOON, accepted_draft, make_job, message_drafts

ENDED = {"state": State.COMPLETED, "finished_at": NOON}
LOCKED = (
    "SELECT DISTINCT relation::regclass::text FROM pg_locks JOIN pg_inherits ON inhrelid = relation "
    "WHERE pid = pg_backend_pid() AND inhparent = 'events'::regclass ORDER BY 1"
)


def query(url: str, text: str, *values: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        cursor = connection.execute(text.encode(), values or None)
        return cursor.fetchall() if cursor.description else []


def partitions(url: str) -> list[str]:
    found = query(
        url, "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'events'::regclass"
    )
    return sorted(name for (name,) in found)


def rows_by_partition(url: str) -> dict[str, int]:
    return dict(query(url, "SELECT tableoid::regclass::text, count(*) FROM events GROUP BY 1"))


def rows_of(url: str, job: Job) -> int:
    return int(query(url, "SELECT count(*) FROM events WHERE job = %s", job.sequence)[0][0])


def leftovers(url: str) -> list[int]:
    return [job for (job,) in query(url, "SELECT job FROM leftover_events ORDER BY job")]


def go_on_after(url: str, sequence: int) -> None:
    """Let the next job have the sequence after this one."""
    query(url, f"SELECT setval('jobs_sequence_seq', {sequence})")


async def add(store: SqlStore, *texts: str, **changes: Any) -> Job:
    job = make_job(**{**ENDED, **changes})
    return (await store.add(job, [*accepted_draft(), *message_drafts(*texts)])).job


async def look_after(store: SqlStore) -> None:
    """Do all the upkeep of partitions that is due."""
    assert store._partition_upkeep is not None
    while await asyncio.to_thread(store._partition_upkeep):
        pass


# --- where events are -------------------------------------------------------------------------------


def test_a_new_database_has_a_partition_one_ahead_and_one_for_the_rest(postgres_url: str) -> None:
    assert partitions(postgres_url) == ["events_0", "events_100000", "events_default"]


def test_jobs_on_both_sides_of_an_end_of_a_range_have_their_events_in_their_own_partitions(
    postgres_url: str,
) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        go_on_after(postgres_url, RANGE - 2)
        jobs = [await add(store, "one", "two") for _ in range(3)]
        assert [job.sequence for job in jobs] == [RANGE - 1, RANGE, RANGE + 1]
        assert rows_by_partition(postgres_url) == {"events_0": 3, "events_100000": 6}
        for job in jobs:
            await store.append_events(job.id, message_drafts("three"))
            assert [event.seq for event in await store.list_events(job.id)] == [1, 2, 3, 4]
            found = await store.get(job.id)
            assert found is not None
            assert found.last_event == 4
        page = await store.list_jobs(JobFilter(), 5)
        assert [(job.id, job.last_event) for job in page.jobs] == [(job.id, 4) for job in reversed(jobs)]
        await store.close()

    run(scenario)


def test_the_upkeep_makes_the_partition_after_that_of_the_newest_job(postgres_url: str) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        await add(store)
        await look_after(store)
        assert partitions(postgres_url) == ["events_0", "events_100000", "events_default"]
        go_on_after(postgres_url, RANGE - 1)
        await add(store)
        while await store.maintain() or "events_200000" not in partitions(postgres_url):
            pass
        assert partitions(postgres_url) == ["events_0", "events_100000", "events_200000", "events_default"]
        await store.close()

    run(scenario)


def test_a_job_beyond_all_partitions_is_stored_and_the_next_partition_is_made_above_it(
    postgres_url: str,
) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        go_on_after(postgres_url, 5 * RANGE + 7)
        job = await add(store, "one")
        assert rows_by_partition(postgres_url) == {"events_default": 2}
        await look_after(store)
        assert partitions(postgres_url)[-2:] == ["events_600000", "events_default"]
        assert "events_500000" not in partitions(postgres_url)
        await store.append_events(job.id, message_drafts("two"))
        assert [event.seq for event in await store.list_events(job.id)] == [1, 2, 3]
        go_on_after(postgres_url, 6 * RANGE - 1)
        await add(store)
        assert rows_by_partition(postgres_url) == {"events_default": 3, "events_600000": 1}
        # What retention removes there is deleted at its latest time, as from a range with a job that is kept.
        assert await store.delete_all([job.id]) == []
        query(postgres_url, "UPDATE leftover_events SET removed_at = 0")
        await look_after(store)
        assert rows_by_partition(postgres_url) == {"events_600000": 1}
        await store.close()

    run(scenario)


def test_two_nodes_that_make_partitions_at_once_make_each_one_time(postgres_url: str) -> None:
    async def scenario() -> None:
        stores = [open_node_store(postgres_url) for _ in range(2)]
        await add(stores[0])
        go_on_after(postgres_url, RANGE)
        barrier = threading.Barrier(2)

        def look(store: SqlStore) -> None:
            barrier.wait(20)
            PartitionUpkeep(store._write_engine).run()

        await asyncio.gather(*(asyncio.to_thread(look, store) for store in stores))
        assert partitions(postgres_url) == ["events_0", "events_100000", "events_200000", "events_default"]
        for store in stores:
            await store.close()

    run(scenario)


def test_a_node_leaves_the_upkeep_to_the_one_that_does_it(postgres_url: str) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        go_on_after(postgres_url, RANGE)
        with psycopg.connect(postgres_url) as other:
            other.execute(f"SELECT pg_advisory_xact_lock({_UPKEEP_LOCK:d})".encode())
            await look_after(store)
            assert "events_200000" not in partitions(postgres_url)
        await look_after(store)
        assert "events_200000" in partitions(postgres_url)
        await store.close()

    run(scenario)


def test_a_partition_is_made_beside_transactions_that_read_and_write_events(postgres_url: str) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        go_on_after(postgres_url, RANGE)
        with psycopg.connect(postgres_url) as reader, psycopg.connect(postgres_url) as writer:
            reader.execute("SELECT count(*) FROM events WHERE job = 1")
            writer.execute(
                "INSERT INTO events (job, seq, run, at, type, data) VALUES (1, 1, 1, 1, 'x', '{}')"
            )
            await look_after(store)
            assert "events_200000" in partitions(postgres_url)
            writer.rollback()
        await store.close()

    run(scenario)


# --- reads -----------------------------------------------------------------------------------------

TYPES = frozenset({Message.type})
READS: dict[str, Callable[[Connection, Job], object]] = {
    "get_job": lambda at, job: reads.get_job(at, job.id),
    "list_events": lambda at, job: reads.list_events(at, job.id, 0, 50, JobSequences()),
    "list_newest_events": lambda at, job: reads.list_newest_events(
        at, job.id, TYPES, frozenset(), 5, sequences=JobSequences()
    ),
    "list_in_states": lambda at, _job: reads.list_in_states(at, frozenset({State.FAILED})),
    "read_brief_jobs": lambda at, job: read_brief_jobs(at, [job.sequence]),
    "sample_tools": lambda at, _job: job_samples.sample_tools(
        at, JobFilter(states=frozenset({State.FAILED})), 5
    ),
    "append_events": lambda at, job: writes.append_events(
        at, [writes.EventAppend(job.id, message_drafts("x"))]
    ),
    "delete_job": lambda at, job: writes.delete_job(at, job.id, NOON),
}


@pytest.mark.parametrize("name", READS)
def test_a_statement_about_a_job_locks_its_partition_alone(postgres_url: str, name: str) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        jobs = []
        for number in range(4):
            go_on_after(postgres_url, max(1, number * RANGE))
            jobs.append(await add(store, "one", state=State.FAILED if number == 2 else State.COMPLETED))
            await look_after(store)

        def locked(at: Connection) -> Sequence[tuple[Any, ...]]:
            assert READS[name](at, jobs[2])
            return fetch_all(at, LOCKED)

        assert await store._writer.submit(locked) == [("events_200000",)]
        await store.close()

    run(scenario)


def test_a_follower_reads_with_one_statement_once_the_job_is_known(postgres_url: str) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        job = await add(store, "one")
        assert await store.list_events("0" * 12) == []
        await store.list_events(job.id)
        tries: list[int] = []

        def read(at: Connection) -> str:
            tries.append(1)
            assert len(reads.list_events(at, job.id, 0, 5, store._sequences)) == 2
            return "in one"

        # A second statement would have it run again, in a transaction.
        assert await store._readers.read_alone(read) == "in one"
        assert tries == [1]
        await store.close()

    run(scenario)


# --- retention -------------------------------------------------------------------------------------


def test_a_partition_whose_jobs_retention_has_deleted_is_dropped_whole(postgres_url: str) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        old = [await add(store, "one", "two") for _ in range(3)]
        go_on_after(postgres_url, RANGE)
        new = await add(store, "one")
        assert await store.delete_all([job.id for job in old]) == []
        for job in old:
            assert await store.get(job.id) is None
            assert await store.list_events(job.id) == []
        assert rows_by_partition(postgres_url)["events_0"] == 9
        assert leftovers(postgres_url) == [job.sequence for job in old]
        await look_after(store)
        assert partitions(postgres_url) == ["events_100000", "events_200000", "events_default"]
        assert leftovers(postgres_url) == []
        assert [event.seq for event in await store.list_events(new.id)] == [1, 2]
        await store.close()

    run(scenario)


def test_a_job_that_is_kept_keeps_its_events_and_those_beside_it_go_at_the_latest_time(
    postgres_url: str,
) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        first, kept, last = [await add(store, "one", "two") for _ in range(3)]
        go_on_after(postgres_url, RANGE)
        await add(store)
        assert await store.delete_all([first.id, last.id]) == []
        await look_after(store)
        assert "events_0" in partitions(postgres_url)
        assert rows_by_partition(postgres_url)["events_0"] == 9, "their time is not over"
        age = leftover_events.LONGEST_TIME.total_seconds() * 1_000_000
        query(
            postgres_url,
            "UPDATE leftover_events SET removed_at = removed_at - %s WHERE job = %s",
            round(age),
            first.sequence,
        )
        await look_after(store)
        assert [rows_of(postgres_url, job) for job in (first, kept, last)] == [0, 3, 3]
        assert leftovers(postgres_url) == [last.sequence]
        assert [event.seq for event in await store.list_events(kept.id)] == [1, 2, 3]
        assert await store.delete_all([kept.id]) == []
        await look_after(store)
        assert "events_0" not in partitions(postgres_url)
        assert leftovers(postgres_url) == []
        await store.close()

    run(scenario)


def test_in_the_range_of_the_newest_jobs_events_go_soon_and_few_at_a_time(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftover_events, "EVENTS_AT_ONCE", 5)

    async def scenario() -> None:
        store = await open_store(postgres_url)
        long, short = await add(store, *map(str, range(11))), await add(store, "one")
        kept = await add(store, "one")
        assert await store.delete_all([long.id, short.id]) == []
        counts = []
        assert store._partition_upkeep is not None
        while await asyncio.to_thread(store._partition_upkeep):
            counts.append((rows_of(postgres_url, long), rows_of(postgres_url, short)))
        assert counts == [(7, 2), (2, 2)]
        assert rows_by_partition(postgres_url) == {"events_0": 2}
        assert leftovers(postgres_url) == []
        assert rows_of(postgres_url, kept) == 2
        await store.close()

    run(scenario)


def test_a_caller_who_deletes_a_job_deletes_its_events_at_once(postgres_url: str) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        job, other = await add(store, "one"), await add(store, "one")
        assert await store.delete(job.id)
        assert rows_of(postgres_url, job) == 0
        assert leftovers(postgres_url) == []
        assert rows_of(postgres_url, other) == 2
        await store.close()

    run(scenario)


def test_a_job_that_a_node_of_the_version_before_deletes_is_noted(postgres_url: str) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        job, other = await add(store, "one"), await add(store, "one")
        query(postgres_url, "DELETE FROM jobs WHERE id = %s", job.id)
        assert leftovers(postgres_url) == [job.sequence]
        assert await store.list_events(job.id) == []
        await look_after(store)
        assert rows_of(postgres_url, job) == 0
        assert rows_of(postgres_url, other) == 2
        await store.close()

    run(scenario)


def test_no_event_of_a_job_that_is_there_is_deleted_even_if_it_is_noted(postgres_url: str) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        job = await add(store, "one")
        query(postgres_url, "INSERT INTO leftover_events VALUES (%s, 0)", job.sequence)
        await look_after(store)
        assert [event.seq for event in await store.list_events(job.id)] == [1, 2]
        await store.close()

    run(scenario)


def test_a_drop_waits_a_moment_for_a_long_read_and_is_tried_again(postgres_url: str) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        old = await add(store, "one")
        go_on_after(postgres_url, RANGE)
        new = await add(store, "one")
        assert await store.delete_all([old.id]) == []
        with psycopg.connect(postgres_url) as reader:
            reader.execute("SELECT count(*) FROM events")
            await look_after(store)
            assert "events_0" in partitions(postgres_url)
            await store.append_events(new.id, message_drafts("goes on"))
            assert store.outage is None
        await look_after(store)
        assert "events_0" not in partitions(postgres_url)
        await store.close()

    run(scenario)


def test_a_partition_is_not_dropped_if_a_job_of_its_range_appears_while_its_lock_is_waited_for(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        job = await add(store, "one")
        go_on_after(postgres_url, RANGE)
        await add(store)
        with monkeypatch.context() as patch:  # as if the job was not committed yet at the first look
            real, looks = event_partitions.list_empty, []

            def list_empty(at: Connection, closed: Sequence[Any]) -> Sequence[Any]:
                looks.append(closed)
                return closed if len(looks) == 1 else real(at, closed)

            patch.setattr(event_partitions, "list_empty", list_empty)
            await look_after(store)
            assert len(looks) == 2
        assert "events_0" in partitions(postgres_url)
        assert len(await store.list_events(job.id)) == 2
        await store.close()

    run(scenario)


def test_the_upkeep_works_behind_pgbouncer_in_transaction_mode(pgbouncer_url: str) -> None:
    async def scenario() -> None:
        store = await open_store(pgbouncer_url)
        old = await add(store, "one")
        go_on_after(pgbouncer_url, RANGE)
        new = await add(store, "one")
        assert await store.delete_all([old.id]) == []
        await look_after(store)
        assert partitions(pgbouncer_url) == ["events_100000", "events_200000", "events_default"]
        assert [event.seq for event in await store.list_events(new.id)] == [1, 2]
        await store.close()

    run(scenario)


def test_a_store_that_is_closed_does_no_upkeep(postgres_url: str) -> None:
    async def scenario() -> None:
        store = await open_store(postgres_url)
        await store.close()
        go_on_after(postgres_url, RANGE)
        await look_after(store)
        assert "events_200000" not in partitions(postgres_url)

    run(scenario)
