"""What an agent may make the library read, and what it gets in answer."""

import asyncio
import json
from typing import Any

import pytest
from tests.async_tests import in_loop

from steadyhand.runner.acp.acp_transport import MAX_OPEN_REQUESTS, AcpTransport, answer_of

PERMISSION: dict[str, Any] = {"method": "session/request_permission", "params": {}}


class Wire:
    """A transport whose messages to the agent are kept."""

    def __init__(self, answered: tuple[str, ...] = ()) -> None:
        self.written: list[dict[str, Any]] = []
        self.replied: list[str] = []
        self.prompts = 0
        self._has_written = asyncio.Event()
        self.transport = AcpTransport(self._write, self.replied.append, self._prompted, answered=answered)

    async def _write(self, data: bytes) -> bool:
        self.written.append(json.loads(data))
        self._has_written.set()
        return True

    def _prompted(self) -> None:
        self.prompts += 1

    async def received(self) -> list[dict[str, Any]]:
        """What the library would read now."""
        await self.transport.close()
        messages = []
        async with asyncio.timeout(5):
            while (message := await self.transport.receive()) is not None:
                messages.append(message)
        return messages

    async def refusals(self, count: int) -> list[dict[str, Any]]:
        """What has been written once it is so many messages."""
        sending = asyncio.create_task(self.transport.send_refusals())
        async with asyncio.timeout(5):
            while len(self.written) < count:
                self._has_written.clear()
                await self._has_written.wait()
        sending.cancel()
        return self.written


@in_loop
async def test_an_answer_reaches_the_library_once_and_only_to_a_request_that_was_made() -> None:
    wire = Wire()
    await wire.transport.send({"id": 0, "method": "initialize"})
    await wire.transport.send({"id": 1, "method": "session/prompt"})
    message_ids: list[Any] = [1, 1, 7, None, "1", [], {}]
    for message_id in message_ids:
        wire.transport.deliver({"id": message_id, "result": {"n": 1}})
    assert await wire.transport.receive() == {"jsonrpc": "2.0", "id": 1, "result": {"n": 1}}
    assert await wire.received() == []
    assert (wire.transport.newest_request, wire.prompts) == (1, 1)


@pytest.mark.parametrize("method", ["fs/read_text_file", "terminal/create", "session/update", "craft/drain"])
@in_loop
async def test_other_requests_than_for_permission_are_refused(method: str) -> None:
    wire = Wire()
    wire.transport.deliver({"id": "a", "method": method, "params": {}})
    [refusal] = await wire.refusals(1)
    assert (refusal["id"], refusal["error"]["code"]) == ("a", -32601)
    assert await wire.received() == []


@in_loop
async def test_too_many_open_requests_are_refused_and_a_reply_makes_room() -> None:
    wire = Wire()
    for number in range(MAX_OPEN_REQUESTS + 3):
        wire.transport.deliver({"id": number, **PERMISSION})
    wire.transport.deliver({"id": 0, **PERMISSION})  # it is open already
    assert [each["id"] for each in await wire.refusals(4)] == [32, 33, 34, 0]
    await wire.transport.send({"id": 0, "result": {}})
    wire.transport.deliver({"id": 99, **PERMISSION})
    received = [await wire.transport.receive() for _ in range(MAX_OPEN_REQUESTS + 1)]
    assert received[-1] == {"id": 99, **PERMISSION}
    assert wire.replied == ["0"]


@in_loop
async def test_a_flood_of_requests_is_not_kept_without_a_bound() -> None:
    wire = Wire()
    for number in range(10_000):
        wire.transport.deliver({"id": number, "method": "terminal/create"})
    assert len(await wire.refusals(MAX_OPEN_REQUESTS)) == MAX_OPEN_REQUESTS
    assert wire.transport.refusals_waiting == 0


@in_loop
async def test_a_request_that_an_earlier_service_has_answered_is_not_answered_again() -> None:
    wire = Wire(answered=('"a"',))
    wire.transport.deliver({"id": "a", **PERMISSION})
    wire.transport.deliver({"id": "b", **PERMISSION})
    assert await wire.transport.receive() == {"id": "b", **PERMISSION}
    assert wire.transport.refusals_waiting == 0


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ({"code": -32000, "message": "Sign in", "data": {"details": "no key"}}, "Sign in: no key"),
        ({"code": True, "message": 5}, "The agent names no reason."),
        ("broken", "The agent names no reason."),
        ({"code": 1, "message": "x" * 5000}, "x" * 2000),
    ],
)
def test_an_error_of_any_shape_has_a_code_and_a_bounded_message(error: Any, text: str) -> None:
    answer = answer_of({"id": 3, "error": error})
    assert answer["id"] == 3
    assert answer["error"]["message"] == text
    assert type(answer["error"]["code"]) is int
