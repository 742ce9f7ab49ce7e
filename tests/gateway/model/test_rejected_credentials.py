"""A credential that the model's service rejects: read again, tried once more, then it rests until it is good."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs
from tests.gateway.gateway_harness import (
    GatewayHarness,
    SkippingClock,
    make_checkout,
    make_run_context,
    open_gateway,
)

from steadyhand.agents import Agent
from steadyhand.gateway import Credential, ModelGateway, slot_dir
from steadyhand.ports import RunAccess
from steadyhand.testing.contracts.samples import NOON
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import PLAIN_HTTP

ASK: dict[str, Any] = {
    "model": "claude-haiku-4-5",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "hello"}],
}
GOOD, BAD = "sk-good-credential", "sk-bad-credential"
CLAUDE = Agent("claude")


class World:
    """A model's service that accepts `GOOD` alone, and a gateway with the credential of a file."""

    def __init__(self, model: ScriptedModel, way: GatewayHarness, clock: SkippingClock, file: Path) -> None:
        assert way.gateway is not None
        self.model, self.way, self.clock, self.file = model, way, clock, file
        self.gateway: ModelGateway = way.gateway
        self.changes: list[str] = []
        self.gateway.on_credential_change(lambda: self.changes.append("changed"))

    async def ask(self, client: httpx2.AsyncClient) -> int:
        answer = await client.post("/v1/messages", json=ASK)
        if answer.status_code == 401:
            assert answer.headers["x-should-retry"] == "false"
            assert answer.json()["error"]["type"] == "authentication_error"
            assert BAD not in answer.text
        return answer.status_code

    @property
    def rest(self) -> float:
        """The seconds from now to the end of the credential's rest."""
        until = self.gateway.credential_rejected_until(CLAUDE)
        assert until is not None
        return (until - self.clock()).total_seconds()

    async def until_changed(self) -> None:
        async with asyncio.timeout(10):
            while not self.changes:  # noqa: ASYNC110  # the watch of files is another task
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def other_run(self, root: Path) -> AsyncIterator[tuple[RunAccess, httpx2.AsyncClient]]:
        transport = httpx2.AsyncHTTPTransport(uds=str(slot_dir(root, 1) / "model.sock"), verify=PLAIN_HTTP)
        work = make_run_context(make_checkout(root, 1))
        async with (
            self.gateway.open_run(work, self.way.emit) as access,
            httpx2.AsyncClient(transport=transport, base_url="http://model.invalid", timeout=10) as client,
        ):
            yield access, client


@asynccontextmanager
async def world_at(root: Path, secret: str = BAD) -> AsyncIterator[tuple[World, httpx2.AsyncClient]]:
    file, clock = root / "secret", SkippingClock()
    file.write_text(secret + "\n")
    with ScriptedModel() as model:
        model.valid_secrets = frozenset({GOOD})
        credential = Credential("api_key", secret, file=file)
        async with (
            open_gateway(root, model.url, credential=credential, clock=clock) as way,
            way.client() as client,
        ):
            yield World(model, way, clock, file), client


