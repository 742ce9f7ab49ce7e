"""Ways to models that are not the maker's own address: their routes, their credentials, and the real CLI on them."""

import asyncio
import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from tests.gateway.gateway_harness import (
    CANARY,
    FLAT_PRICES,
    GatewayHarness,
    make_checkout,
    make_run_context,
    serve_host,
)
from tests.gateway.model.test_provider_rate_limits import Answers
from tests.gateway.model.test_tcp_listener import run_cli
from tests.gateway.model_responses import event_stream_frames, format_sse, typical_events

from steadyhand.agents import Agent
from steadyhand.gateway import BillingDeps, Credential, ModelGateway, Provider, job_limits, slot_dir
from steadyhand.gateway.model.http_client import HttpClient
from steadyhand.gateway.model.providers import Route
from steadyhand.ports import ModelAccess, RunContext, TokenCounts
from steadyhand.runner.claude.environment import model_environment
from steadyhand.testing.memory_ledger import MemoryLedger

BEDROCK = Provider("aws", "bedrock", region="eu-central-1")
VERTEX = Provider("gcp", "vertex", region="europe-west1", project="shop-1")
OPENAI, GEMINI = Provider("o", "openai"), Provider("g", "gemini")
PLACE = b"/v1/projects/shop-1/locations/europe-west1/publishers/anthropic/models"
AGENT = 64001
ROOT = os.geteuid() == 0


@pytest.mark.parametrize(
    ("provider", "path", "route"),
    [
        (
            BEDROCK,
            b"/model/eu.anthropic.claude-x-v1:0/invoke",
            Route("bedrock", "eu.anthropic.claude-x-v1:0"),
        ),
        (BEDROCK, b"/model/claude-x-v1%3A0/invoke-with-response-stream", Route("bedrock", "claude-x-v1:0")),
        (BEDROCK, b"/model/claude-x/count-tokens", Route("none", "claude-x")),
        (BEDROCK, b"/model/claude-x/converse", None),
        (BEDROCK, b"/model/claude-x/async-invoke", None),
        (BEDROCK, b"/model/a/b/invoke", None),
        (BEDROCK, b"/model/claude-x/invoke/", None),
        (BEDROCK, b"/inference-profiles", None),
        (BEDROCK, b"/v1/messages", None),
        (VERTEX, PLACE + b"/claude-x@20250101:streamRawPredict", Route("messages", "claude-x@20250101")),
        (VERTEX, PLACE + b"/claude-x:rawPredict", Route("messages", "claude-x")),
        (VERTEX, PLACE + b"/count-tokens:rawPredict", Route("none", "count-tokens")),
        (VERTEX, PLACE.replace(b"shop-1", b"shop-2") + b"/claude-x:rawPredict", None),
        (VERTEX, PLACE.replace(b"anthropic", b"google") + b"/gemini:rawPredict", None),
        (VERTEX, PLACE + b"/claude-x:predict", None),
        (VERTEX, PLACE + b"/../../../x:rawPredict", None),
        (Provider(), b"/model/claude-x/invoke", None),
        (Provider(), b"/v1/messages/batches", None),
        (Provider(), b"/v1/messages", Route("messages")),
        (Provider(), b"/v1/messages/count_tokens", Route("none")),
        (OPENAI, b"/v1/responses", Route("responses")),
        (OPENAI, b"/v1/chat/completions", Route("chat")),
        (OPENAI, b"/v1/responses/", None),
        (OPENAI, b"/v1/responses/compact", None),
        (OPENAI, b"/v1/messages", None),
        (GEMINI, b"/v1beta/models/gemini-x:generateContent", Route("gemini", "gemini-x")),
        (GEMINI, b"/v1beta/models/gemini-x:countTokens", Route("none", "gemini-x")),
        (GEMINI, b"/v1beta/models/gemini-x:streamGenerateContent", None),
        (GEMINI, b"/v1beta/models/a/b:generateContent", None),
        (GEMINI, b"/v1beta/tunedModels/x:generateContent", None),
        (GEMINI, b"/v1/models/gemini-x:generateContent", None),
    ],
)
def test_only_the_calls_of_models_pass(provider: Provider, path: bytes, route: Route | None) -> None:
    assert provider.route("POST", path) == route


@pytest.mark.parametrize("query", [b"alt=sse", b"", b"alt=sse&key=a", b"key=a&alt=sse", b"alt=sse&alt=json"])
def test_gemini_streams_events_alone(query: bytes) -> None:
    route = GEMINI.route("POST", b"/v1beta/models/gemini-x:streamGenerateContent", query)
    assert route == (Route("gemini", "gemini-x") if query == b"alt=sse" else None)


