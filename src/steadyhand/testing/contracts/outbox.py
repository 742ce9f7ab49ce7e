"""Tests of every outbox."""

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Protocol

from steadyhand.errors import InvalidRequest
from steadyhand.events import Event, EventDraft, Message, StateChanged, ToolCallsRequested
from steadyhand.job import Job, State
from steadyhand.ports import AttemptResult, Delivery, DeliveryDraft, DeliveryFilter, Outbox, Store
from steadyhand.testing.contracts.samples import (
    NOON,
    FakeClock,
    accepted_draft,
    async_test,
    expect_error,
    make_job,
    message_drafts,
)

ALL_STATES = frozenset(State)


class OutboxStore(Store, Outbox, Protocol):
    """A store with its outbox."""


def message_id() -> str:
    """Return an id of a message."""
    return f"msg_{secrets.token_hex(16)}"


class ToldEvents:
    """A plan that tells each endpoint of each event, and remembers what was reported as added."""

    def __init__(self, *endpoints: str | None) -> None:
        self.endpoints = endpoints or ("one",)
        self.added: list[frozenset[str]] = []

    def plan(self, _job: Job, events: Sequence[Event]) -> Sequence[DeliveryDraft]:
        """Return the deliveries."""
        return [
            DeliveryDraft(
                message_id(),
                endpoint,
                "https://receiver.example/secret" if endpoint is None else None,
                f"circuit {endpoint}",
                "job.ended",
                f"event {event.seq}",
            )
            for event in events
            if event.type in ("state.changed", "calls.waiting")
            for endpoint in self.endpoints
        ]


async def change(store: Store, job: Job, target: State = State.QUEUED) -> None:
    """Append a change of state to a job, without a change of the job."""
    drafts = [EventDraft(1, NOON, StateChanged(State.QUEUED, target))]
    await store.update_job(job.id, ALL_STATES, lambda old: old, drafts)


