"""The events of one run: held in an outage, paced by the store, and stored with the changes of their job."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.test_event_log import JOB, NOW, event, store_with_job, type_of

from steadyhand.errors import Conflict
from steadyhand.event_log import EventFeed, EventLog
from steadyhand.events import (
    Event,
    EventDraft,
    LiveText,
    Message,
    StateChanged,
    TextDelta,
    ToolStarted,
)
from steadyhand.job import State
from steadyhand.ports import Store
from steadyhand.redact import NO_REDACTION
from steadyhand.store import open_store
from steadyhand.worker.run_event_writer import RunEventWriter


class WaitingStore:
    """A store that takes events only once `answers` is set; `outage` is what it says of itself."""

    def __init__(self, outage: str | None) -> None:
        self.outage = outage
        self.answers = asyncio.Event()
        self.texts: list[str] = []

    async def append_events(self, _job_id: str, drafts: Any, *, hold: bool, run: int) -> list[Event]:
        assert (hold, run) == (True, 1)
        await self.answers.wait()
        self.texts += [draft.body.text for draft in drafts]
        return [event(number) for number, _ in enumerate(drafts, len(self.texts))]


async def _say(journal: RunEventWriter, *texts: str) -> None:
    for text in texts:
        await journal.emit(Message("assistant", text))


@pytest.mark.parametrize(
    ("limit", "value", "held"),
    [("MAX_HELD_EVENTS", 2, ["one", "two"]), ("MAX_HELD_BYTES", 100, ["one", "two"])],
)
def test_in_an_outage_events_are_held_up_to_a_bound_and_then_left_out_and_counted(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int, held: list[str]
) -> None:
    monkeypatch.setattr(f"steadyhand.worker.run_event_writer.{limit}", value)

    async def scene() -> None:
        store, overflows = WaitingStore("the disk is full"), []
        recorder = EventLog(cast("Store", store), EventFeed(), NO_REDACTION, hold=True)
        journal = RunEventWriter(
            recorder, JOB.id, 1, lambda: NOW, on_overflow=lambda: overflows.append(journal.left_out)
        )
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(journal.run())
            await _say(journal, "one", "two", "three", "four")
            store.outage = None
            store.answers.set()
            await _say(journal, "five")
            await journal.close()
        assert store.texts == [*held, "five"]
        assert overflows == [1, 2]

    asyncio.run(scene())


def test_a_slow_store_makes_the_agent_wait_and_an_outage_ends_the_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("steadyhand.worker.run_event_writer.MAX_BACKLOG", 2)
    monkeypatch.setattr("steadyhand.worker.run_event_writer.OUTAGE_CHECK_SECONDS", 0.01)

    async def scene() -> None:
        store = WaitingStore(None)
        recorder = EventLog(cast("Store", store), EventFeed(), NO_REDACTION, hold=True)
        journal = RunEventWriter(recorder, JOB.id, 1, lambda: NOW)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(journal.run())
            await _say(journal, "one", "two")
            talking = group.create_task(_say(journal, "three"))
            await asyncio.sleep(0.05)
            assert not talking.done()
            store.outage = "the disk is full"  # it is noticed although nothing is stored
            await talking
            store.outage = None
            store.answers.set()
            await journal.close()
        assert store.texts == ["one", "two", "three"]
        assert journal.left_out == 0

    asyncio.run(scene())


def test_a_change_of_the_job_takes_the_events_before_it_into_its_own_commit(tmp_path: Path) -> None:
    async def scene() -> None:
        async with store_with_job(tmp_path) as store:
            feed, expected = EventFeed(), frozenset({State.QUEUED})
            journal = RunEventWriter(EventLog(store, feed, NO_REDACTION), JOB.id, 1, lambda: NOW)
            await _say(journal, "one", "two")
            with feed.subscribe(JOB.id) as follower:
                # Nobody runs the journal, so nothing else can store them.
                draft = EventDraft(1, NOW, Message("assistant", "three"))
                job = await journal.update_job(expected, lambda old: replace(old, answer="done"), [draft])
                assert [item.seq for item in await follower.receive() if isinstance(item, Event)] == [2, 3, 4]
            assert (job.answer, job.last_event) == ("done", 4)
            await _say(journal, "four")
            with pytest.raises(Conflict):
                await journal.update_job(frozenset({State.RUNNING}), lambda old: old, [draft])
            await journal.close()
            await journal.run()
            texts = [
                event.data["text"] for event in await store.list_events(JOB.id) if event.type == "message"
            ]
            assert texts == ["one", "two", "three", "four"]

    asyncio.run(scene())


def test_the_first_piece_of_a_message_is_published_at_once_and_later_ones_together(tmp_path: Path) -> None:
    async def scene() -> None:
        store = await open_store(f"sqlite:///{tmp_path / 'd.db'}")
        try:
            await store.add(JOB, [EventDraft(0, NOW, StateChanged(None, "queued"))])
            feed = EventFeed()
            journal = RunEventWriter(EventLog(store, feed, NO_REDACTION), JOB.id, 1, lambda: NOW)
            with feed.subscribe(JOB.id) as follower:

                async def seen() -> list[tuple[str, int] | str]:
                    return [
                        (item.body.text, item.offset) if isinstance(item, LiveText) else type_of(item)
                        for item in await follower.receive()
                    ]

                async with asyncio.timeout(20), asyncio.TaskGroup() as group:
                    group.create_task(journal.run())
                    for number in range(10):
                        await journal.emit(TextDelta("m1", str(number)))
                    assert await seen() == [("0", 0)]
                    assert await seen() == [("123456789", 1)]  # once the time is over
                    await journal.emit(TextDelta("m1", "a"))
                    await journal.emit(TextDelta("m2", "b"))
                    await journal.emit(TextDelta("m2", "c"))
                    assert await seen() == [("a", 10), ("b", 0)]
                    await journal.emit(ToolStarted("t", "Bash", {}))  # nothing overtakes the text before it
                    assert await seen() == [("c", 1)]
                    assert await seen() == ["tool.started"]
                    await journal.close()
        finally:
            await store.close()

    asyncio.run(scene())
