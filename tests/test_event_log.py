import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from tests.async_tests import in_loop

from steadyhand.agents import Catalog
from steadyhand.api.openai.responses.delta_splitter import DeltaSplitter, split_into_deltas
from steadyhand.api.openai.text_assembler import TextAssembler
from steadyhand.control import Caller, Control
from steadyhand.event_log import CROWD, MAX_BACKLOG, EventFeed, EventLog, FeedItem, Pulse
from steadyhand.events import (
    Event,
    EventBody,
    EventDraft,
    LiveProgress,
    LiveText,
    Message,
    StateChanged,
    TextDelta,
    Thinking,
    ThinkingDelta,
    WarningEvent,
)
from steadyhand.job import ErrorInfo, Job, JobSpec, JobWarning, Outcome, OutcomeType, State
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import ALL_SCOPES
from steadyhand.queue.local import LocalQueue
from steadyhand.redact import NO_REDACTION, Redactor
from steadyhand.redact.matcher import Spans
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.store import SqlStore, open_store
from steadyhand.worker.run_event_writer import RunEventWriter
from steadyhand.workspace.checkout import GitCheckouts

NOW = datetime(2026, 1, 2, tzinfo=UTC)
JOB = Job(
    id="0123456789ab",
    spec=JobSpec("p"),
    agent="claude",
    api_key_id="k",
    created_at=NOW,
    budget_micros=1,
    timeout_seconds=1,
    idle_timeout_seconds=1,
)
CALLER = Caller("k", ALL_SCOPES)


@asynccontextmanager
async def store_with_job(folder: Path) -> AsyncIterator[SqlStore]:
    """Open a store that has `JOB`, queued."""
    store = await open_store(f"sqlite:///{folder / 'd.db'}")
    try:
        await store.add(JOB, [EventDraft(0, NOW, StateChanged(None, "queued"))])
        yield store
    finally:
        await store.close()


async def follow_run(
    event_log: EventLog, feed: EventFeed, bodies: Sequence[EventBody | TextDelta]
) -> Sequence[object]:
    """Emit the bodies as the first run of `JOB` and return what a follower gets of them."""
    writer = RunEventWriter(event_log, JOB.id, 1, lambda: NOW)
    with feed.subscribe(JOB.id) as follower:
        async with asyncio.TaskGroup() as group:
            group.create_task(writer.run())
            for body in bodies:
                await writer.emit(body)
            await writer.close()
        return await follower.receive()


def event(seq: int) -> Event:
    return Event(seq, JOB.id, 1, NOW, "message", {"role": "assistant", "text": str(seq)})


def test_a_follower_that_is_too_slow_loses_text_but_is_told_to_read_events_again() -> None:
    feed = EventFeed()
    with feed.subscribe(JOB.id) as slow:
        feed.publish(JOB.id, [LiveText(JOB.id, 1, NOW, TextDelta("m", "x"))] * (MAX_BACKLOG + 10))
        assert not slow.lagged
        feed.publish(JOB.id, [event(1)])
        assert slow.lagged
        assert len(asyncio.run(slow.receive())) == MAX_BACKLOG


def test_items_are_written_at_once_only_to_a_follower_that_has_all_before_them() -> None:
    async def scene() -> None:
        feed, can_write = EventFeed(), True
        written: list[FeedItem] = []

        def write(items: Sequence[FeedItem]) -> bool:
            if can_write:
                written.extend(items)
            return can_write

        texts = [LiveText(JOB.id, 1, NOW, TextDelta("m", str(number))) for number in range(9)]
        with feed.subscribe(JOB.id, write) as follower, feed.subscribe(JOB.id) as other:
            feed.publish(JOB.id, texts[:1])
            assert written == []  # it does not wait for items yet
            assert await follower.receive() == texts[:1]
            async with asyncio.timeout(20), asyncio.TaskGroup() as group:
                receiving = group.create_task(follower.receive())
                await asyncio.sleep(0)
                feed.publish(JOB.id, texts[1:3])
                assert written == texts[1:3]
                feed.publish(JOB.id, [event(1), *texts[3:5]])
                assert written == [*texts[1:3], event(1), *texts[3:5]]
                can_write = False  # its client is slow
                feed.publish(JOB.id, texts[5:6])
                can_write = True
                feed.publish(JOB.id, texts[6:7])
                assert await receiving == texts[5:7]
                receiving = group.create_task(follower.receive())
                await asyncio.sleep(0)
                feed.publish(JOB.id, texts[7:])
                assert written == [*texts[1:3], event(1), *texts[3:5], *texts[7:]]
                assert not receiving.done()
                feed.close()
                assert await receiving == []
            assert await other.receive() == [texts[0], *texts[1:3], event(1), *texts[3:]]

    asyncio.run(scene())