class OutboxContract:
    """Storing with the event, order, attempts, lists, replays."""

    def open(self, clock: Callable[[], object]) -> AbstractAsyncContextManager[OutboxStore]:
        """Open an empty store for one test, closed at its end."""
        raise NotImplementedError

    @asynccontextmanager
    async def opened(self, told: ToldEvents, clock: FakeClock | None = None) -> AsyncIterator[OutboxStore]:
        """Open a store that has this plan."""
        async with self.open(clock or FakeClock()) as store:
            store.use_plan(told.plan, told.added.append)
            yield store

    @async_test
    async def test_a_delivery_is_stored_with_its_event_and_reported_once_it_is(self) -> None:
        told = ToldEvents()
        async with self.opened(told) as store:
            job = make_job()
            await store.add(job, accepted_draft())
            await store.append_events(job.id, message_drafts("hello"))
            assert told.added == []
            await change(store, job)
            assert told.added == [frozenset({"circuit one"})]
            assert await store.count_waiting() == {"circuit one": 1}
            await change(store, job)  # a later one about the same job to the same receiver
            assert await store.count_waiting() == {"circuit one": 1}
            (delivery,), next_due = await store.list_due("circuit one", NOON, 10)
            assert next_due is None
            assert (delivery.job_id, delivery.api_key_id, delivery.endpoint) == (job.id, "k_one", "one")
            assert (delivery.body, delivery.state, delivery.attempts) == ("event 3", "pending", 0)
            assert (delivery.created_at, delivery.due_at) == (NOON, NOON)
            assert delivery.expires_at == NOON + timedelta(hours=24)

    @async_test
    async def test_calls_that_wait_are_told_of_and_a_message_is_not(self) -> None:
        told = ToldEvents()
        async with self.opened(told) as store:
            job = make_job()
            await store.add(job, accepted_draft())
            bodies = (Message("assistant", "a"), ToolCallsRequested([{"id": "c"}]), Message("assistant", "b"))
            await store.append_events(job.id, [EventDraft(1, NOON, body) for body in bodies])
            due, _ = await store.list_due("circuit one", NOON, 10)
            assert [delivery.body for delivery in due] == ["event 3"]

    @async_test
    async def test_a_write_that_fails_leaves_no_delivery(self) -> None:
        told = ToldEvents()

        def fail(_job: Job) -> Job:
            raise InvalidRequest("no")

        async with self.opened(told) as store:
            job = make_job()
            await store.add(job, accepted_draft())
            drafts = [EventDraft(1, NOON, StateChanged("queued", "running"))]
            await expect_error(InvalidRequest, store.update_job(job.id, ALL_STATES, fail, drafts))
            assert await store.count_waiting() == {}
            assert told.added == []

    @async_test
    async def test_a_later_delivery_waits_for_the_earlier_one_of_its_job_and_receiver_alone(self) -> None:
        told = ToldEvents("one", "two")
        async with self.opened(told) as store:
            first, second = make_job(), make_job()
            for job in (first, second):
                await store.add(job, accepted_draft())
                await change(store, job)
                await change(store, job)
            due, _ = await store.list_due("circuit one", NOON, 10)
            assert [(each.job_id, each.body) for each in due] == [
                (first.id, "event 2"),
                (second.id, "event 2"),
            ]
            await store.save_attempt(due[0], AttemptResult(NOON, "delivered", NOON, 200))
            due, _ = await store.list_due("circuit one", NOON, 10)
            assert {(each.job_id, each.body) for each in due} == {
                (first.id, "event 3"),
                (second.id, "event 2"),
            }
            due, _ = await store.list_due("circuit two", NOON, 1)
            assert [(each.job_id, each.body) for each in due] == [(first.id, "event 2")]

    @async_test
    async def test_a_failed_attempt_is_due_later_and_the_next_ones_wait_for_it(self) -> None:
        told, later = ToldEvents(), NOON + timedelta(seconds=5)
        async with self.opened(told) as store:
            job = make_job()
            await store.add(job, accepted_draft())
            await change(store, job)
            await change(store, job)
            ((delivery,), _) = await store.list_due("circuit one", NOON, 10)
            await store.save_attempt(delivery, AttemptResult(NOON, "pending", later, 500, "It failed."))
            assert await store.list_due("circuit one", NOON, 10) == ([], later)
            ((again,), _) = await store.list_due("circuit one", later, 10)
            assert (again.id, again.attempts, again.status, again.error) == (
                delivery.id,
                1,
                500,
                "It failed.",
            )
            await store.save_attempt(again, AttemptResult(later, "failed", later, None, "It is over."))
            ((following,), _) = await store.list_due("circuit one", later, 10)
            assert following.body == "event 3"
            over = await store.get_delivery(delivery.id)
            assert over is not None
            assert (over.state, over.attempts, over.status) == ("failed", 2, None)

    @async_test
    async def test_a_delivery_is_due_at_the_time_of_its_draft_and_can_be_postponed(self) -> None:
        told, later = ToldEvents(), NOON + timedelta(hours=30)
        async with self.opened(told) as store:
            plan = told.plan
            store.use_plan(
                lambda job, events: [replace(each, due_at=later) for each in plan(job, events)],
                told.added.append,
            )
            job = make_job()
            await store.add(job, accepted_draft())
            await change(store, job)
            await change(store, job)
            assert await store.list_due("circuit one", NOON, 10) == ([], later)
            ((delivery,), _) = await store.list_due("circuit one", later, 10)
            assert (delivery.due_at, delivery.expires_at) == (later, later + timedelta(hours=24))
            much_later = later + timedelta(days=3)
            await store.postpone(delivery, much_later)
            assert await store.list_due("circuit one", later, 10) == ([], much_later)
            ((postponed,), _) = await store.list_due("circuit one", much_later, 10)
            assert (postponed.id, postponed.attempts, postponed.attempted_at) == (delivery.id, 0, None)
            assert postponed.expires_at == much_later + timedelta(hours=24)
            await store.save_attempt(postponed, AttemptResult(later, "delivered", later, 200))
            await store.postpone(postponed, later)
            taken = await store.get_delivery(delivery.id)
            assert taken is not None
            assert (taken.state, taken.due_at) == ("delivered", later)

    @async_test
    async def test_a_replay_is_due_at_once_with_all_its_attempts_before_it(self) -> None:
        told, clock = ToldEvents(), FakeClock()
        async with self.opened(told, clock) as store:
            job = make_job()
            await store.add(job, accepted_draft())
            await change(store, job)
            ((delivery,), _) = await store.list_due("circuit one", NOON, 10)
            await store.save_attempt(delivery, AttemptResult(NOON, "failed", NOON, 410, "Gone."))
            told.added.clear()
            later = NOON + timedelta(days=9)
            replayed = await store.replay(delivery.id, later)
            assert replayed is not None
            assert (replayed.id, replayed.body) == (delivery.id, delivery.body)
            assert (replayed.state, replayed.attempts, replayed.error) == ("pending", 0, None)
            assert (replayed.due_at, replayed.expires_at) == (later, later + timedelta(hours=24))
            assert told.added == [frozenset({"circuit one"})]
            assert await store.replay(message_id(), later) is None
            assert await store.get_delivery(message_id()) is None

    @async_test
    async def test_deliveries_are_listed_by_filters_newest_first_and_by_pages(self) -> None:
        told = ToldEvents(None, "two")
        async with self.opened(told) as store:
            first, second = make_job(), make_job(api_key_id="k_two")
            for job in (first, second):
                await store.add(job, accepted_draft())
                await change(store, job)
            everything = (await store.list_deliveries(DeliveryFilter(), 10)).deliveries
            assert [each.sequence for each in everything] == sorted(
                (each.sequence for each in everything), reverse=True
            )
            assert [(each.job_id, each.endpoint) for each in everything] == [
                (second.id, "two"),
                (second.id, None),
                (first.id, "two"),
                (first.id, None),
            ]
            assert everything[1].url == "https://receiver.example/secret"
            await store.save_attempt(everything[0], AttemptResult(NOON, "delivered", NOON, 200))

            async def listed(which: DeliveryFilter) -> list[int]:
                page = await store.list_deliveries(which, 10)
                return [everything.index(_find(everything, each)) for each in page.deliveries]

            assert await listed(DeliveryFilter(state="delivered")) == [0]
            assert await listed(DeliveryFilter(endpoint="two")) == [0, 2]
            assert await listed(DeliveryFilter(job_id=first.id)) == [2, 3]
            # Deliveries to endpoints belong to no key.
            assert await listed(DeliveryFilter(api_key_id="k_two")) == [1]
            pages, cursor = [], None
            while True:
                page = await store.list_deliveries(DeliveryFilter(), 3, cursor)
                pages.append([each.id for each in page.deliveries])
                cursor = page.next_cursor
                if cursor is None:
                    break
            assert pages == [[each.id for each in everything[:3]], [everything[3].id]]
            error = await expect_error(
                InvalidRequest, store.list_deliveries(DeliveryFilter(), 3, "no cursor")
            )
            assert error.code == "bad_cursor"

    @async_test
    async def test_the_deliveries_of_a_job_are_deleted_with_it(self) -> None:
        told = ToldEvents()
        async with self.opened(told) as store:
            job = make_job()
            await store.add(job, accepted_draft())
            drafts = [EventDraft(1, NOON, StateChanged("queued", "cancelled"))]
            await store.update_job(
                job.id, ALL_STATES, lambda old: replace(old, state=State.CANCELLED, finished_at=NOON), drafts
            )
            ((delivery,), _) = await store.list_due("circuit one", NOON, 10)
            assert await store.delete(job.id)
            assert await store.count_waiting() == {}
            # Its attempt may have been under way.
            await store.save_attempt(delivery, AttemptResult(NOON, "delivered", NOON, 200))
            assert await store.get_delivery(delivery.id) is None


def _find(deliveries: Sequence[Delivery], wanted: Delivery) -> Delivery:
    return next(each for each in deliveries if each.id == wanted.id)
