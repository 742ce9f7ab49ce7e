"""The deliverer on a real store, with a clock that the test moves."""

import asyncio
import json
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook
from tests.callbacks.receiver import Received, Receiver, Reply, receiving

from steadyhand.callbacks.address_guard import AddressGuard, CallbackUrl, parse_callback_url
from steadyhand.callbacks.deliverer import MAX_PER_CIRCUIT, CallbackDeliverer, DelivererConfig, SendResult
from steadyhand.callbacks.endpoint_courier import EndpointCourier, SendMessage
from steadyhand.callbacks.endpoints import Endpoint
from steadyhand.callbacks.lazy_sender import LazySender
from steadyhand.callbacks.plan import DeliveryPlan, Renderers
from steadyhand.callbacks.signing import derive_secret
from steadyhand.events import EventDraft, StateChanged
from steadyhand.job import Job, JobCallback, State
from steadyhand.ports import Delivery, DeliveryFilter
from steadyhand.redact import NO_REDACTION
from steadyhand.store import SqlStore, open_store
from steadyhand.testing.contracts.samples import NOON, FakeClock, accepted_draft, make_job

ALL_STATES = frozenset(State)
SECRET = derive_secret(b"of the endpoint", "one")
URL = "http://receiver.example/hook"


def secret_for(api_key_id: str) -> str:
    return derive_secret(b"of the service", api_key_id)


def make_endpoint(url: str = URL, name: str = "one") -> Endpoint:
    events = frozenset({"job.ended", "job.parked"})
    return Endpoint(name, parse_callback_url(url), events, frozenset(), "thin", (SECRET,))  # type: ignore[arg-type]  # literals


@dataclass
class ScriptedSend:
    """Takes messages without a network; `answers` returns the result of each, by its number."""

    answers: Callable[[int], SendResult] = lambda _number: SendResult(200)
    sent: list[tuple[str, Mapping[str, str], str]] = field(default_factory=list)
    hold: asyncio.Event | None = None
    under_way: int = 0
    most_under_way: int = 0

    async def __call__(self, url: CallbackUrl, headers: Mapping[str, str], body: bytes) -> SendResult:
        self.sent.append((url.origin, headers, body.decode()))
        number = len(self.sent)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if self.hold is not None:
                await self.hold.wait()
        finally:
            self.under_way -= 1
        return self.answers(number)

    @property
    def events(self) -> list[int]:
        return [json.loads(body)["data"]["event"] for _, _, body in self.sent]


@dataclass
class World:
    """A store, its deliverer, and the clock of both."""

    store: SqlStore
    clock: FakeClock
    deliverer: CallbackDeliverer
    plan: DeliveryPlan

    async def end(self, job: Job, target: State = State.COMPLETED) -> None:
        """End a job; one that has ended already ends once more."""
        now = self.clock()
        await self.store.update_job(
            job.id,
            ALL_STATES,
            lambda old: replace(old, state=target, finished_at=now),
            [EventDraft(1, now, StateChanged(State.RUNNING, target))],
        )

    async def ended_job(self, **fields: Any) -> Job:
        """Store a job and end it."""
        job = make_job(**fields)
        await self.store.add(job, accepted_draft())
        await self.end(job)
        return job

    async def settle(self, seconds: float = 60) -> None:
        """Deliver until nothing is due now and nothing is under way."""
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            while True:
                self.deliverer._wake.clear()
                pause = await self.deliverer.step(group)
                if self.deliverer._in_flight:
                    await self.deliverer._wake.wait()
                elif pause > 0:
                    return

    async def settle_until(self, end: datetime, seconds: float = 60) -> None:
        """Deliver, and move the clock to each time at which something is due, up to the end."""
        while True:
            await self.settle(seconds)
            pause = self.deliverer._seconds_to_next(self.clock())
            later = self.clock() + timedelta(seconds=pause)
            if later > end:
                self.clock.now = end
                return
            self.clock.now = later

    async def states(self) -> list[str]:
        """Return the states of all deliveries, oldest first."""
        page = await self.store.list_deliveries(DeliveryFilter(), 200)
        return [each.state for each in reversed(page.deliveries)]


