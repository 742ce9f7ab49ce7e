"""Calls between nodes over Postgres: each is handled once at most, and none waits for a node that is gone."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from tests.store.call_nodes import call_nodes

from steadyhand.errors import InvalidRequest, NodeGone, RetryLater, SteadyhandError
from steadyhand.ports import MAX_CALL_BYTES, MAX_OPEN_CALLS, CallBody, LocalNodeCalls, NodeCalls
from steadyhand.store.postgres.call_table import CallTable, SentCall
from steadyhand.store.postgres.connections import parse_postgres_url
from steadyhand.testing.contracts.node_calls import SECONDS, NodeCallsContract
from steadyhand.testing.contracts.samples import async_test, expect_error
from steadyhand.testing.postgres import Postgres


class TestLocalNodeCalls(NodeCallsContract):
    @asynccontextmanager
    async def open(self) -> AsyncIterator[tuple[NodeCalls, NodeCalls]]:
        calls = LocalNodeCalls()
        yield calls, calls


def test_a_node_that_is_alone_has_no_others_whatever_a_run_says() -> None:
    calls = LocalNodeCalls("one")
    assert not calls.is_elsewhere("another")
    assert asyncio.run(calls.list_others()) == ()


class TestPostgresNodeCalls(NodeCallsContract):
    @pytest.fixture(autouse=True)
    def place(self, limits_url: str) -> None:
        self.url = limits_url

    @asynccontextmanager
    async def open(self) -> AsyncIterator[tuple[NodeCalls, NodeCalls]]:
        async with call_nodes(self.url) as nodes:
            yield await nodes.start_ready("one"), await nodes.start_ready("two")

    def rows(self) -> list[tuple[object, ...]]:
        with psycopg.connect(self.url) as connection:
            return connection.execute("SELECT kind, state FROM node_calls ORDER BY sent_at").fetchall()

    @async_test
    async def test_the_others_are_those_that_are_alive(self) -> None:
        async with call_nodes(self.url) as nodes:
            one = nodes.start("one")
            nodes.start("two")
            assert await one.list_others() == ["two"]
            assert one.is_elsewhere("two")
            assert not one.is_elsewhere("one")
            assert not one.is_elsewhere(None)

    @async_test
    async def test_a_handler_that_breaks_is_an_error_without_its_text_and_later_calls_are_answered(
        self,
    ) -> None:
        async def divide(body: CallBody) -> CallBody:
            return {"result": 1 / body["number"]}

        async with self.open() as (one, two):
            two.serve("divide", divide)
            error = await expect_error(SteadyhandError, one.call(two.node, "divide", {"number": 0}, SECONDS))
            assert "division" not in error.detail
            assert await one.call(two.node, "divide", {"number": 2}, SECONDS) == {"result": 0.5}

    @async_test
    async def test_an_answered_call_leaves_nothing_behind(self) -> None:
        async def echo(body: CallBody) -> CallBody:
            return body

        async with self.open() as (one, two):
            two.serve("echo", echo)
            await one.call(two.node, "echo", {}, SECONDS)
            async with asyncio.timeout(SECONDS):
                while await asyncio.to_thread(self.rows):  # noqa: ASYNC110  # it is removed beside the answer
                    await asyncio.sleep(0.02)

    @async_test
    async def test_a_call_that_its_node_never_took_is_withdrawn_and_not_handled_later(self) -> None:
        handled: list[CallBody] = []

        async def note(body: CallBody) -> CallBody:
            handled.append(body)
            return {}

        async with call_nodes(self.url) as nodes:
            one = await nodes.start_ready("one")
            nodes.alive.add("two")  # it looks alive, as one that hangs
            error = await expect_error(NodeGone, one.call("two", "note", {"late": True}, 1))
            assert not error.may_be_done
            two = nodes.start("two")
            two.serve("note", note)
            await one.call("two", "note", {"late": False}, SECONDS)
            assert handled == [{"late": False}]

    @async_test
    async def test_a_call_whose_time_is_over_is_not_handled(self) -> None:
        table = CallTable(parse_postgres_url(self.url))
        try:
            table.create()
            table.send(SentCall("old", "two", "one", "note", "{}", 0.0))
            table.send(SentCall("new", "two", "one", "note", "{}", 60.0))
            assert [call.id for call in table.claim("two", "t1", 10)] == ["new"]
        finally:
            table.close()

    @async_test
    async def test_calls_that_were_taken_come_again_for_the_same_token_and_for_no_other(self) -> None:
        table = CallTable(parse_postgres_url(self.url))
        try:
            table.create()
            for number in range(3):
                table.send(SentCall(str(number), "two", "one", "note", "{}", 60.0))
            assert {call.id for call in table.claim("two", "t1", 2)} == {"0", "1"}
            assert {call.id for call in table.claim("two", "t1", 2)} == {"0", "1"}
            assert [call.id for call in table.claim("two", "t2", 10)] == ["2"]
            assert table.send(SentCall("0", "two", "one", "note", "{}", 60.0)), "a repeat is harmless"
            assert table.claim("two", "t3", 10) == []
        finally:
            table.close()

    @async_test
    async def test_who_waits_for_a_node_that_dies_is_told_before_the_time_is_over(self) -> None:
        begun = asyncio.Event()

        async def begin(_: CallBody) -> CallBody:
            begun.set()
            await asyncio.Event().wait()
            return {}

        async with call_nodes(self.url) as nodes, asyncio.TaskGroup() as group:
            one, two = nodes.start("one"), nodes.start("two")
            two.serve("begin", begin)
            calling = group.create_task(expect_error(NodeGone, one.call("two", "begin", {}, 3600)))
            await begun.wait()
            nodes.alive.discard("two")
            assert (await calling).may_be_done

    @async_test
    async def test_a_node_that_stops_or_starts_again_answers_its_calls_and_handles_none_twice(self) -> None:
        begun: Counter[str] = Counter()
        both = asyncio.Event()

        async def begin(body: CallBody) -> CallBody:
            begun[body["name"]] += 1
            if len(begun) == 2:
                both.set()
            await asyncio.Event().wait()
            return {}

        async with call_nodes(self.url) as nodes, asyncio.TaskGroup() as group:
            one, two = nodes.start("one"), nodes.start("two")
            two.serve("begin", begin)
            calling = [
                group.create_task(expect_error(NodeGone, one.call("two", "begin", {"name": name}, 3600)))
                for name in ("first", "second")
            ]
            await both.wait()
            table = CallTable(parse_postgres_url(self.url))
            await nodes.stop("two")
            nodes.alive.add("two")  # nobody has noticed
            assert all(error.may_be_done for error in await asyncio.gather(*calling))
            # One that is killed answers nothing itself; the next one of its name does.
            await asyncio.to_thread(table.send, SentCall("killed", "two", "one", "begin", "{}", 3600))
            await asyncio.to_thread(table.claim, "two", "token", 1)
            two = nodes.start("two")
            two.serve("begin", begin)
            async with asyncio.timeout(SECONDS):
                while await asyncio.to_thread(table.state, "killed") == "taken":  # noqa: ASYNC110  # as above
                    await asyncio.sleep(0.02)
            assert begun == {"first": 1, "second": 1}
            await asyncio.to_thread(table.close)

    @async_test
    async def test_a_call_without_any_notification_is_answered_a_moment_later(self) -> None:
        async def echo(body: CallBody) -> CallBody:
            return body

        async with call_nodes(self.url) as nodes:
            one, two = nodes.start("one", seconds=0.2), nodes.start("two", seconds=0.2)
            two.serve("echo", echo)
            for name in ("one", "two"):
                nodes.tasks[name][0].cancel()  # its listener
            assert await one.call("two", "echo", {"n": 1}, SECONDS) == {"n": 1}

    @async_test
    async def test_too_large_and_too_many_calls_are_refused(self) -> None:
        async def wait(_: CallBody) -> CallBody:
            await asyncio.Event().wait()
            return {}

        async with self.open() as (one, two):
            large = {"text": "x" * MAX_CALL_BYTES}
            error = await expect_error(InvalidRequest, one.call(two.node, "wait", large, SECONDS))
            assert error.code == "body_too_large"
            two.serve("wait", wait)
            async with asyncio.TaskGroup() as group:
                open_calls = [
                    group.create_task(one.call(two.node, "wait", {}, SECONDS)) for _ in range(MAX_OPEN_CALLS)
                ]
                await asyncio.sleep(0)
                busy = await expect_error(RetryLater, one.call(two.node, "wait", {}, SECONDS))
                assert busy.code == "node_busy"
                for task in open_calls:
                    task.cancel()

    @async_test
    async def test_a_restart_of_the_server_delays_calls_and_loses_and_repeats_none(self) -> None:
        handled: Counter[int] = Counter()

        async def note(body: CallBody) -> CallBody:
            handled[body["number"]] += 1
            await asyncio.sleep(0.05)
            return {"number": body["number"]}

        with Postgres() as server:
            async with call_nodes(server.url(server.create_database())) as nodes:
                one, two = nodes.start("one"), nodes.start("two")
                two.serve("note", note)
                await one.call("two", "note", {"number": -1}, SECONDS)
                async with asyncio.TaskGroup() as group:
                    calling = []
                    for number in range(40):
                        calling.append(
                            group.create_task(one.call("two", "note", {"number": number}, SECONDS))
                        )
                        await asyncio.sleep(0.01)
                        if number == 20:
                            await asyncio.to_thread(server.restart)
                assert [task.result()["number"] for task in calling] == list(range(40))
                assert set(handled.values()) == {1}