def test_a_follower_that_leaves_is_forgotten() -> None:
    feed = EventFeed()
    with feed.subscribe(JOB.id):
        pass
    assert not feed._subscriptions


def test_a_closed_feed_ends_those_who_follow_and_those_who_come_later() -> None:
    feed = EventFeed()
    with feed.subscribe(JOB.id) as before:
        feed.close()
        assert before.closed
        assert asyncio.run(before.receive()) == []
    with feed.subscribe(JOB.id) as after:
        assert after.closed


def test_a_numbered_event_reaches_followers_only_once_the_store_has_it(tmp_path: Path) -> None:
    async def scene() -> None:
        async with store_with_job(tmp_path) as store:
            feed = EventFeed()
            journal = RunEventWriter(EventLog(store, feed, NO_REDACTION), JOB.id, 1, lambda: NOW)
            with feed.subscribe(JOB.id) as follower:
                async with asyncio.TaskGroup() as group:
                    group.create_task(journal.run())
                    for number in range(300):
                        await journal.emit(Message("assistant", str(number)))
                    seen: list[int] = []
                    while len(seen) < 300:
                        for item in await follower.receive():
                            assert isinstance(item, Event)
                            stored = await store.list_events(JOB.id, item.seq - 1, 1)
                            assert stored[0] == item
                            seen.append(item.seq)
                    await journal.close()
            assert seen == list(range(2, 302))

    asyncio.run(scene())


def test_following_gives_every_number_once_however_the_job_and_the_follower_race(tmp_path: Path) -> None:
    async def scene() -> None:
        async with store_with_job(tmp_path) as store:
            feed = EventFeed()
            recorder = EventLog(store, feed, NO_REDACTION)
            control = _control(store, feed)

            async def write() -> None:
                for number in range(120):
                    await recorder.append(JOB.id, [EventDraft(1, NOW, Message("assistant", str(number)))])
                await recorder.update_job(
                    JOB.id,
                    frozenset(State),
                    lambda job: _moved(job, State.CANCELLED),
                    [EventDraft(0, NOW, StateChanged("queued", "cancelled"))],
                )

            async def follow(after: int) -> list[int]:
                return [
                    item.seq
                    async for item in control.follow(CALLER, JOB.id, after)
                    if isinstance(item, Event)
                ]

            async with asyncio.TaskGroup() as group:
                followers = [group.create_task(follow(after)) for after in (0, 0, 5, 100)]
                group.create_task(write())
            for follower, after in zip(followers, (0, 0, 5, 100), strict=True):
                assert follower.result() == list(range(after + 1, 123))
            assert await follow(7) == list(range(8, 123))

    asyncio.run(scene())


def test_a_job_that_ends_between_two_looks_at_the_store_ends_its_follower(tmp_path: Path) -> None:
    async def scene() -> None:
        async with store_with_job(tmp_path) as store:
            feed = EventFeed()
            control, recorder = _control(store, feed), EventLog(store, feed, NO_REDACTION)

            async def follow() -> list[int]:
                seen: list[int] = []
                async for item in control.follow(CALLER, JOB.id):
                    assert isinstance(item, Event)
                    if not seen:  # it has looked at the job, and now reads its events
                        await recorder.update_job(
                            JOB.id,
                            frozenset(State),
                            lambda job: _moved(job, State.CANCELLED),
                            [EventDraft(0, NOW, StateChanged("queued", "cancelled"))],
                        )
                    seen.append(item.seq)
                return seen

            async with asyncio.timeout(20):
                assert await follow() == [1, 2]

    asyncio.run(scene())


def test_thinking_and_text_of_one_message_are_counted_apart_and_without_secrets(tmp_path: Path) -> None:
    secret = "sk-canary-41Xw9TtR9bLm6"

    async def scene() -> None:
        async with store_with_job(tmp_path) as store:
            feed = EventFeed()
            bodies: Sequence[EventBody | TextDelta] = (
                *(ThinkingDelta("m1", piece) for piece in ("So: ", secret[:9], secret[9:], ".")),
                Thinking(f"So: {secret}."),
                ThinkingDelta("m1", "More"),
                TextDelta("m1", "Yeah"),
            )
            seen = await follow_run(EventLog(store, feed, Redactor([secret])), feed, bodies)
            said = [
                (item.body.type, item.body.text, item.steps, item.offset)
                for item in seen
                if isinstance(item, LiveText)
            ]
            assert said == [
                ("thinking.delta", "So: ", 0, 0),
                ("thinking.delta", "[redacted].", 0, 4),
                ("thinking.delta", "More", 1, 0),
                ("text.delta", "Yeah", 1, 0),
            ]
            (stored,) = [item for item in seen if isinstance(item, Event)]
            assert stored.data["text"] == "So: [redacted]."

    asyncio.run(scene())