@asynccontextmanager
async def world(
    path: Path, send: SendMessage, *endpoints: Endpoint, at: datetime = NOON, **config: Any
) -> AsyncIterator[World]:
    clock = FakeClock(at)
    store = await open_store(f"sqlite:///{path}/jobs.db", clock=clock, linger_seconds=0)
    try:
        courier = EndpointCourier(send, {each.name: each for each in endpoints}.get, secret_for, clock)
        settings = DelivererConfig(clock, jitter=lambda: 0.5, **config)
        deliverer = CallbackDeliverer(store, courier, settings)
        plan = DeliveryPlan(lambda: endpoints, Renderers(lambda _: {}, lambda _: None), NO_REDACTION)
        store.use_plan(plan, deliverer.notify)
        await deliverer.take_up()
        yield World(store, clock, deliverer, plan)
    finally:
        await store.close()


def test_a_job_that_ended_is_told_once_with_a_signature_of_its_receiver(tmp_path: Path) -> None:
    async def scenario() -> None:
        send = ScriptedSend()
        async with world(tmp_path, send, make_endpoint()) as there:
            job = await there.ended_job(callback=JobCallback("https://mine.example/hook"))
            await there.settle()
            await there.settle()
            assert sorted(origin for origin, _, _ in send.sent) == [
                "http://receiver.example",
                "https://mine.example",
            ]
            for origin, headers, body in send.sent:
                secret = SECRET if origin == "http://receiver.example" else secret_for(job.api_key_id)
                expected = Webhook(secret).sign(headers["webhook-id"], NOON, body)
                assert headers["webhook-signature"] == expected
                assert headers["webhook-timestamp"] == str(int(NOON.timestamp()))
            assert await there.states() == ["delivered", "delivered"]
            counts = {"delivered": 2, "postponed": 0, "failed": 0, "cancelled": 0}
            assert there.deliverer.counts() == {**counts, "in_flight": 0, "open_circuits": 0, "waiting": 0}
            await there.ended_job()
            await there.deliverer.take_up()
            assert there.deliverer.counts()["waiting"] == 1

    asyncio.run(scenario())


def test_the_events_of_one_job_are_told_in_order_though_the_first_fails(tmp_path: Path) -> None:
    async def scenario() -> None:
        send = ScriptedSend(lambda number: SendResult(404 if number in (1, 2) else 200))
        async with world(tmp_path, send, make_endpoint()) as there:
            job = await there.ended_job()
            await there.end(job)
            await there.end(job)
            await there.settle()
            assert send.events == [2]
            there.clock.advance(timedelta(seconds=4.9))
            await there.settle()
            assert send.events == [2]
            there.clock.advance(timedelta(seconds=0.1))
            await there.settle()
            assert send.events == [2, 2]
            there.clock.advance(timedelta(seconds=10))
            await there.settle()
            assert send.events == [2, 2, 2, 3, 4]
            ids = [headers["webhook-id"] for _, headers, _ in send.sent]
            assert len(set(ids[:3])) == 1
            assert len(set(ids)) == 3

    asyncio.run(scenario())


def test_a_delivery_is_given_up_after_a_day_and_the_next_one_of_its_job_follows(tmp_path: Path) -> None:
    async def scenario() -> None:
        send = ScriptedSend(lambda _: SendResult(404))
        async with world(tmp_path, send, make_endpoint()) as there:
            await there.ended_job()
            await there.settle_until(NOON + timedelta(hours=25))
            assert await there.states() == ["failed"]
            assert 30 < len(send.sent) < 40
            (delivery,) = (await there.store.list_deliveries(DeliveryFilter(), 9)).deliveries
            assert (delivery.status, delivery.error) == (404, "The receiver answered with 404.")
            assert delivery.attempted_at == NOON + timedelta(hours=24)
            send.answers = lambda _: SendResult(200)
            await there.store.replay(delivery.id, there.clock())
            await there.settle()
            assert await there.states() == ["delivered"]

    asyncio.run(scenario())