@pytest.mark.parametrize(
    ("base", "path"),
    [
        (None, "/v1/responses"),
        ("https://h.example/v1", "/v1/responses"),
        ("https://h.example/v1/", "/v1/responses"),
        ("https://h.example", "/v1/responses"),
        ("https://h.example/api/v1", "/api/v1/responses"),
        ("https://h.example/openai/v1", "/openai/v1/responses"),
        ("https://h.example/api/paas/v4", "/api/paas/v4/responses"),
        ("https://h.example/v1x", "/v1x/v1/responses"),
    ],
)
def test_an_address_of_openais_apis_may_end_in_its_version(base: str | None, path: str) -> None:
    provider = Provider("o", "openai", base)
    assert HttpClient(provider.url).base_path + provider.upstream_target(b"/v1/responses") == path.encode()


def test_an_agent_is_told_the_address_and_a_token_in_the_form_of_its_api() -> None:
    address, token = "http://127.0.0.1:1", "token"
    assert OPENAI.access_at(address, token) == ModelAccess("openai", f"{address}/v1", api_key=token)
    assert GEMINI.access_at(address, token, "/s") == ModelAccess(
        "gemini", address, api_key=token, socket="/s"
    )


@pytest.mark.parametrize("provider", [OPENAI, GEMINI, Provider("default", "openai")])
def test_what_to_do_about_a_credential_names_the_settings_of_the_kind(provider: Provider) -> None:
    missing = provider.missing_credential
    assert missing is not None
    assert f"set [providers.{provider.name}] api_key_file and" in missing
    assert provider.credential_remedy == (
        f"Set [providers.{provider.name}] api_key_file, and start the service again."
    )


def test_an_address_is_the_regions_where_none_is_told() -> None:
    assert BEDROCK.url == "https://bedrock-runtime.eu-central-1.amazonaws.com"
    assert VERTEX.url == "https://europe-west1-aiplatform.googleapis.com"
    assert Provider("g", "vertex", project="p").url == "https://aiplatform.googleapis.com"
    assert OPENAI.url == "https://api.openai.com"
    assert GEMINI.url == "https://generativelanguage.googleapis.com"


@pytest.mark.parametrize(
    ("credential", "name", "value"),
    [
        (Credential("api_key", CANARY), b"x-api-key", CANARY),
        (Credential("api_key", CANARY, "X-LiteLLM-API-Key"), b"x-litellm-api-key", CANARY),
        (Credential("api_key", CANARY, "Authorization"), b"authorization", f"Bearer {CANARY}"),
        (Credential("oauth", CANARY), b"authorization", f"Bearer {CANARY}"),
        (Credential("bearer", CANARY), b"authorization", f"Bearer {CANARY}"),
    ],
)
def test_the_credential_goes_by_its_header_and_nothing_of_the_agents_beside_it(
    credential: Credential, name: bytes, value: str
) -> None:
    sent = [
        (each, b"mine")
        for each in (b"x-api-key", b"authorization", b"x-litellm-api-key", b"x-steadyhand-run", b"x-amz-date")
    ]
    headers = Provider(credential=credential).upstream_headers(
        [*sent, (b"x-goog-user-project", b"mine"), (b"a", b"b")]
    )
    assert [each for key, each in headers if key == name] == [value.encode()]
    assert (b"a", b"b") in headers
    mine = [key for key, each in headers if each == b"mine"]
    assert mine == ([] if name == b"x-litellm-api-key" else [b"x-litellm-api-key"])


@pytest.mark.parametrize(
    ("provider", "credential", "name", "value"),
    [
        (OPENAI, Credential("bearer", CANARY), b"authorization", f"Bearer {CANARY}"),
        (OPENAI, Credential("api_key", CANARY), b"authorization", f"Bearer {CANARY}"),
        (OPENAI, Credential("bearer", CANARY, "api-key"), b"api-key", CANARY),
        (GEMINI, Credential("api_key", CANARY), b"x-goog-api-key", CANARY),
        (GEMINI, Credential("api_key", CANARY, "Authorization"), b"authorization", f"Bearer {CANARY}"),
    ],
)
def test_the_credential_of_other_apis_goes_by_their_header(
    provider: Provider, credential: Credential, name: bytes, value: str
) -> None:
    mine = [(each, b"mine") for each in (b"authorization", b"api-key", b"x-goog-api-key", b"openai-project")]
    sent = replace(provider, credential=credential).upstream_headers([*mine, (b"a", b"b")])
    assert sent == [(b"a", b"b"), (b"accept-encoding", b"identity"), (name, value.encode())]


