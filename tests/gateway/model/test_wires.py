"""OpenAI's APIs and Gemini's at the gateway: the rules of the Messages API hold for each of them."""

import asyncio
import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.gateway.gateway_harness import (
    CANARY,
    SkippingClock,
    ok_response,
    open_gateway,
    serve_host,
    wait_until,
)
from tests.gateway.model.test_provider_rate_limits import Answers, busy
from tests.gateway.model_responses import MODEL, TEXT
from tests.gateway.wire_bodies import WIRE_USAGE, Wire, to_sse, wire_body, wire_events, wire_stream

from steadyhand.agents import Agent
from steadyhand.gateway import Credential, Provider
from steadyhand.gateway.model import request_body
from steadyhand.gateway.model.error_response import Rejected
from steadyhand.gateway.model.metered_requests import metered_body
from steadyhand.ports import ModelApi, TokenCounts
from steadyhand.testing.model import ScriptedModel

USED = sum((WIRE_USAGE.input, WIRE_USAGE.output, WIRE_USAGE.cache_read))
"""The micro-dollars of an answer at the flat prices of the harness."""


@dataclass(frozen=True)
class WireCase:
    """One API: a call, streamed and not, and the header of its credential."""

    wire: Wire
    api: ModelApi
    path: str
    stream_path: str
    ask: dict[str, Any]
    header: tuple[str, str]
    budget_status: int
    budget_error: dict[str, Any]

    def provider(self, url: str | None, credential: Credential | None = None) -> Provider:
        return Provider("default", self.api, url, credential or Credential("bearer", CANARY))

    @property
    def stream_ask(self) -> dict[str, Any]:
        more = {"stream_options": {"include_usage": True}} if self.wire == "chat" else {}
        return self.ask if self.api == "gemini" else {**self.ask, "stream": True, **more}


def openai_error(message: str, kind: str, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


QUOTA = openai_error("", "insufficient_quota", "insufficient_quota")
BEARER = ("authorization", f"Bearer {CANARY}")
RESPONSES = WireCase(
    "responses",
    "openai",
    "/v1/responses",
    "/v1/responses",
    {"model": MODEL, "input": [{"role": "user", "content": "hello"}]},
    BEARER,
    403,
    QUOTA,
)
CHAT = WireCase(
    "chat",
    "openai",
    "/v1/chat/completions",
    "/v1/chat/completions",
    {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]},
    BEARER,
    403,
    QUOTA,
)
GEMINI = WireCase(
    "gemini",
    "gemini",
    f"/v1beta/models/{MODEL}:generateContent",
    f"/v1beta/models/{MODEL}:streamGenerateContent?alt=sse",
    {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]},
    ("x-goog-api-key", CANARY),
    400,
    {"error": {"code": 400, "message": "", "status": "FAILED_PRECONDITION"}},
)
CASES = (RESPONSES, CHAT, GEMINI)
each_wire = pytest.mark.parametrize("case", CASES, ids=lambda case: case.wire)


def without_message(answer: httpx2.Response) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert body["error"]["message"]
    body["error"]["message"] = ""
    return body


def sse_response(body: bytes) -> bytes:
    return ok_response(body, "content-type: text/event-stream")


# --- calls -------------------------------------------------------------------------------------