def test_a_receiver_that_is_gone_is_not_asked_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        send = ScriptedSend(lambda _: SendResult(410))
        async with world(tmp_path, send, make_endpoint()) as there:
            await there.ended_job()
            await there.settle_until(NOON + timedelta(hours=1))
            assert (await there.states(), len(send.sent)) == (["failed"], 1)

    asyncio.run(scenario())


def test_a_receiver_that_fails_is_probed_by_one_message_at_a_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        send = ScriptedSend(lambda _: SendResult(None, error="The receiver could not be reached."))
        async with world(tmp_path, send, make_endpoint()) as there:
            for _ in range(50):
                await there.ended_job()
            await there.settle()
            assert len(send.sent) <= 2 * MAX_PER_CIRCUIT  # then the circuit is open
            before = len(send.sent)
            await there.settle_until(NOON + timedelta(minutes=10))
            # 30 s, a minute, two, four: a probe each.
            assert len(send.sent) - before <= 6
            send.answers = lambda _: SendResult(200)
            await there.settle_until(NOON + timedelta(minutes=30))
            assert await there.states() == ["delivered"] * 50

    asyncio.run(scenario())


def test_a_failing_receiver_does_not_hold_up_another_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        send = ScriptedSend()

        async def one_fails(url: CallbackUrl, headers: Mapping[str, str], body: bytes) -> SendResult:
            await send(url, headers, body)
            return SendResult(500 if url.host == "receiver.example" else 200)

        good = make_endpoint("https://good.example/", "good")
        async with world(tmp_path, one_fails, make_endpoint(), good) as there:
            for _ in range(20):
                await there.ended_job()
            await there.settle()
            page = await there.store.list_deliveries(DeliveryFilter(endpoint="good"), 50)
            assert {each.state for each in page.deliveries} == {"delivered"}
            assert len(page.deliveries) == 20

    asyncio.run(scenario())


def test_a_retry_after_rests_the_whole_receiver(tmp_path: Path) -> None:
    async def scenario() -> None:
        send = ScriptedSend(lambda number: SendResult(429, "120") if number == 1 else SendResult(200))
        async with world(tmp_path, send, make_endpoint()) as there:
            await there.ended_job()
            await there.settle()
            await there.ended_job()
            there.clock.advance(timedelta(seconds=119))
            await there.settle()
            assert len(send.sent) == 1
            there.clock.advance(timedelta(seconds=1))
            await there.settle()
            assert await there.states() == ["delivered", "delivered"]

    asyncio.run(scenario())


def test_a_bounded_number_of_deliveries_is_under_way_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        hold = asyncio.Event()
        send = ScriptedSend(hold=hold)
        endpoints = [make_endpoint(f"https://r{number}.example/", f"r{number}") for number in range(5)]
        async with world(tmp_path, send, *endpoints, max_in_flight=10) as there:
            for _ in range(8):
                await there.ended_job()
            async with asyncio.timeout(30), asyncio.TaskGroup() as group:
                for _ in range(5):
                    await there.deliverer.step(group)
                    await asyncio.sleep(0)
                assert there.deliverer._in_flight == 10
                sent_to = [origin for origin, _, _ in send.sent]
                assert max(map(sent_to.count, sent_to)) == MAX_PER_CIRCUIT
                hold.set()
            await there.settle()
            assert send.most_under_way == 10
            assert await there.states() == ["delivered"] * 40

    asyncio.run(scenario())


