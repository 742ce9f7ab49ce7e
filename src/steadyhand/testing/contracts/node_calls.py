"""Tests of every adapter for calls between nodes."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from steadyhand.errors import Conflict, NodeGone, NotFound, RetryLater, SteadyhandError
from steadyhand.ports import CallBody, NodeCalls
from steadyhand.testing.contracts.samples import async_test, expect_error

SECONDS = 30.0
"""The time of a call that is answered; a busy machine is slow."""


class NodeCallsContract:
    """Tests of two nodes, or of one that calls itself, which `open` opens: the one that calls, and the one called."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[tuple[NodeCalls, NodeCalls]]:
        """Open the nodes of the test."""
        raise NotImplementedError
        yield

    @async_test
    async def test_an_answer_is_that_of_the_handler_whatever_characters_are_in_it(self) -> None:
        async def echo(body: CallBody) -> CallBody:
            return {"again": body["text"], "numbers": body["numbers"]}

        text = "a\x00b \ud800 \udfff \ue000 \u2028 \U0001f600 \\u0000 '\";--\n"
        async with self.open() as (caller, called):
            called.serve("echo", echo)
            body: CallBody = {"text": text, "numbers": [1, 2.5, None, True, {"": []}]}
            answer = await caller.call(called.node, "echo", body, SECONDS)
            assert answer == {"again": text, "numbers": body["numbers"]}

    @async_test
    async def test_an_error_of_the_handler_reaches_the_caller_as_it_is(self) -> None:
        errors = {
            "gone": NotFound("There is no such run."),
            "late": Conflict("It is about to end.", code="not_running"),
            "full": RetryLater("Too many.", code="rate_limited", retry_after=60),
        }

        async def fail(body: CallBody) -> CallBody:
            raise errors[body["name"]]

        async with self.open() as (caller, called):
            called.serve("fail", fail)
            for name, error in errors.items():
                raised = await expect_error(
                    type(error), caller.call(called.node, "fail", {"name": name}, SECONDS)
                )
                assert (raised.detail, raised.code) == (error.detail, error.code)
                assert getattr(raised, "retry_after", None) == getattr(error, "retry_after", None)

    @async_test
    async def test_a_node_that_does_not_exist_is_gone_and_has_done_nothing(self) -> None:
        async with self.open() as (caller, _):
            error = await expect_error(NodeGone, caller.call("nobody", "echo", {}, SECONDS))
            assert not error.may_be_done
            assert error.retry_after > 0

    @async_test
    async def test_a_kind_without_a_handler_is_an_error(self) -> None:
        async with self.open() as (caller, called):
            error = await expect_error(SteadyhandError, caller.call(called.node, "unheard", {}, SECONDS))
            assert "'unheard'" in error.detail

    @async_test
    async def test_a_call_that_is_not_answered_in_time_may_be_done(self) -> None:
        begun = asyncio.Event()

        async def begin(_: CallBody) -> CallBody:
            begun.set()
            await asyncio.Event().wait()
            return {}

        async with self.open() as (caller, called), asyncio.TaskGroup() as group:
            called.serve("begin", begin)
            calling = group.create_task(
                expect_error(NodeGone, caller.call(called.node, "begin", {}, timeout_seconds=5))
            )
            await begun.wait()
            assert (await calling).may_be_done

    @async_test
    async def test_of_many_calls_at_once_each_is_handled_once_and_has_its_own_answer(self) -> None:
        handled: Counter[int] = Counter()

        async def double(body: CallBody) -> CallBody:
            handled[body["number"]] += 1
            await asyncio.sleep(0)
            return {"double": 2 * body["number"]}

        async with self.open() as (caller, called):
            called.serve("double", double)
            calls = [caller.call(called.node, "double", {"number": number}, SECONDS) for number in range(60)]
            answers = await asyncio.gather(*calls)
            assert [answer["double"] for answer in answers] == [2 * number for number in range(60)]
            assert handled == Counter(range(60))