@each_wire
@pytest.mark.parametrize("streamed", [True, False])
def test_a_call_passes_with_the_real_credential_and_costs_what_it_reports(
    world_dir: Path, case: WireCase, *, streamed: bool
) -> None:
    told = wire_stream(case.wire) if streamed else wire_body(case.wire)
    path, ask = (case.stream_path, case.stream_ask) if streamed else (case.path, case.ask)
    mine = dict.fromkeys(("authorization", "api-key", "x-api-key", "x-goog-api-key"), "placeholder")
    mine |= {"openai-organization": "another", "x-app": "agent"}

    async def main() -> None:
        async with serve_host(sse_response(told) if streamed else ok_response(told)) as upstream:
            provider = case.provider(upstream.url)
            async with open_gateway(world_dir, provider=provider) as way, way.client() as client:
                answer = await client.post(path, json=ask, headers=mine)
                assert (answer.status_code, answer.content) == (200, told)
                assert CANARY not in answer.text + str(answer.headers)
                spent = await way.open_access.final_usage()
            (call,) = way.ledger.calls.values()
        head, _, body = bytes(upstream.received).partition(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        assert lines[0] == f"post {path.lower()} http/1.1"
        name, value = case.header
        assert f"{name}: {value.lower()}" in lines
        assert "placeholder" not in head.decode()
        assert "another" not in head.decode()
        assert "x-app: agent" in lines
        assert json.loads(body) == ask
        assert (spent.calls, spent.micros, spent.complete, spent.priced) == (1, USED, True, True)
        assert (call.tokens, call.model, call.status) == (WIRE_USAGE, MODEL, 200)

    asyncio.run(main())


@pytest.mark.parametrize("case", [RESPONSES, CHAT], ids=lambda case: case.wire)
@pytest.mark.parametrize("streamed", [True, False])
def test_the_scripted_model_and_the_ledger_count_the_same(
    world_dir: Path, scripted_model: ScriptedModel, case: WireCase, *, streamed: bool
) -> None:
    ask = {**case.ask, "model": "gpt-5.5"} | ({"stream": True} if streamed else {})

    async def main() -> None:
        provider = case.provider(f"{scripted_model.url}/v1")
        async with open_gateway(world_dir, provider=provider) as way, way.client() as client:
            for _ in range(3):
                assert (await client.post(case.path, json=ask)).status_code == 200
            spent = await way.open_access.final_usage()
        told = scripted_model.all_totals
        wanted = TokenCounts(
            told["input_tokens"], told["output_tokens"], told.get("cache_read_input_tokens", 0)
        )
        assert (spent.calls, spent.complete, spent.priced) == (3, True, True)
        assert spent.tokens == wanted
        assert spent.tokens.output > 0

    asyncio.run(main())


@each_wire
def test_a_stream_that_breaks_off_costs_at_least_what_was_said(world_dir: Path, case: WireCase) -> None:
    events = [event for event in wire_events(case.wire, 3000) if "usage" not in str(event.get("response"))]
    broken = to_sse(case.wire, events[:-1], done=False)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + b"%x\r\n%b\r\n" % (len(broken), broken))
        await writer.drain()
        await reader.read(1)
        writer.transport.abort()

    async def main() -> None:
        async with serve_host(answer) as upstream:
            provider = case.provider(upstream.url)
            async with open_gateway(world_dir, provider=provider) as way, way.client() as client:
                heard = b""
                async with client.stream("POST", case.stream_path, json=case.stream_ask) as response:
                    async for piece in response.aiter_raw():
                        heard += piece
                        if len(heard) == len(broken):
                            break
                await wait_until(lambda: all(call.settled for call in way.ledger.calls.values()))
                spent = await way.open_access.final_usage()
        assert not spent.complete
        assert spent.micros >= 3000 * len(TEXT) // 4

    asyncio.run(main())


@each_wire
def test_a_spent_budget_ends_the_agent_in_the_words_of_its_api(world_dir: Path, case: WireCase) -> None:
    async def main() -> None:
        async with Answers(ok_response(wire_body(case.wire))) as model:
            provider = case.provider(model.url)
            async with (
                open_gateway(world_dir, provider=provider, budget_micros=USED) as way,
                way.client() as client,
            ):
                assert (await client.post(case.path, json=case.ask)).status_code == 200
                answer = await client.post(case.path, json=case.ask)
                assert way.open_access.exhausted_budget is not None
        assert answer.status_code == case.budget_status
        assert without_message(answer) == case.budget_error
        assert answer.headers["x-should-retry"] == "false"
        assert len(model.bodies) == 1

    asyncio.run(main())


# --- rate limits -------------------------------------------------------------------------------


@each_wire
@pytest.mark.parametrize(
    ("first", "least"),
    [
        (busy(429, "retry-after: 3"), 3),
        (busy(429, "retry-after-ms: 2500", "retry-after: 9"), 2.5),
        (busy(429, "x-ratelimit-reset-requests: 6s", "x-ratelimit-remaining-requests: 0"), 6),
        (busy(429, "x-ratelimit-reset-tokens: 120ms"), 0.12),
        (busy(503, "retry-after: 2"), 2),
        (busy(429), 1),
    ],
)
def test_a_short_wait_is_taken_here(world_dir: Path, case: WireCase, first: bytes, least: float) -> None:
    async def main() -> None:
        clock = SkippingClock()
        async with Answers(first, ok_response(wire_body(case.wire))) as model:
            provider = case.provider(model.url)
            async with open_gateway(world_dir, provider=provider, clock=clock) as way, way.client() as client:
                answer = await client.post(case.path, json=case.ask)
                spent = await way.open_access.final_usage()
        assert answer.status_code == 200
        assert len(model.bodies) == 2
        assert len(set(model.bodies)) == 1
        assert least <= clock.slept[0] <= least + max(1.0, least) * 0.2
        assert (spent.calls, spent.micros) == (1, USED)

    asyncio.run(main())