def test_nothing_is_sent_to_an_endpoint_that_was_removed(tmp_path: Path) -> None:
    async def scenario() -> None:
        send = ScriptedSend(lambda _: SendResult(500))
        async with world(tmp_path, send, make_endpoint()) as there:
            await there.ended_job()
            await there.settle()
        send.sent.clear()
        async with world(tmp_path, send, at=NOON + timedelta(minutes=1)) as there:
            await there.settle()
            assert send.sent == []
            assert await there.states() == ["cancelled"]
        async with world(tmp_path, send, make_endpoint(), at=NOON + timedelta(minutes=2)) as there:
            await there.settle_until(NOON + timedelta(hours=1))
            assert send.sent == []  # another endpoint may have the name by now

    asyncio.run(scenario())


def test_nothing_is_sent_about_a_job_that_was_deleted(tmp_path: Path) -> None:
    async def scenario() -> None:
        send = ScriptedSend(lambda _: SendResult(500))
        async with world(tmp_path, send, make_endpoint()) as there:
            job = await there.ended_job()
            await there.settle()
            await there.store.delete(job.id)
            await there.settle_until(NOON + timedelta(hours=1))
            assert len(send.sent) == 1

    asyncio.run(scenario())


def test_the_task_delivers_what_comes_while_it_waits(tmp_path: Path) -> None:
    async def scenario() -> None:
        arrived: asyncio.Queue[str] = asyncio.Queue()

        async def send(url: CallbackUrl, headers: Mapping[str, str], body: bytes) -> SendResult:
            assert (url.host, body[:1]) == ("receiver.example", b"{")
            arrived.put_nowait(headers["webhook-id"])
            return SendResult(200)

        async with (
            world(tmp_path, send, make_endpoint()) as there,
            asyncio.timeout(30),
            asyncio.TaskGroup() as group,
        ):
            running = group.create_task(there.deliverer.run())
            for _ in range(2):
                await there.ended_job()
                assert (await arrived.get()).startswith("msg_")
            running.cancel()

    asyncio.run(scenario())