def test_a_token_file_that_changed_is_read_again_and_one_that_is_gone_is_not_missed(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    credential = Credential("bearer", "at-the-start", file=file)
    assert credential.current_secret() == b"first"
    file.write_text("second-token")
    assert credential.current_secret() == b"second-token"
    credential.reload()
    file.rename(file.with_suffix(".new"))
    assert credential.current_secret() == b"second-token"
    file.write_text("")
    assert credential.current_secret() == b"at-the-start"
    file.unlink()
    assert credential.current_secret() == b"at-the-start"


# --- with the real CLI ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "sealed"),
    [
        pytest.param("bedrock", True, marks=pytest.mark.long),
        ("bedrock", False),
        ("vertex", True),
        pytest.param("vertex", False, marks=pytest.mark.long),
    ],
)
def test_the_real_cli_reaches_it_by_the_gateway_which_puts_the_token_on_and_counts(
    world_dir: Path, real_cli: Path, kind: str, *, sealed: bool
) -> None:
    events = typical_events()
    answer = event_stream_frames(events) if kind == "bedrock" else format_sse(events)
    form = "application/vnd.amazon.eventstream" if kind == "bedrock" else "text/event-stream"
    heads: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                heads.append(head)
                length = int(head.lower().partition("content-length: ")[2].split("\r\n")[0] or 0)
                await reader.readexactly(length)
                lines = f"HTTP/1.1 200 OK\r\ncontent-type: {form}\r\ncontent-length: {len(answer)}\r\n\r\n"
                writer.write(lines.encode() + answer)
                await writer.drain()

    async def main() -> None:
        token = world_dir / "token"
        token.write_text(CANARY)
        credential = Credential("bearer", CANARY, file=token)
        async with serve_host(serve) as upstream:
            provider = (
                Provider("cloud", "bedrock", upstream.url, credential, region="eu-central-1")
                if kind == "bedrock"
                else Provider("cloud", "vertex", upstream.url, credential, "europe-west1", "shop-1")
            )
            way = GatewayHarness(slot_dir(world_dir, 0) / "model.sock")
            gateway = ModelGateway(
                world_dir,
                slots=1,
                sandbox_socket=str(way.socket) if sealed else None,
                billing=BillingDeps(way.ledger, FLAT_PRICES, job_limits),
                providers=[Provider(), provider],
            )
            place = make_checkout(world_dir, user=AGENT if ROOT else None)
            work = RunContext(make_run_context(place).job, Agent("a", provider="cloud"), place)
            async with gateway.serving(), gateway.open_run(work, way.emit) as attendance:
                granted = model_environment(attendance.model_access)
                assert CANARY not in str(granted)
                code, result = await asyncio.to_thread(run_cli, real_cli, world_dir, granted)
                assert (code, result["is_error"]) == (0, False), (result, heads)
                spent = await attendance.final_usage()
        assert result["result"] == "one two three four" * 3
        assert heads
        for head in heads:
            assert f"authorization: Bearer {CANARY}\r\n" in head
            assert "x-steadyhand-run" not in head.lower()
        wanted = "/model/" if kind == "bedrock" else "/v1/projects/shop-1/locations/"
        assert heads[0].startswith(f"POST {wanted}")
        assert spent.tokens == TokenCounts(*(each * len(heads) for each in (123, 765, 4567, 590, 300)))
        assert spent.complete

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["bedrock", pytest.param("vertex", marks=pytest.mark.long)])
def test_a_token_that_has_expired_ends_the_real_cli_after_two_calls(
    world_dir: Path, real_cli: Path, kind: Literal["bedrock", "vertex"]
) -> None:
    body = b'{"message": "the token has expired"}'
    expired = b"HTTP/1.1 401 Unauthorized\r\ncontent-type: application/json\r\n"
    expired += b"content-length: %d\r\n\r\n" % len(body) + body

    async def main() -> None:
        async with Answers(expired) as cloud:
            credential = Credential("bearer", CANARY)
            provider = Provider("cloud", kind, cloud.url, credential, "europe-west1", "shop-1")
            gateway = ModelGateway(
                world_dir,
                slots=1,
                sandbox_socket=None,
                billing=BillingDeps(MemoryLedger(), FLAT_PRICES, job_limits),
                providers=[Provider(), provider],
            )
            place = make_checkout(world_dir, user=AGENT if ROOT else None)
            agent = Agent("a", provider="cloud")
            work = RunContext(make_run_context(place).job, agent, place)
            way = GatewayHarness(world_dir)
            async with gateway.serving(), gateway.open_run(work, way.emit) as access:
                granted = model_environment(access.model_access)
                code, result = await asyncio.to_thread(run_cli, real_cli, world_dir, granted)
            assert (code, result["api_error_status"]) == (1, 401)
            assert len(cloud.bodies) == 2
            assert gateway.rejected_providers() == ["cloud"]
            assert not gateway.may_start(agent, [])
            assert gateway.may_start(Agent("b"), [agent])

    asyncio.run(main())