def gemini_busy(seconds: str) -> bytes:
    """Return an answer of Gemini that names the wait in its body alone."""
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": seconds}
    error = {"code": 429, "message": "busy", "status": "RESOURCE_EXHAUSTED", "details": [info]}
    body = json.dumps({"error": error}).encode()
    return b"HTTP/1.1 429 Busy\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize(("seconds", "least"), [("4s", 4), ("2.5s", 2.5)])
def test_a_wait_that_gemini_names_in_its_error_is_taken_here(
    world_dir: Path, seconds: str, least: float
) -> None:
    test_a_short_wait_is_taken_here(world_dir, GEMINI, gemini_busy(seconds), least)


def test_a_long_wait_in_an_error_of_gemini_parks_the_run(world_dir: Path) -> None:
    test_a_long_wait_parks_the_run_and_ends_its_agent(world_dir, GEMINI, gemini_busy("361s"))


def test_an_error_of_gemini_without_a_wait_that_may_not_be_repeated_is_passed_on_whole(
    world_dir: Path,
) -> None:
    head, _, body = gemini_busy("soon").partition(b"\r\n\r\n")
    refused = head + b"\r\nx-should-retry: false\r\n\r\n" + body

    async def main() -> None:
        async with Answers(refused) as model:
            provider = GEMINI.provider(model.url)
            async with open_gateway(world_dir, provider=provider) as way, way.client() as client:
                answer = await client.post(GEMINI.path, json=GEMINI.ask)
        assert (answer.status_code, answer.content) == (429, body)

    asyncio.run(main())


@each_wire
@pytest.mark.parametrize(
    "first",
    [
        busy(429, "retry-after: 360"),
        busy(429, "x-ratelimit-reset-requests: 6m0s", "x-ratelimit-remaining-requests: 0"),
    ],
)
def test_a_long_wait_parks_the_run_and_ends_its_agent(world_dir: Path, case: WireCase, first: bytes) -> None:
    async def main() -> None:
        clock = SkippingClock()
        async with Answers(first, ok_response(wire_body(case.wire))) as model:
            provider = case.provider(model.url)
            async with open_gateway(world_dir, provider=provider, clock=clock) as way, way.client() as client:
                for _ in range(2):
                    answer = await client.post(case.path, json=case.ask)
                    assert answer.status_code == case.budget_status
                    assert "rate limit" in answer.json()["error"]["message"]
                    assert answer.headers["x-should-retry"] == "false"
                assert len(model.bodies) == 1
                until = way.open_access.rate_limited_until
                assert until is not None
                assert way.gateway is not None
                assert way.gateway.rate_limited_until(Agent("claude")) == until
                clock.advance(timedelta(seconds=362))
                assert (await client.post(case.path, json=case.ask)).status_code == 200

    asyncio.run(main())


@pytest.mark.parametrize("case", [RESPONSES, CHAT], ids=lambda case: case.wire)
def test_an_account_without_credit_is_no_rate_limit(world_dir: Path, case: WireCase) -> None:
    body = json.dumps(QUOTA).encode()
    refused = b"HTTP/1.1 429 Busy\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)

    async def main() -> None:
        clock = SkippingClock()
        async with Answers(refused) as model:
            provider = case.provider(model.url)
            async with open_gateway(world_dir, provider=provider, clock=clock) as way, way.client() as client:
                answer = await client.post(case.path, json=case.ask)
                assert way.open_access.rate_limited_until is None
                spent = await way.open_access.final_usage()
        assert answer.status_code == 403
        assert without_message(answer) == QUOTA
        assert (len(model.bodies), clock.slept, spent.micros) == (1, [], 0)

    asyncio.run(main())


# --- credentials -------------------------------------------------------------------------------


