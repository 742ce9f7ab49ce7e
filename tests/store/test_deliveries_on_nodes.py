"""Callbacks that several nodes send from one outbox: each once, and those about one job in their order."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tests.store.nodes import run, running_nodes, until

from steadyhand.callbacks.deliverer import CallbackDeliverer, DelivererConfig, SendResult
from steadyhand.clock import utc_now
from steadyhand.ports import Delivery, DeliveryFilter, IdempotencyKey
from steadyhand.store import SqlStore
from steadyhand.testing.contracts.outbox import ToldEvents, change
from steadyhand.testing.contracts.samples import accepted_draft, make_job

CLAIM_SECONDS = 30.0


@dataclass
class RecordingCourier:
    """Takes all deliveries of some endpoints."""

    sent: list[Delivery]
    known: set[str] = field(default_factory=lambda: {"one"})
    hold: asyncio.Event | None = None

    def knows(self, delivery: Delivery) -> bool:
        return delivery.endpoint in self.known

    def held_until(self, _delivery: Delivery, _now: datetime) -> datetime | None:
        return None

    async def send(self, delivery: Delivery) -> SendResult:
        self.sent.append(delivery)
        await (asyncio.sleep(0.001) if self.hold is None else self.hold.wait())
        return SendResult(200)


def deliverer_of(store: SqlStore, courier: RecordingCourier, **config: Any) -> CallbackDeliverer:
    settings = {"clock": utc_now, "claim_seconds": CLAIM_SECONDS, **config}
    deliverer = CallbackDeliverer(store, courier, DelivererConfig(**settings))
    store.use_plan(ToldEvents("one").plan, deliverer.notify)
    return deliverer


@asynccontextmanager
async def running(*deliverers: CallbackDeliverer) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.run()) for each in deliverers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_delivered(store: SqlStore, count: int) -> None:
    async with asyncio.timeout(60):
        while True:
            page = await store.list_deliveries(DeliveryFilter(state="delivered"), 200)
            if len(page.deliveries) == count:
                return
            await asyncio.sleep(0.02)


def test_each_delivery_is_sent_once_and_those_of_a_job_in_order_though_two_nodes_store_and_send(
    postgres_url: str,
) -> None:
    async def scenario() -> None:
        async with running_nodes(postgres_url) as nodes:
            sent: list[Delivery] = []
            deliverers = [deliverer_of(node.store, RecordingCourier(sent)) for node in nodes]
            jobs = [make_job() for _ in range(6)]
            for job in jobs:
                await nodes[0].store.add(job, accepted_draft())

            async def tell(job: Any, number: int) -> None:
                for event in range(8):
                    await change(nodes[(number + event) % 2].store, job)

            async with running(*deliverers):
                await asyncio.gather(*(tell(job, number) for number, job in enumerate(jobs)))
                await until_delivered(nodes[0].store, 8 * len(jobs))
            by_job: defaultdict[str | None, list[str]] = defaultdict(list)
            for delivery in sent:
                by_job[delivery.job_id].append(delivery.body)
            expected = [f"event {number}" for number in range(2, 10)]
            assert dict(by_job) == {job.id: expected for job in jobs}

    run(scenario)


def test_a_delivery_of_a_node_that_died_is_sent_by_another_one_after_its_claim(postgres_url: str) -> None:
    async def scenario() -> None:
        async with running_nodes(postgres_url) as (dead, alive):
            hung = RecordingCourier([], hold=asyncio.Event())
            first = deliverer_of(dead.store, hung)
            job = make_job()
            await dead.store.add(job, accepted_draft())
            async with running(first):
                await change(dead.store, job)
                await until(lambda: bool(hung.sent))
            now = utc_now()
            later = now + timedelta(seconds=CLAIM_SECONDS + 1)
            due, next_due = await alive.store.list_due("circuit one", now, 10)
            assert not due
            assert next_due is not None
            assert now < next_due <= later
            assert not await alive.store.claim(hung.sent[0], now, later)
            courier = RecordingCourier([])
            second = deliverer_of(alive.store, courier, clock=lambda: later)
            async with running(second):
                await until_delivered(alive.store, 1)
            assert [each.id for each in courier.sent] == [hung.sent[0].id]
            assert not await dead.store.claim(hung.sent[0], later, later + timedelta(seconds=9))

    run(scenario)


def test_a_node_that_does_not_know_a_receiver_asks_again_and_leaves_it_to_others(postgres_url: str) -> None:
    async def scenario() -> None:
        async with running_nodes(postgres_url) as (here, there):
            stale, refreshed = RecordingCourier([], known=set()), RecordingCourier([], known=set())

            async def refresh() -> None:
                refreshed.known.add("one")

            first = deliverer_of(here.store, stale)
            job = make_job()
            await here.store.add(job, accepted_draft())
            async with running(first):
                await change(here.store, job)
                await until(lambda: any(circuit.closed_at for circuit in first._circuits.values()))
            page = await here.store.list_deliveries(DeliveryFilter(), 5)
            assert [each.state for each in page.deliveries] == ["pending"]
            second = deliverer_of(there.store, refreshed, refresh=refresh)
            async with running(second):
                await until_delivered(there.store, 1)
            assert not stale.sent
            assert len(refreshed.sent) == 1

    run(scenario)


def test_a_request_with_one_idempotency_key_makes_one_job_on_whatever_nodes_it_comes_at_once(
    postgres_url: str,
) -> None:
    async def scenario() -> None:
        async with running_nodes(postgres_url) as nodes:
            for number in range(10):
                key = IdempotencyKey(f"key {number}", "fingerprint")
                results = await asyncio.gather(
                    *(node.store.add(make_job(), accepted_draft(), key) for node in nodes for _ in range(2))
                )
                assert len({result.job.id for result in results}) == 1
                assert sorted(result.replayed for result in results) == [False, True, True, True]

    run(scenario)