def test_a_secret_across_pieces_of_text_reaches_no_follower_and_one_in_a_job_no_store(tmp_path: Path) -> None:
    secret = "sk-canary-41Xw9TtR9bLm6"

    async def scene() -> None:
        async with store_with_job(tmp_path) as store:
            feed = EventFeed()
            recorder = EventLog(store, feed, Redactor([secret]))
            bodies: Sequence[EventBody | TextDelta] = (
                *(TextDelta("m1", piece) for piece in ("Look: ", secret[:5], secret[5:], "! And s")),
                TextDelta("m2", secret[:7]),
                Message("assistant", f"It is {secret}"),
                TextDelta("m3", secret[7:]),
            )
            seen = await follow_run(recorder, feed, bodies)
            said = [(item.body.message_id, item.body.text) for item in seen if isinstance(item, LiveText)]
            assert said == [
                ("m1", "Look: "),
                ("m1", "[redacted]! And s"),
                ("m2", secret[:7]),
                *[("m3", text) for text in _whole(said, "m3")],
            ]
            assert "".join(_whole(said, "m3")) == secret[7:]
            notice, verdict = (
                JobWarning(WarningCode.COMPACTED, f"a {secret}"),
                Outcome(OutcomeType.AGENT_ERROR, f"b {secret}"),
            )
            await recorder.update_job(
                JOB.id,
                frozenset(State),
                lambda job: replace(
                    job,
                    warnings=(notice,),
                    outcome=verdict,
                    error=ErrorInfo("agent_error", f"c {secret}", retryable=True),
                    answer=f"d {secret}",
                    structured_output={secret: [secret]},
                ),
                [EventDraft(0, NOW, WarningEvent(WarningCode.COMPACTED, f"e {secret}"))],
            )
            job = await store.get(JOB.id)
            assert job is not None
            assert job.structured_output == {"[redacted]": ["[redacted]"]}
            assert secret not in repr(job)
            assert secret not in repr(await store.list_events(JOB.id))

    asyncio.run(scene())
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() not in kept
    assert b"d [redacted]" in kept


def test_a_secret_that_was_cut_at_its_first_bytes_still_makes_the_whole_message(tmp_path: Path) -> None:
    """Live text tells what it takes back, so that a stream with numbered pieces is the same live and stored."""
    secret, message_id = "sk-canary-41Xw9TtR9bLm6", "m1"

    async def scene() -> None:
        store = await open_store(f"sqlite:///{tmp_path / 'd.db'}")
        try:
            await store.add(JOB, [EventDraft(0, NOW, StateChanged(None, "queued"))])
            feed = EventFeed()
            recorder = EventLog(store, feed, Redactor([secret]))
            text = f"It is {secret}{secret}, and then {secret}. That is all that there is to say of it."
            whole = text.replace(secret, "[redacted]")
            early = set()
            for step in range(1, len(text)):
                live: list[LiveText] = []
                journal = RunEventWriter(recorder, JOB.id, 1, lambda: NOW)
                with feed.subscribe(JOB.id) as follower:
                    for at in range(0, len(text), step):
                        await journal.emit(TextDelta(message_id, text[at : at + step]))
                        if step % 3:  # else the pieces that are not the first go together
                            journal._live_text.flush()  # in place of waiting
                    await journal.close()
                    live = [item for item in await follower.receive() if isinstance(item, LiveText)]
                assembler, splitter = TextAssembler(), DeltaSplitter()
                sent, deltas = "", []
                for item in live:
                    sent += assembler.feed_live(item)
                    deltas += splitter.feed_live(item.body.text, item.taken_back)
                stored = Event(9, JOB.id, 1, NOW, "message", {"role": "assistant", "text": whole})
                assert assembler.feed(stored) == ("", True), step
                assert deltas == split_into_deltas(whole)[: len(deltas)]
                assert splitter.text == whole
                assert secret[:3] not in sent
                early.add(sent)
            assert whole in early
            assert len(early) > 2  # the first bytes of a secret have gone out at some steps
        finally:
            await store.close()

    asyncio.run(scene())