@each_wire
def test_a_rejected_credential_ends_the_run_after_a_second_try(world_dir: Path, case: WireCase) -> None:
    refused = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\n{}"

    async def main() -> None:
        async with Answers(refused) as model:
            provider = case.provider(model.url)
            async with open_gateway(world_dir, provider=provider) as way, way.client() as client:
                answers = [await client.post(case.path, json=case.ask) for _ in range(2)]
                assert way.gateway is not None
                assert way.gateway.rejected_providers() == ["default"]
                spent = await way.open_access.final_usage()
        assert [answer.status_code for answer in answers] == [401, 401]
        wanted = {
            "openai": openai_error("", "authentication_error", "invalid_api_key"),
            "gemini": {"error": {"code": 401, "message": "", "status": "UNAUTHENTICATED"}},
        }
        assert without_message(answers[0]) == wanted[case.api]
        assert len(model.bodies) == 2
        assert spent.micros == 0

    asyncio.run(main())


@each_wire
def test_without_a_credential_at_the_makers_address_that_is_said(world_dir: Path, case: WireCase) -> None:
    async def main() -> None:
        provider = Provider("default", case.api)
        async with open_gateway(world_dir, provider=provider) as way, way.client() as client:
            answer = await client.post(case.path, json=case.ask)
        assert answer.status_code == 403
        assert "set [providers.default] api_key_file" in answer.json()["error"]["message"]
        assert "ANTHROPIC" not in answer.text

    asyncio.run(main())


# --- what does not pass ------------------------------------------------------------------------


@each_wire
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/batches"),
        ("POST", "/v1/files"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/responses/resp_1"),
        ("GET", "/v1/responses"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("POST", f"/v1beta/models/{MODEL}:streamGenerateContent"),
        ("POST", f"/v1beta/models/{MODEL}:generateContent?key=placeholder"),
        ("POST", f"/v1beta/models/{MODEL}:batchGenerateContent"),
        ("POST", f"/v1beta/models/{MODEL}:embedContent"),
        ("POST", "/v1beta/cachedContents"),
        ("GET", "/v1beta/models?access_token=a"),
    ],
)
def test_other_routes_get_403_and_an_event(world_dir: Path, case: WireCase, method: str, path: str) -> None:
    async def main() -> None:
        async with serve_host(ok_response(b"{}")) as upstream:
            provider = case.provider(upstream.url)
            async with open_gateway(world_dir, provider=provider) as way, way.client() as client:
                answer = await client.request(method, path, json={} if method == "POST" else None)
                assert answer.status_code == 403
                assert "This gateway passes" in answer.json()["error"]["message"]
                assert answer.json()["error"].get("status", "PERMISSION_DENIED") == "PERMISSION_DENIED"
                assert way.warnings("gateway_refused") == [
                    f"The gateway does not pass {method} {path.partition('?')[0]}."
                ]
        assert upstream.connections == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("case", "path"),
    [
        (CHAT, "/v1/models"),
        (RESPONSES, "/v1/models/gpt-5"),
        (GEMINI, "/v1beta/models?pageSize=50"),
        (GEMINI, f"/v1beta/models/{MODEL}"),
    ],
)
def test_lists_of_models_pass_and_cost_nothing(world_dir: Path, case: WireCase, path: str) -> None:
    async def main() -> None:
        async with serve_host(ok_response(b"{}")) as upstream:
            provider = case.provider(upstream.url)
            async with open_gateway(world_dir, provider=provider) as way, way.client() as client:
                assert (await client.get(path)).status_code == 200
                assert way.ledger.calls == {}
        assert upstream.received.startswith(b"GET " + path.encode())

    asyncio.run(main())


def test_a_websocket_is_refused_so_that_the_agent_goes_on_without(world_dir: Path) -> None:
    async def main() -> None:
        async with serve_host(ok_response(b"{}")) as upstream:
            provider = RESPONSES.provider(upstream.url)
            async with open_gateway(world_dir, provider=provider) as way:
                answer = await way.send_to_model(
                    b"GET /v1/responses HTTP/1.1\r\nhost: m\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
                    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
                )
                assert answer.startswith(b"HTTP/1.1 426 ")
                assert "WebSockets" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
                assert way.warnings("gateway_refused") == []
                other = await way.send_to_model(
                    b"GET /v1/files HTTP/1.1\r\nhost: m\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"
                )
                assert other.startswith(b"HTTP/1.1 403 ")
                assert len(way.warnings("gateway_refused")) == 1
        assert upstream.connections == 0

    asyncio.run(main())


