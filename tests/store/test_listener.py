"""Notifications of Postgres: they are heard, and what may have been missed is looked at again."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog.testing
from psycopg import AsyncConnection
from tests.store.nodes import WAIT_SECONDS, run, until

from steadyhand.store.postgres.listener import MAX_PAYLOAD_BYTES, Listener
from steadyhand.testing.postgres import Postgres

LISTENERS = (
    "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'steadyhand listener%' AND datname = '{}'"
)
END_LISTENERS = LISTENERS.replace("SELECT pid", "SELECT count(pg_terminate_backend(pid))")


class Heard:
    """What a callback was called with, in order."""

    def __init__(self) -> None:
        self.payloads: list[str | None] = []
        self._changed = asyncio.Event()

    def __call__(self, payload: str | None) -> None:
        self.payloads.append(payload)
        self._changed.set()

    async def until(self, is_done: Callable[[list[str | None]], bool]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not is_done(self.payloads):
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def running(listener: Listener) -> AsyncIterator[Listener]:
    task = asyncio.create_task(listener.run())
    try:
        yield listener
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def notify(postgres: Postgres, url: str, channel: str, payload: str) -> None:
    postgres.execute(f"SELECT pg_notify('{channel}', '{payload}')", url.rpartition("/")[2])


def test_each_notification_is_heard_after_a_first_look_at_everything(
    postgres: Postgres, postgres_url: str
) -> None:
    async def scenario() -> None:
        one, other = Heard(), Heard()
        listener = Listener(postgres_url)
        listener.on("one", one)
        listener.on("other", other)
        async with running(listener):
            await one.until(lambda heard: heard == [None])
            for number in range(3):
                await asyncio.to_thread(notify, postgres, postgres_url, "one", f"payload {number}")
            await one.until(lambda heard: heard == [None, "payload 0", "payload 1", "payload 2"])
            assert other.payloads == [None]

    run(scenario)


def test_a_connection_that_is_cut_is_made_again_and_everything_is_looked_at(
    postgres: Postgres, postgres_url: str
) -> None:
    database = postgres_url.rpartition("/")[2]

    async def scenario() -> None:
        heard = Heard()
        listener = Listener(postgres_url)
        listener.on("one", heard)
        async with running(listener):
            await heard.until(lambda all_heard: all_heard == [None])
            assert await asyncio.to_thread(postgres.execute, END_LISTENERS.format(database)) == [(1,)]
            await heard.until(lambda all_heard: listener.connections == 2 and all_heard[-1] is None)
            await asyncio.to_thread(notify, postgres, postgres_url, "one", "after")
            await heard.until(lambda all_heard: all_heard[-1] == "after")

    run(scenario)


def test_everything_is_looked_at_again_and_again_while_nothing_can_be_heard(postgres: Postgres) -> None:
    async def scenario() -> None:
        heard = Heard()
        listener = Listener(postgres.url("there_is_none"), poll_seconds=0.05)
        listener.on("one", heard)
        with structlog.testing.capture_logs() as lines:
            async with running(listener):
                await heard.until(lambda all_heard: all_heard == [None] * 3)
        assert not listener.is_connected
        assert [line["event"] for line in lines] == ["store.not_listening"]  # not one for each try

    run(scenario)


def test_a_listener_sends_to_others_and_hears_channels_that_are_added_later(postgres_url: str) -> None:
    async def scenario() -> None:
        first, late = Heard(), Heard()
        sender, receiver = Listener(postgres_url), Listener(postgres_url)
        receiver.on("first", first)
        async with running(sender), running(receiver):
            await first.until(lambda heard: heard == [None])
            receiver.on("late", late)
            await late.until(lambda heard: heard == [None])
            await until(lambda: sender.is_connected)
            for number in range(200):
                sender.send("late", f"{number}: {'x' * 5_000}")
            await late.until(lambda heard: len(heard) == 201)
            assert [str(text).partition(":")[0] for text in late.payloads[1:]] == [str(n) for n in range(200)]
            assert first.payloads == [None]

    run(scenario)


def test_a_channel_that_is_added_while_the_connection_is_made_is_heard(postgres_url: str) -> None:
    class Late(Listener):
        async def _notice_pooler(self, connection: AsyncConnection[Any]) -> None:
            self.on("late", late)
            await super()._notice_pooler(connection)

    late = Heard()

    async def scenario() -> None:
        sender, receiver = Listener(postgres_url), Late(postgres_url)
        receiver.on("first", Heard())
        async with running(sender), running(receiver):
            await until(lambda: sender.is_connected and receiver.is_connected)
            await late.until(
                lambda heard: heard == [None, None]
            )  # at the connection, and once it is subscribed
            sender.send("late", "a word")
            await late.until(lambda heard: heard[-1] == "a word")

    run(scenario)


def test_nothing_is_sent_while_there_is_no_connection_and_no_wrong_name_or_length_is_taken(
    postgres_url: str,
) -> None:
    async def scenario() -> None:
        listener = Listener(postgres_url)
        listener.send("one", "lost")
        assert not listener._unsent
        for name in ("", "One", 'one"; DROP TABLE jobs', "a" * 64):
            with pytest.raises(ValueError, match="is no name of a channel"):
                listener.on(name, lambda _payload: None)
        with pytest.raises(ValueError, match="too long"):
            listener.send("one", "é" * (MAX_PAYLOAD_BYTES // 2 + 1))

    run(scenario)


def test_a_callback_that_fails_is_logged_and_the_others_are_called(
    postgres: Postgres, postgres_url: str
) -> None:
    def fail(_payload: str | None) -> None:
        raise RuntimeError("of a callback")

    async def scenario() -> None:
        heard = Heard()
        listener = Listener(postgres_url)
        listener.on("one", fail)
        listener.on("one", heard)
        with structlog.testing.capture_logs() as lines:
            async with running(listener):
                await heard.until(lambda all_heard: all_heard == [None])
                await asyncio.to_thread(notify, postgres, postgres_url, "one", "payload")
                await heard.until(lambda all_heard: all_heard == [None, "payload"])
        assert [line["event"] for line in lines] == ["store.notification_failed"] * 2

    run(scenario)


def test_a_listener_notices_a_pooler_and_looks_at_everything_each_second(
    pgbouncer_url: str, postgres_url: str
) -> None:
    async def scenario() -> None:
        heard, direct_heard = Heard(), Heard()
        listener, direct = Listener(pgbouncer_url, poll_seconds=0.1), Listener(postgres_url)
        listener.on("one", heard)
        direct.on("one", direct_heard)
        with structlog.testing.capture_logs() as lines:
            async with running(listener), running(direct):
                await heard.until(lambda all_heard: all_heard[:3] == [None] * 3)
                await direct_heard.until(lambda all_heard: all_heard == [None])
                assert (listener.is_pooled, direct.is_pooled) == (True, False)
        assert [line["event"] for line in lines] == ["store.listens_to_pooler"]

    run(scenario)


def test_an_idle_listener_asks_the_server_only_after_a_long_silence(
    postgres: Postgres, postgres_url: str
) -> None:
    database = postgres_url.rpartition("/")[2]
    query = LISTENERS.replace("SELECT pid", "SELECT query").format(database)

    async def scenario() -> None:
        heard = Heard()
        listener = Listener(postgres_url, check_seconds=0.2)
        listener.on("one", heard)
        async with running(listener):
            await heard.until(lambda all_heard: all_heard == [None])
            await until(lambda: postgres.execute(query) == [("SELECT 1",)])
            assert heard.payloads == [None]

    run(scenario)