def test_a_secret_that_was_renewed_is_read_again_and_the_agent_hears_of_no_401(world_dir: Path) -> None:
    async def main() -> None:
        async with world_at(world_dir, GOOD) as (world, client):
            assert await world.ask(client) == 200
            world.model.valid_secrets = frozenset({"sk-next-credential"})
            # As long, in the same file and of the same time: nothing but the content is new.
            before = world.file.stat()
            world.file.write_text("sk-next-credential\n")
            os.utime(world.file, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert world.file.stat().st_size == before.st_size
            assert await world.ask(client) == 200
            assert [request.headers["x-api-key"] for request in world.model.requests] == [
                GOOD,
                GOOD,
                "sk-next-credential",
            ]
            assert world.gateway.rejected_providers() == []
            assert world.changes == []

    asyncio.run(main())


def test_a_rejected_credential_is_tried_twice_and_then_no_run_calls_until_it_has_rested(
    world_dir: Path,
) -> None:
    async def main() -> None:
        with capture_logs() as logs:
            async with world_at(world_dir) as (world, client), world.other_run(world_dir) as (other, second):
                assert [await world.ask(client) for _ in range(2)] == [401] * 2
                assert world.model.calls == 2
                # The run that found out ends; the others wait.
                assert world.way.open_access.credential_rejected_until is None
                assert [await world.ask(second) for _ in range(3)] == [401] * 3
                assert world.model.calls == 2
                assert other.credential_rejected_until == NOON + timedelta(seconds=30)
                assert world.gateway.rejected_providers() == ["default"]
                assert not world.gateway.may_start(CLAUDE, [])
                usage = await other.final_usage()
                assert (usage.calls, usage.micros) == (0, 0)
                assert (await world.way.open_access.final_usage()).micros == 0
        lines = [line for line in logs if line["event"].startswith("credential.")]
        assert [(line["event"], line["log_level"]) for line in lines] == [("credential.rejected", "error")]
        assert "secret" in lines[0]["remedy"]
        assert BAD not in str(logs)

    asyncio.run(main())


def test_the_rest_grows_and_one_run_at_a_time_tries_the_credential(world_dir: Path) -> None:
    async def main() -> None:
        async with world_at(world_dir) as (world, client):
            assert await world.ask(client) == 401
            rests = []
            for _ in range(9):
                rests.append(world.rest)
                calls = world.model.calls
                world.clock.advance(timedelta(seconds=world.rest - 1))
                assert await world.ask(client) == 401
                assert world.model.calls == calls
                world.clock.advance(timedelta(seconds=2))
                assert await world.ask(client) == 401
                assert world.model.calls == calls + 2
            assert rests == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
            # Its rest is over: one job at a time may start, and while one run tries it no other calls.
            world.clock.advance(timedelta(hours=2))
            assert world.gateway.may_start(CLAUDE, [])
            assert not world.gateway.may_start(CLAUDE, [CLAUDE])

    asyncio.run(main())


def test_while_one_run_tries_the_credential_another_waits_and_a_good_answer_lets_all_go_on(
    world_dir: Path,
) -> None:
    async def main() -> None:
        async with world_at(world_dir) as (world, client):
            assert await world.ask(client) == 401
            world.clock.advance(timedelta(seconds=31))
            world.model.valid_secrets = None
            failing = {**ASK, "messages": [{"role": "user", "content": "[[scenario:server-error]]"}]}
            async with world.other_run(world_dir) as (other, second):
                # An error of the service says nothing of the credential: the run goes on trying it alone.
                assert (await client.post("/v1/messages", json=failing)).status_code == 500
                assert await world.ask(second) == 401
                assert other.credential_rejected_until == world.clock() + timedelta(seconds=30)
                world.changes.clear()
                with capture_logs() as logs:
                    assert await world.ask(client) == 200
                    assert await world.ask(second) == 200
                assert [line["event"] for line in logs] == ["credential.accepted"]
                assert world.changes == ["changed"]
                assert world.gateway.credential_rejected_until(CLAUDE) is None
                assert world.gateway.may_start(CLAUDE, [CLAUDE])

    asyncio.run(main())


def test_a_run_that_ends_without_a_call_leaves_the_credential_to_the_next(world_dir: Path) -> None:
    async def main() -> None:
        async with world_at(world_dir) as (world, client):
            assert await world.ask(client) == 401
            world.clock.advance(timedelta(seconds=31))
            async with world.other_run(world_dir) as (_, second):
                # A call that fails at the service keeps the credential with this run, until the run ends.
                world.model.valid_secrets = None
                failing = {**ASK, "messages": [{"role": "user", "content": "[[scenario:server-error]]"}]}
                assert (await second.post("/v1/messages", json=failing)).status_code == 500
                assert await world.ask(client) == 401
            assert await world.ask(client) == 200

    asyncio.run(main())


def test_a_change_of_the_file_ends_the_rest_at_once(world_dir: Path) -> None:
    async def main() -> None:
        async with world_at(world_dir) as (world, client):
            assert await world.ask(client) == 401
            world.changes.clear()
            world.file.write_text(GOOD + "\n")
            await world.until_changed()
            assert world.gateway.rejected_providers() == []
            assert world.gateway.may_start(CLAUDE, [CLAUDE])
            assert await world.ask(client) == 200

    asyncio.run(main())


def test_a_403_ends_its_run_alone(world_dir: Path) -> None:
    async def main() -> None:
        async with world_at(world_dir, GOOD) as (world, client):
            forbidden = {**ASK, "messages": [{"role": "user", "content": "[[scenario:forbidden]]"}]}
            answer = await client.post("/v1/messages", json=forbidden)
            assert answer.status_code == 403
            assert world.model.calls == 1
            assert world.gateway.rejected_providers() == []
            assert await world.ask(client) == 200

    asyncio.run(main())


@pytest.mark.parametrize("size", [5 << 20])
def test_a_request_that_is_too_large_to_repeat_is_repeated_by_the_agent_if_the_secret_is_new(
    world_dir: Path, size: int
) -> None:
    async def main() -> None:
        async with world_at(world_dir, GOOD) as (world, client):
            assert await world.ask(client) == 200
            world.model.valid_secrets = frozenset({"sk-next-credential"})
            large = {**ASK, "messages": [{"role": "user", "content": "x" * size}]}
            content = httpx2.Request("POST", "http://x", json=large).content

            async def replaced() -> AsyncIterator[bytes]:
                """Send a body during whose way the secret is replaced."""
                yield content[: size // 2]
                world.file.write_text("sk-next-credential\n")
                yield content[size // 2 :]

            headers = {"content-type": "application/json", "content-length": str(len(content))}
            answer = await client.post("/v1/messages", content=replaced(), headers=headers)
            assert (answer.status_code, answer.headers.get("x-should-retry")) == (401, None)
            assert (await client.post("/v1/messages", json=large)).status_code == 200
            world.model.valid_secrets = frozenset()
            answer = await client.post("/v1/messages", json=large)
            assert (answer.status_code, answer.headers.get("x-should-retry")) == (401, "false")

    asyncio.run(main())