@each_wire
def test_a_model_that_is_not_there_is_told_in_the_words_of_the_api(world_dir: Path, case: WireCase) -> None:
    async def main() -> None:
        async with serve_host() as gone:
            pass
        provider = case.provider(gone.url)
        async with open_gateway(world_dir, provider=provider) as way, way.client() as client:
            answer = await client.post(case.path, json=case.ask)
        assert answer.status_code == 502
        wanted = {
            "openai": openai_error("", "api_error", None),
            "gemini": {"error": {"code": 502, "message": "", "status": "UNAVAILABLE"}},
        }
        assert without_message(answer) == wanted[case.api]

    asyncio.run(main())


# --- requests of OpenAI's APIs -----------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","background":true}',
        b'{"model":"m", "background" : 1}',
        b'{"model":"m","\\u0062ackground":true}',
        b'{"model":"m","backgro\\u0075nd":true}',
        b'{"background":false,"background":true}',
    ],
)
def test_a_response_in_the_background_is_refused(body: bytes) -> None:
    with pytest.raises(Rejected) as refused:
        metered_body("responses", body)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","background":false}',
        b'{"model":"m","background":null}',
        b'{"model":"m","input":"background"}',
        b'{"model":"m","metadata":{"background":true}}',
        b'{"background":true',
        b"[]",
        b"",
    ],
)
def test_other_responses_are_sent_as_they_are(body: bytes) -> None:
    assert metered_body("responses", body) is body


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}',
        b'{"stream_options" : { "include_usage" : true , "x":1},"stream":true}',
        b'{"model":"m","stream":false}',
        b'{"model":"m"}',
        b'{"stream":true',
        b"",
    ],
)
def test_a_chat_that_reports_its_usage_is_sent_as_it_is(body: bytes) -> None:
    assert metered_body("chat", body) is body


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (
            b' {"model": "m", "n":1.50, "stream" :true}',
            b'{"stream_options":{"include_usage":true},"model": "m", "n":1.50, "stream" :true}',
        ),
        (
            b'{"stream":true,"stream_options":{"include_usage":false,"x":1}}',
            b'{"stream": true, "stream_options": {"include_usage": true, "x": 1}}',
        ),
        (
            b'{"stream":true,"stream_options":null}',
            b'{"stream": true, "stream_options": {"include_usage": true}}',
        ),
    ],
)
def test_a_streamed_chat_is_asked_for_its_usage(body: bytes, sent: bytes) -> None:
    assert metered_body("chat", body) == sent


def test_a_body_that_was_changed_goes_with_its_new_length_and_again_after_a_wait(world_dir: Path) -> None:
    asked = {**CHAT.ask, "stream": True}

    async def main() -> None:
        async with Answers(busy(429, "retry-after: 1"), sse_response(wire_stream("chat"))) as model:
            provider = CHAT.provider(model.url)
            async with open_gateway(world_dir, provider=provider) as way, way.client() as client:
                assert (await client.post(CHAT.path, json=asked)).status_code == 200
                spent = await way.open_access.final_usage()
        wanted = {**asked, "stream_options": {"include_usage": True}}
        assert [json.loads(body) for body in model.bodies] == [wanted] * 2
        assert (spent.micros, spent.complete) == (USED, True)

    asyncio.run(main())


def test_a_body_that_is_too_large_to_be_kept_passes_as_it_is(
    world_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_body, "MAX_REPLAYABLE_BYTES", 10)
    asked = {**CHAT.ask, "stream": True}
    stream = to_sse("chat", wire_events("chat")[:-1])

    async def main() -> None:
        async with Answers(sse_response(stream)) as model:
            provider = CHAT.provider(model.url)
            async with open_gateway(world_dir, provider=provider) as way, way.client() as client:
                assert (await client.post(CHAT.path, json=asked)).status_code == 200
                spent = await way.open_access.final_usage()
            (call,) = way.ledger.calls.values()
        assert json.loads(model.bodies[0]) == asked
        assert (spent.micros, spent.complete) == (call.reserved_micros, False)

    asyncio.run(main())
