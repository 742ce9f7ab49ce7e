"""A follower on one node and a run on another: each event comes once and in order, with lost notifications as well."""

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest
from tests.store.nodes import CALLER, run, running_nodes, until
from tests.store.test_listener import END_LISTENERS

from steadyhand.events import EventDraft, StateChanged
from steadyhand.job import State
from steadyhand.ports import JobAnnouncement
from steadyhand.store import open_store
from steadyhand.store.announcements import MAX_PAYLOAD_LENGTH, decode_jobs
from steadyhand.testing.contracts.samples import NOON, accepted_draft, make_job, message_drafts
from steadyhand.testing.postgres import Postgres

EVENTS = 300
FEW_EVENTS = 100


def test_a_follower_gets_each_event_of_a_run_on_another_node_once_and_in_order(postgres_url: str) -> None:
    async def scenario() -> None:
        async with running_nodes(postgres_url) as (reader, worker):
            job = make_job()
            await worker.store.add(job, accepted_draft())
            async with asyncio.TaskGroup() as group:
                followers = [group.create_task(reader.follow(job.id, FEW_EVENTS + 1)) for _ in range(3)]
                for number in range(FEW_EVENTS):
                    await worker.append(job.id, *message_drafts(f"message {number}"))
            assert [each.result() for each in followers] == [list(range(1, FEW_EVENTS + 2))] * 3

    run(scenario)


def test_no_event_is_lost_or_doubled_when_the_connection_of_notifications_is_cut_while_events_flow(
    postgres: Postgres, postgres_url: str
) -> None:
    end_listeners = END_LISTENERS.format(postgres_url.rpartition("/")[2])
    pauses = random.Random(7)  # noqa: S311  # the same each time

    async def write(worker: Any, job_id: str) -> None:
        for number in range(EVENTS):
            await worker.append(job_id, *message_drafts(f"message {number}"))
            await asyncio.sleep(pauses.random() * 0.01)

    async def cut(until: "asyncio.Task[None]") -> int:
        cuts = 0
        while not until.done():
            ((count,),) = await asyncio.to_thread(postgres.execute, end_listeners)
            cuts += count
            await asyncio.sleep(0.2)
        return cuts

    async def scenario() -> None:
        async with running_nodes(postgres_url) as (reader, worker):
            job = make_job()
            await worker.store.add(job, accepted_draft())
            async with asyncio.TaskGroup() as group:
                followers = [group.create_task(reader.follow(job.id, EVENTS + 1)) for _ in range(3)]
                writing = group.create_task(write(worker, job.id))
                cutting = group.create_task(cut(writing))
            assert [each.result() for each in followers] == [list(range(1, EVENTS + 2))] * 3
            assert cutting.result() > 4
            assert reader.shared.listener.connections > 2

    run(scenario)


def test_who_waits_on_one_node_hears_of_the_end_on_another_and_lists_hear_of_changes(
    postgres_url: str,
) -> None:
    async def scenario() -> None:
        async with running_nodes(postgres_url) as (reader, worker):
            job = make_job()
            with reader.queries.watch_jobs(CALLER) as changes:
                await worker.store.add(job, accepted_draft())
                assert await changes.receive() == frozenset({job.id})
                async with asyncio.TaskGroup() as group:
                    waiting = group.create_task(reader.queries.wait(CALLER, job.id, 60))
                    await until(lambda: reader.feed.follower_count(job.id) > 0)
                    ended = EventDraft(0, NOON, StateChanged(State.QUEUED, State.CANCELLED))
                    await worker.log.update_job(
                        job.id,
                        frozenset({State.QUEUED}),
                        lambda old: replace(old, state=State.CANCELLED, finished_at=NOON),
                        [ended],
                    )
                assert waiting.result().last_event == 2
                assert await changes.receive() == frozenset({job.id})

    run(scenario)


def test_after_a_gap_a_list_reads_any_job_again(postgres_url: str) -> None:
    async def scenario() -> None:
        async with running_nodes(postgres_url, 1) as (reader,):
            number = reader.queries.change_number()
            with reader.queries.watch_jobs(CALLER) as changes:
                reader.feed.mark_gap()
                assert await changes.receive() == frozenset()
            assert reader.queries.change_number() != number

    run(scenario)


def test_it_works_behind_pgbouncer_when_notifications_have_an_address_of_their_own(
    pgbouncer_url: str, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with running_nodes(pgbouncer_url, listen_url=postgres_url) as (reader, worker):
            job = make_job()
            await worker.store.add(job, accepted_draft())
            async with asyncio.TaskGroup() as group:
                follower = group.create_task(reader.follow(job.id, 51))
                for number in range(50):
                    await worker.append(job.id, *message_drafts(f"message {number}"))
            assert follower.result() == list(range(1, 52))
            assert not reader.shared.listener.is_pooled

    run(scenario)


def test_events_come_all_the_same_when_notifications_stop_at_the_pooler(pgbouncer_url: str) -> None:
    async def scenario() -> None:
        async with running_nodes(pgbouncer_url, poll_seconds=0.2) as (reader, worker):
            assert reader.shared.listener.is_pooled
            job = make_job()
            await worker.store.add(job, accepted_draft())
            async with asyncio.TaskGroup() as group:
                follower = group.create_task(reader.follow(job.id, 21))
                for number in range(20):
                    await worker.append(job.id, *message_drafts(f"message {number}"))
            assert follower.result() == list(range(1, 22))

    run(scenario)


def test_many_jobs_of_one_transaction_are_announced_in_short_payloads(
    postgres: Postgres, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with running_nodes(postgres_url, 1) as (reader,):
            heard: list[str | None] = []
            reader.shared.listener.on("steadyhand_jobs", heard.append)
            store = await open_store(postgres_url)
            jobs = [make_job() for _ in range(1_000)]
            await asyncio.gather(*(store.add(job, accepted_draft()) for job in jobs))
            announced: set[str] = set()
            while len(announced) < len(jobs):
                await asyncio.sleep(0.01)
                payloads = [each for each in heard if each is not None]
                assert all(len(each) <= MAX_PAYLOAD_LENGTH for each in payloads)
                announced = {job.job_id for each in payloads for job in decode_jobs(each, "other") or ()}
            assert announced == {job.id for job in jobs}
            await store.close()

    run(scenario)


@pytest.mark.parametrize(
    "payload", ["", "{}", "[]", '["a"]', '["a", [1]]', '["a", [["id", 1, "x", 0]]]', "["]
)
def test_an_announcement_of_another_form_may_be_of_any_job(payload: str) -> None:
    assert decode_jobs(payload, "own") is None


def test_own_announcements_say_nothing_new() -> None:
    payload = '["own",[["job",2,4,1]]]'
    assert decode_jobs(payload, "own") == ()
    assert decode_jobs(payload, "other") == [JobAnnouncement("job", 2, 4, has_changed=True)]