def test_a_crowd_of_followers_gets_the_items_of_a_moment_together_and_in_order() -> None:
    async def scene() -> None:
        feed, others = EventFeed(), EventFeed()
        items: list[FeedItem] = [LiveText(JOB.id, 1, NOW, TextDelta("m", "1")), event(1), event(2)]
        written: list[Sequence[FeedItem]] = []
        all_have_them = asyncio.Event()

        def write(items: Sequence[FeedItem]) -> bool:
            written.append(items)
            if len(written) == CROWD:
                all_have_them.set()
            return True

        with ExitStack() as stack:
            crowd = [stack.enter_context(feed.subscribe(JOB.id, write)) for _ in range(CROWD)]
            one = stack.enter_context(others.subscribe(JOB.id, write))
            async with asyncio.timeout(20), asyncio.TaskGroup() as group:
                receiving = [group.create_task(each.receive()) for each in (*crowd, one)]
                await asyncio.sleep(0)
                others.publish(JOB.id, items[:1])
                assert written.pop() == items[:1]  # one follower waits for nothing
                for item in items:
                    feed.publish(JOB.id, [item])
                assert written == []
                await all_have_them.wait()
                assert written == [items] * CROWD
                assert len({id(each) for each in written}) == 1  # it is rendered once
                feed.publish(JOB.id, [event(3)])
                feed.close()  # what is held is in the store
                others.close()
                assert [await each for each in receiving] == [[]] * (CROWD + 1)

    asyncio.run(scene())


def type_of(item: Event | LiveText | LiveProgress) -> str:
    return item.type if isinstance(item, Event) else item.body.type


class _CountingRedactor(Redactor):
    """Notes all that it searches."""

    def __init__(self, secret: str) -> None:
        super().__init__([secret])
        self.searched: list[bytes] = []

    def spans(self, data: bytes, *, text_only: bool = False) -> Spans:
        self.searched.append(data)
        return super().spans(data, text_only=text_only)

    def search(self, data: bytes, *, text_only: bool = False, early: bool = False) -> tuple[Spans, int]:
        self.searched.append(data)
        return super().search(data, text_only=text_only, early=early)


def test_a_text_of_an_agent_is_searched_for_secrets_once_however_often_its_job_changes(
    tmp_path: Path,
) -> None:
    redactor = _CountingRedactor("sk-ant-canary-41Xw9")

    async def scene() -> None:
        async with store_with_job(tmp_path) as store:
            recorder = EventLog(store, EventFeed(), redactor)
            await recorder.append(JOB.id, [EventDraft(1, NOW, Message("assistant", "the message"))])
            error = ErrorInfo("agent_error", "the error", retryable=True)
            warnings = (JobWarning(WarningCode.COMPACTED, "the warning"),)
            answered = partial(
                replace, answer="the answer", structured_output=["the value"], error=error, warnings=warnings
            )
            for update in (
                answered,
                partial(_moved, state=State.RUNNING),
                partial(_moved, state=State.FAILED),
            ):
                await recorder.update_job(JOB.id, frozenset(State), update)

    asyncio.run(scene())
    for text in (b"the message", b"the answer", b"the value", b"the error", b"the warning"):
        assert redactor.searched.count(text) == 1, text


def _whole(said: list[tuple[str, str]], message_id: str) -> list[str]:
    return [text for each, text in said if each == message_id]


def _moved(job: Job, state: State) -> Job:
    return replace(job, state=state, finished_at=NOW)


def _control(store: SqlStore, feed: EventFeed) -> Control:
    return Control(
        store=store,
        queue=LocalQueue(store, capacity=1, max_queued=1),
        checkouts=GitCheckouts(Path("/nonexistent"), agent_files=ClaudeFiles(), redactor=NO_REDACTION),
        feed=feed,
        ledger=store,
        catalog=Catalog(),
        clock=lambda: NOW,
    )


@in_loop
async def test_a_pulse_wakes_all_followers_together_with_all_that_has_come() -> None:
    pulse, feed, woken = Pulse(0.02), EventFeed(), list[tuple[str, Sequence[object]]]()

    async def follow(job_id: str) -> None:
        with feed.subscribe(job_id, pulse=pulse) as follower:
            subscribed.release()
            while not follower.closed:
                woken.append((job_id, await follower.receive()))
                received.release()

    subscribed, received = asyncio.Semaphore(0), asyncio.Semaphore(0)
    async with asyncio.TaskGroup() as group:
        for job_id in ("a", "b"):
            group.create_task(follow(job_id))
            await subscribed.acquire()
        for seq in (1, 2):
            for job_id in ("a", "b"):
                feed.publish(job_id, [event(seq)])
            await asyncio.sleep(0)  # a follower without a pulse would have them now
        assert woken == []
        async with asyncio.timeout(10):
            await received.acquire()
            await received.acquire()
        assert woken == [("a", [event(1), event(2)]), ("b", [event(1), event(2)])]
        feed.publish("a", [event(3)])
        feed.close()  # what came before the end is not lost, and the end does not wait
        await asyncio.sleep(0)
    assert woken[2:] == [("a", [event(3)]), ("b", [])]
