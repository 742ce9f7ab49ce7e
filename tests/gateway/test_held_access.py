"""The access of a process that waits for jobs: nothing between its runs, and each call is billed to its run."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import Mock

import httpx2
import pytest
from tests.async_tests import in_loop
from tests.gateway.gateway_harness import (
    FLAT_PRICES,
    KEY,
    SOCKET_INSIDE,
    GatewayHarness,
    exchange,
    make_checkout,
    make_run_context,
    ok_response,
    open_gateway,
    serve_host,
    wait_until,
)

from steadyhand.agents import Agent
from steadyhand.gateway import BillingDeps, ModelGateway, Provider, job_limits, slot_dir
from steadyhand.gateway.gateway import HeldRunAccess
from steadyhand.ports import HeldAccess, ModelAccess, ModelApi
from steadyhand.testing.memory_ledger import MemoryLedger

CALL = b'{"model":"claude-sonnet-5","stream":true,"messages":[]}'
PATH = "/v1/messages"
ANSWER = (
    b'{"type":"message","model":"claude-sonnet-5","usage":{"input_tokens":3,"output_tokens":4},"content":[]}'
)


async def _post(harness: GatewayHarness) -> httpx2.Response:
    async with harness.client() as client:
        return await client.post(PATH, content=CALL, headers={"content-type": "application/json"})


@asynccontextmanager
async def _held(root: Path, upstream: str) -> AsyncIterator[tuple[GatewayHarness, HeldAccess]]:
    """Open a gateway with an access that is held in the slot 5, beside the run that the harness opens."""
    async with open_gateway(root, upstream) as opened:
        assert opened.gateway is not None
        async with opened.gateway.hold_access(Agent("claude"), make_checkout(root, 5)) as held:
            yield GatewayHarness(slot_dir(root, 5) / "model.sock", ledger=opened.ledger), held


@in_loop
async def test_a_process_reaches_no_model_before_its_run_and_after_it(world_dir: Path) -> None:
    async with serve_host(ok_response(ANSWER)) as host, _held(world_dir, host.url) as (harness, held):
        with pytest.raises(httpx2.TransportError):
            await _post(harness)
        context = make_run_context(make_checkout(world_dir, 5))
        async with held.open_run(context, harness.emit) as access:
            assert (await _post(harness)).status_code == 200
            assert (await access.final_usage()).calls == 1
        with pytest.raises(httpx2.TransportError):
            await _post(harness)
        assert host.connections == 1
        assert [call.job_id for call in harness.ledger.calls.values()] == [context.job.id]


@in_loop
async def test_a_rehearsal_is_answered_without_a_provider_and_a_ledger(world_dir: Path) -> None:
    async with serve_host(ok_response(ANSWER)) as host, _held(world_dir, host.url) as (harness, held):
        with held.rehearsing():
            answer = await _post(harness)
            assert answer.status_code == 200
            assert b"message_stop" in answer.content
            async with harness.client() as client:
                assert (await client.get("/v1/models")).status_code == 404
        with pytest.raises(httpx2.TransportError):
            await _post(harness)
        assert host.connections == 0
        assert harness.ledger.calls == {}


@in_loop
async def test_a_call_that_outlives_its_run_is_billed_to_it_and_not_to_the_next(world_dir: Path) -> None:
    asked = asyncio.Event()

    async def never(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()

    async with serve_host(never) as host, _held(world_dir, host.url) as (harness, held):
        first, second = (
            make_run_context(make_checkout(world_dir, 5), id=name) for name in ("first", "second")
        )
        async with asyncio.TaskGroup() as group:
            async with held.open_run(first, harness.emit):
                late = group.create_task(_fails(harness))
                await asked.wait()
            async with held.open_run(second, harness.emit) as access:
                await late
                assert (await access.final_usage()).calls == 0
        assert {call.job_id for call in harness.ledger.calls.values()} == {"first"}
        assert all(call.settled for call in harness.ledger.calls.values())


async def _fails(harness: GatewayHarness) -> None:
    with pytest.raises(httpx2.TransportError):
        await _post(harness)


@in_loop
async def test_a_connection_to_a_host_from_before_the_run_is_nobodys(world_dir: Path) -> None:
    async with serve_host(b"") as host, _held(world_dir, host.url) as (harness, held):
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        held.on_listening([os.dup(listener.fileno())])
        listener.close()
        early = await asyncio.open_connection("127.0.0.1", port)
        request = b"GET http://denied.test/ HTTP/1.1\r\nhost: denied.test\r\n\r\n"
        for _ in range(2):  # the second run of a process has its way out as well
            async with held.open_run(make_run_context(make_checkout(world_dir, 5)), harness.emit):
                answer = await exchange(await asyncio.open_connection("127.0.0.1", port), request)
                assert b"403" in answer
        assert await exchange(early, request) == b""
        assert harness.refused_hosts == ["denied.test", "denied.test"]


@in_loop
async def test_without_a_sandbox_the_token_means_nothing_between_runs(world_dir: Path) -> None:
    async with serve_host(ok_response(ANSWER)) as host:
        gateway = ModelGateway(
            world_dir, slots=1, sandbox_socket=None,
            billing=BillingDeps(MemoryLedger(), FLAT_PRICES, job_limits),
            providers=[Provider(base_url=host.url, credential=KEY)],
        )  # fmt: skip
        place, harness = make_checkout(world_dir, 5), GatewayHarness(Path(SOCKET_INSIDE))
        async with gateway.serving(), gateway.hold_access(Agent("claude"), place) as held:
            access = held.model_access
            assert access.base_url is not None
            url, headers = f"{access.base_url}{PATH}", {"x-api-key": access.api_key or ""}

            async def call() -> httpx2.Response:
                async with httpx2.AsyncClient(headers=headers) as client:
                    return await client.post(url, content=CALL)

            assert (await call()).status_code == 401
            async with held.open_run(make_run_context(place), harness.emit) as opened:
                assert (await call()).status_code == 200
                assert opened.secrets == (access.api_key,)
            assert (await call()).status_code == 401
            with held.rehearsing():
                assert b"message_stop" in (await call()).content
            assert (await call()).status_code == 401
        await wait_until(lambda: host.connections == 1)


@pytest.mark.parametrize(
    ("api", "can"),
    [("anthropic", True), ("vertex", True), ("bedrock", False), ("openai", False), ("gemini", False)],
)
def test_the_gateway_rehearses_in_the_format_of_the_messages_api_alone(api: ModelApi, *, can: bool) -> None:
    held = HeldRunAccess(ModelAccess(api), Mock(), Mock(), Mock(), 0)
    assert held.can_rehearse == can