def test_no_log_line_has_the_address_of_a_receiver(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> None:
        send = ScriptedSend(lambda number: SendResult((404, 410, 200)[number % 3]))
        async with world(
            tmp_path, send, make_endpoint("http://receiver.example/the-path?the-query")
        ) as there:
            for _ in range(6):
                await there.ended_job(callback=JobCallback("https://mine.example/the-path?the-query"))
            await there.settle_until(NOON + timedelta(minutes=5))

    asyncio.run(scenario())
    written = "".join(capsys.readouterr())
    assert "callback.given_up" in written
    assert "the-path" not in written
    assert "the-query" not in written


# --- a bad receiver over real sockets ------------------------------------------------------------


@dataclass
class QuietCourier:
    """Sends nothing before a time."""

    until: datetime
    sent: list[str] = field(default_factory=list)

    def knows(self, _delivery: Delivery) -> bool:
        return True

    def held_until(self, _delivery: Delivery, now: datetime) -> datetime | None:
        return self.until if now < self.until else None

    async def send(self, delivery: Delivery) -> SendResult:
        self.sent.append(delivery.id)
        return SendResult(200)


def test_a_delivery_that_its_courier_holds_is_sent_later_and_is_no_attempt(tmp_path: Path) -> None:
    async def run() -> None:
        until = NOON + timedelta(hours=9)
        courier = QuietCourier(until)
        async with world(tmp_path, ScriptedSend(), make_endpoint()) as there:
            there.deliverer._courier = courier
            await there.ended_job()
            await there.settle()
            (held,) = (await there.store.list_deliveries(DeliveryFilter(), 10)).deliveries
            assert (held.state, held.attempts, held.due_at, courier.sent) == ("pending", 0, until, [])
            await there.settle_until(until + timedelta(seconds=1))
            assert courier.sent == [held.id]
            assert await there.states() == ["delivered"]

    asyncio.run(run())


def test_a_deliverer_leaves_the_circuits_of_another_alone(tmp_path: Path) -> None:
    async def run() -> None:
        send = ScriptedSend()
        async with world(tmp_path, send, make_endpoint(), owns=lambda name: name != "endpoint one") as there:
            await there.ended_job()
            await there.deliverer.take_up()
            await there.settle()
            assert (send.sent, await there.states()) == ([], ["pending"])
            assert await there.store.count_waiting() == {"endpoint one": 1}
            assert there.deliverer.counts()["waiting"] == 0

    asyncio.run(run())


@dataclass
class BadReceiver:
    """Is down for ten minutes, then busy, hangs once, and then fails every third time."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.number = 0
        self.taken: list[Received] = []
        self.too_early = 0
        self.statuses: dict[int, int] = defaultdict(int)
        self.busy_until = NOON
        self.was_busy = False

    def reply(self, _number: int, message: Received) -> Reply:
        reply = self._reply()
        self.statuses[0 if reply.hangs else reply.status] += 1
        if reply.status == 200 and not reply.hangs:
            self.taken.append(message)
        return reply

    def _reply(self) -> Reply:
        now = self.clock()
        if now < NOON + timedelta(minutes=10):
            return Reply(502)
        if not self.was_busy:
            self.was_busy, self.busy_until = True, now + timedelta(seconds=300)
            return Reply(429, {"retry-after": "300"})
        if now < self.busy_until:
            self.too_early += 1
        self.number += 1
        if self.number == 10:
            return Reply(hangs=True)
        return Reply(500) if self.number % 3 == 0 else Reply(200)


def check_told(received: Sequence[Received], expected: Mapping[str, int], secret: str) -> None:
    """Check that each event arrived at least once, in order for each job, with a good signature."""
    seen: dict[str, list[int]] = defaultdict(list)
    for message in received:
        headers = message.headers
        at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), NOON.tzinfo)
        assert headers["webhook-signature"] == Webhook(secret).sign(headers["webhook-id"], at, message.body)
        data = json.loads(message.body)["data"]
        seen[data["id"]].append(data["event"])
    assert {job_id: len(set(numbers)) for job_id, numbers in seen.items()} == expected
    for numbers in seen.values():
        first_arrivals = list(dict.fromkeys(numbers))
        assert first_arrivals == sorted(first_arrivals)


async def tell_a_bad_receiver(path: Path, receiver: Receiver, events: int) -> BadReceiver:
    jobs, each = events // 5, 5
    guard = AddressGuard([f"127.0.0.1:{receiver.port}"])
    sender = LazySender(guard, max_connections=16, seconds=1)
    async with world(path, sender, make_endpoint(f"{receiver.url}/hook")) as there:
        bad = BadReceiver(there.clock)
        receiver.reply = bad.reply
        ended = [await there.ended_job() for _ in range(jobs)]
        for _ in range(each - 1):
            await asyncio.gather(*(there.end(job) for job in ended))
        await there.settle_until(NOON + timedelta(hours=20), seconds=max(60, events // 10))
        await sender.close()
        assert await there.store.count_waiting() == {}
        check_told(bad.taken, {job.id: each for job in ended}, SECRET)
        return bad


@pytest.mark.parametrize(
    "events", [100, pytest.param(300, marks=pytest.mark.long), pytest.param(1_000, marks=pytest.mark.long)]
)
def test_a_bad_receiver_has_all_events_in_order_with_good_signatures(tmp_path: Path, events: int) -> None:
    with receiving() as receiver:
        bad = asyncio.run(tell_a_bad_receiver(tmp_path, receiver, events))
    assert bad.statuses[502] <= 12  # while it was down, the circuit spared it
    assert (bad.statuses[429], bad.statuses[0], bad.too_early) == (1, 1, 0)
    assert bad.statuses[500] >= 0.3 * events
    assert threading.active_count() < 50


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_bad_receiver_has_10000_events_in_order_with_good_signatures(tmp_path: Path) -> None:
    with receiving() as receiver:
        bad = asyncio.run(tell_a_bad_receiver(tmp_path, receiver, 10_000))
    assert (bad.statuses[429], bad.too_early) == (1, 0)
