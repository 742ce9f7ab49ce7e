"""The way to the model at level `none`: a token for each run, on loopback, and the key in no agent."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.gateway.gateway_harness import (
    CANARY,
    FLAT_PRICES,
    KEY,
    TIMEOUT_SECONDS,
    GatewayHarness,
    make_checkout,
    make_run_context,
    ok_response,
    serve_host,
)

from steadyhand.agents import Agent
from steadyhand.gateway import BillingDeps, Credential, ModelGateway, Provider, job_limits
from steadyhand.ports import ModelApi, RunAccess, RunContext
from steadyhand.runner.claude.environment import model_environment
from steadyhand.testing.cli import SYSTEM_PATH
from steadyhand.testing.memory_ledger import MemoryLedger
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import PLAIN_HTTP

ASK = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
AGENT = 64001


@asynccontextmanager
async def serving(root: Path, *providers: Provider) -> AsyncIterator[tuple[ModelGateway, GatewayHarness]]:
    way = GatewayHarness(Path())
    gateway = ModelGateway(
        root,
        slots=2,
        sandbox_socket=None,
        billing=BillingDeps(way.ledger, FLAT_PRICES, job_limits),
        providers=providers,
    )
    async with gateway.serving():
        yield gateway, way


async def ask(attendance: RunAccess, **headers: str) -> httpx2.Response:
    """Ask as the agent of a run would; `headers` instead of its own token when there are any."""
    sent = headers or {"x-api-key": token_of(attendance)}
    async with httpx2.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False, verify=PLAIN_HTTP) as client:
        return await client.post(f"{attendance.model_access.base_url}/v1/messages", json=ASK, headers=sent)


def token_of(attendance: RunAccess) -> str:
    token = attendance.model_access.api_key
    assert token is not None
    return token


def test_a_runs_token_opens_the_way_for_as_long_as_the_run(world_dir: Path) -> None:
    async def main() -> None:
        with ScriptedModel() as model:
            async with serving(world_dir, Provider(base_url=model.url, credential=KEY)) as (gateway, way):
                async with gateway.open_run(
                    make_run_context(make_checkout(world_dir), id="a" * 12), way.emit
                ) as one:
                    assert one.on_listening is None
                    assert CANARY not in str(model_environment(one.model_access))
                    assert (await ask(one)).status_code == 200
                    token = token_of(one)
                    assert (await ask(one, authorization=f"Bearer {token}")).status_code == 200
                    async with gateway.open_run(
                        make_run_context(make_checkout(world_dir, 1), id="b" * 12), way.emit
                    ) as two:
                        assert token_of(two) != token
                        assert (await ask(two)).status_code == 200
                        assert (await two.final_usage()).calls == 1
                    assert (await one.final_usage()).calls == 2
                refused = await ask(one)
                assert refused.status_code == 401
                assert refused.json()["error"]["type"] == "authentication_error"
            assert [call.headers["x-api-key"] for call in model.requests] == [CANARY] * 3
            assert [call.job_id for call in way.ledger.settled_calls] == ["a" * 12, "a" * 12, "b" * 12]

    asyncio.run(main())


@pytest.mark.parametrize(
    "headers",
    [
        {"x-none": "x"},
        {"x-api-key": ""},
        {"x-api-key": "sk-ant-run-"},
        {"authorization": "Bearer x"},
        {"x-steadyhand-run": "sk-ant-run-0123456789012345678901234567890"},
    ],
)
def test_nobody_else_gets_through(world_dir: Path, headers: dict[str, str]) -> None:
    async def main() -> None:
        async with (
            serve_host() as upstream,
            serving(world_dir, Provider(base_url=upstream.url, credential=KEY)) as (gateway, way),
            gateway.open_run(make_run_context(make_checkout(world_dir)), way.emit) as attendance,
        ):
            token = token_of(attendance)
            cut = {name: value.replace("sk-ant-run-", token[:24]) for name, value in headers.items()}
            for sent in (headers, cut):
                assert (await ask(attendance, **sent)).status_code == 401
            assert upstream.connections == 0
            assert way.ledger.calls == {}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("kind", "path", "headers"),
    [
        ("openai", "/responses", {"authorization": "Bearer {}"}),
        ("openai", "/chat/completions", {"api-key": "{}"}),
        ("gemini", "/v1beta/models/gemini-x:generateContent", {"x-goog-api-key": "{}"}),
    ],
)
def test_agents_of_other_apis_send_the_token_in_their_headers(
    world_dir: Path, kind: ModelApi, path: str, headers: dict[str, str]
) -> None:
    async def main() -> None:
        async with (
            serve_host(ok_response(b"{}")) as upstream,
            serving(world_dir, Provider("default", kind, upstream.url, KEY)) as (gateway, way),
            gateway.open_run(make_run_context(make_checkout(world_dir)), way.emit) as attendance,
            httpx2.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False, verify=PLAIN_HTTP) as client,
        ):
            url = f"{attendance.model_access.base_url}{path}"
            for token, status in ((token_of(attendance), 200), ("another", 401)):
                sent = {name: value.format(token) for name, value in headers.items()}
                answer = await client.post(url, json={"model": "m"}, headers=sent)
                assert answer.status_code == status
            assert ("code" in answer.json()["error"], "type" in answer.json()) == (True, False)
            assert CANARY.encode() in upstream.received
            assert token_of(attendance).encode() not in upstream.received

    asyncio.run(main())


def test_other_paths_are_refused_and_told_to_the_run_that_asked(world_dir: Path) -> None:
    async def main() -> None:
        async with (
            serve_host() as upstream,
            serving(world_dir, Provider(base_url=upstream.url, credential=KEY)) as (gateway, way),
            gateway.open_run(make_run_context(make_checkout(world_dir)), way.emit) as attendance,
            httpx2.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False, verify=PLAIN_HTTP) as client,
        ):
            answer = await client.post(
                f"{attendance.model_access.base_url}/v1/files", headers={"x-api-key": token_of(attendance)}
            )
            assert answer.status_code == 403
            assert len(way.warnings("gateway_refused")) == 1
            assert upstream.connections == 0

    asyncio.run(main())


def test_what_is_under_way_ends_with_the_run(world_dir: Path) -> None:
    async def main() -> None:
        async with (
            serve_host() as upstream,
            serving(world_dir, Provider(base_url=upstream.url, credential=KEY)) as (gateway, way),
        ):
            async with gateway.open_run(make_run_context(make_checkout(world_dir)), way.emit) as attendance:
                going = asyncio.ensure_future(ask(attendance))
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    while not upstream.received:  # noqa: ASYNC110  # what is waited for is another's doing
                        await asyncio.sleep(0.01)
            with pytest.raises(httpx2.TransportError):
                await going
            await asyncio.wait_for(upstream.disconnected.wait(), TIMEOUT_SECONDS)
            assert [call.complete for call in way.ledger.settled_calls] == [False]

    asyncio.run(main())


def test_the_ledger_has_it_though_nobody_waited(world_dir: Path) -> None:
    async def main() -> MemoryLedger:
        with ScriptedModel() as model:
            async with (
                serving(world_dir, Provider(base_url=model.url)) as (gateway, way),
                gateway.open_run(make_run_context(make_checkout(world_dir)), way.emit) as attendance,
            ):
                await ask(attendance)
            return way.ledger

    assert len(asyncio.run(main()).settled_calls) == 1


# --- other providers, with the real CLI ----------------------------------------------------------


def run_cli(
    cli: Path, root: Path, told: Mapping[str, str], prompt: str = "hello"
) -> tuple[int, dict[str, Any]]:
    home = root / "home"
    home.mkdir(exist_ok=True)
    root_user = os.geteuid() == 0
    if root_user:
        os.chown(home, AGENT, AGENT)
    done = subprocess.run(
        [cli, "-p", "--output-format", "json", "--dangerously-skip-permissions"],
        input=prompt.encode(),
        cwd=home,
        env={
            "HOME": str(home),
            "PATH": SYSTEM_PATH,
            "LANG": "C.UTF-8",
            "CLAUDE_CONFIG_DIR": str(home / ".claude"),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_TELEMETRY": "1",
            **told,
        },
        user=AGENT if root_user else None,
        group=AGENT if root_user else None,
        extra_groups=[] if root_user else None,
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "name",
    [
        "x-litellm-api-key",
        pytest.param("Authorization", marks=pytest.mark.long),
        pytest.param(None, marks=pytest.mark.long),
        "oauth",
    ],
)
def test_the_real_cli_by_loopback_holds_a_token_of_its_run_and_the_model_gets_the_key(
    world_dir: Path, real_cli: Path, name: str | None
) -> None:
    credential = Credential("oauth", CANARY) if name == "oauth" else Credential("api_key", CANARY, name)
    header = {"oauth": "authorization", None: "x-api-key"}.get(name, str(name).lower())
    expected = f"Bearer {CANARY}" if header == "authorization" else CANARY

    async def main() -> None:
        with ScriptedModel() as model:
            async with (
                serving(world_dir, Provider("house", base_url=model.url, credential=credential)) as (
                    gateway,
                    way,
                ),
                gateway.open_run(
                    RunContext(
                        make_run_context(make_checkout(world_dir)).job,
                        Agent("a", provider="house"),
                        make_checkout(world_dir),
                    ),
                    way.emit,
                ) as attendance,
            ):
                granted = model_environment(attendance.model_access)
                assert CANARY not in str(granted)
                code, result = await asyncio.to_thread(run_cli, real_cli, world_dir, granted)
                assert (code, result["is_error"]) == (0, False), result
                spent = await attendance.final_usage()
            calls = [*model.requests, *model.side_requests, *model.other_requests]
            assert len(model.requests) == 1
            assert {call.headers.get(header) for call in calls} == {expected}
            token = next(v for n, v in granted.items() if n != "ANTHROPIC_BASE_URL")
            assert token not in str([call.headers for call in calls])
            assert spent.tokens.output == model.all_totals["output_tokens"] > 0
            assert {call.provider for call in way.ledger.settled_calls} == {"house"}

    asyncio.run(main())
