"""The way to the model: the real credential is on every request, and everything streams."""

import asyncio
import json
import os
import resource
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from tests.gateway.gateway_harness import (
    CANARY,
    FLAT_PRICES,
    SOCKET_INSIDE,
    TIMEOUT_SECONDS,
    make_checkout,
    make_run_context,
    ok_response,
    open_gateway,
    serve_host,
    wait_until,
)

from steadyhand.errors import RunError
from steadyhand.gateway import BillingDeps, Credential, ModelGateway, Provider, job_limits, slot_dir
from steadyhand.gateway.model import request_body
from steadyhand.gateway.model.http_client import UpstreamResponse
from steadyhand.gateway.model.providers import PLACEHOLDER_CREDENTIAL
from steadyhand.gateway.model.unix_listener import MAX_CONNECTIONS
from steadyhand.testing.memory_ledger import MemoryLedger
from steadyhand.testing.model import ScriptedModel

ASK = {
    "model": "claude-haiku-4-5",
    "max_tokens": 100,
    "stream": True,
    "messages": [{"role": "user", "content": "hello"}],
}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="users of agents are given by root")


def asking(scenario: str) -> dict[str, object]:
    return ASK | {"messages": [{"role": "user", "content": f"[[scenario:{scenario}]]"}]}


# --- credentials -------------------------------------------------------------------------------


def test_the_real_key_takes_the_place_of_whatever_the_agent_sends(
    world_dir: Path, scripted_model: ScriptedModel
) -> None:
    async def main() -> None:
        async with open_gateway(world_dir, scripted_model.url) as way, way.client() as client:
            mine = [
                ("x-api-key", PLACEHOLDER_CREDENTIAL),
                ("X-API-Key", "another"),
                ("authorization", f"Bearer {PLACEHOLDER_CREDENTIAL}"),
                ("cookie", "session=agent"),
                ("proxy-authorization", "Basic YTpi"),
                ("forwarded", "for=127.0.0.1"),
                ("x-forwarded-for", "127.0.0.1"),
                ("connection", "keep-alive, x-hop"),
                ("x-hop", "1"),
                ("anthropic-beta", "one,two"),
                ("x-app", "cli"),
            ]
            answer = await client.post("/v1/messages?beta=true", json=ASK, headers=mine)
            assert answer.status_code == 200
            assert CANARY not in answer.text + str(answer.headers)
        request = scripted_model.requests[0]
        assert request.path == "/v1/messages?beta=true"
        assert request.headers["x-api-key"] == CANARY
        assert request.headers["anthropic-beta"] == "one,two"
        assert request.headers["x-app"] == "cli"
        assert request.headers["host"] in scripted_model.url
        dropped = {"authorization", "cookie", "proxy-authorization", "forwarded", "x-forwarded-for", "x-hop"}
        assert not dropped & set(request.headers)
        assert PLACEHOLDER_CREDENTIAL not in str(request.headers)
        assert request.body == ASK

    asyncio.run(main())


def test_no_second_key_of_the_agents_goes_beside_the_real_one(world_dir: Path) -> None:
    async def main() -> None:
        async with serve_host(ok_response(b"{}")) as upstream, open_gateway(world_dir, upstream.url) as way:
            keys = b"x-api-key: %b\r\nX-API-KEY: %b\r\nAuthorization: Bearer %b\r\n" % (
                (PLACEHOLDER_CREDENTIAL.encode(),) * 3
            )
            await way.send_to_model(
                b"GET /v1/models HTTP/1.1\r\nhost: m\r\nconnection: close\r\n" + keys + b"\r\n"
            )
        heard = bytes(upstream.received).lower()
        assert heard.count(b"x-api-key: ") == heard.count(CANARY.encode()) == 1
        assert PLACEHOLDER_CREDENTIAL.encode() not in heard

    asyncio.run(main())


def test_a_subscription_token_goes_as_a_bearer_with_the_flag_it_needs(
    world_dir: Path, scripted_model: ScriptedModel
) -> None:
    async def main() -> None:
        credential = Credential("oauth", CANARY)
        async with (
            open_gateway(world_dir, scripted_model.url, credential=credential) as way,
            way.client() as client,
        ):
            for sent in ({}, {"anthropic-beta": "one,oauth-2025-04-20"}, {"anthropic-beta": "one"}):
                await client.post(
                    "/v1/messages", json=ASK, headers=sent | {"x-api-key": PLACEHOLDER_CREDENTIAL}
                )
        flags = [request.headers["anthropic-beta"] for request in scripted_model.requests]
        assert flags == ["oauth-2025-04-20", "one,oauth-2025-04-20", "one,oauth-2025-04-20"]
        for request in scripted_model.requests:
            assert request.headers["authorization"] == f"Bearer {CANARY}"
            assert "x-api-key" not in request.headers

    asyncio.run(main())


def test_without_a_credential_none_is_sent_on(world_dir: Path, scripted_model: ScriptedModel) -> None:
    async def main() -> None:
        async with (
            open_gateway(world_dir, scripted_model.url, credential=None) as way,
            way.client() as client,
        ):
            await client.post("/v1/messages", json=ASK, headers={"x-api-key": PLACEHOLDER_CREDENTIAL})
        assert not {"x-api-key", "authorization"} & set(scripted_model.requests[0].headers)

    asyncio.run(main())


def test_where_no_credential_is_set_that_is_said_at_once_and_nobody_is_asked(world_dir: Path) -> None:
    async def main() -> None:
        async with open_gateway(world_dir, provider=Provider()) as way, way.client() as client:
            answer = await client.post("/v1/messages", json=ASK)
            assert answer.status_code == 403
            assert answer.headers["x-should-retry"] == "false"
            assert "no credential for the model: set ANTHROPIC_API_KEY" in answer.json()["error"]["message"]
            assert way.ledger.calls == {}

    asyncio.run(main())


def test_a_credential_does_not_show_when_it_is_printed() -> None:
    assert CANARY not in repr(Credential("api_key", CANARY))


def test_what_the_model_sets_and_where_it_points_stay_with_the_agent_that_asked(world_dir: Path) -> None:
    async def main() -> None:
        async with serve_host(ok_response(b"")) as elsewhere:
            moved = (
                b"HTTP/1.1 307 Temporary Redirect\r\nlocation: %b/v1/messages\r\nset-cookie: a=b\r\n"
                b"content-length: 0\r\n\r\n" % elsewhere.url.encode()
            )
            async with (
                serve_host(moved) as upstream,
                open_gateway(world_dir, upstream.url) as way,
                way.client() as client,
            ):
                for _ in range(2):
                    answer = await client.post("/v1/messages", content=b"{}")
                    assert answer.status_code == 307
                    assert "set-cookie" not in answer.headers
            assert b"cookie" not in bytes(upstream.received).lower()
            assert elsewhere.connections == 0  # the key went to the upstream alone

    asyncio.run(main())


def test_an_upstream_below_a_path_is_asked_below_it(world_dir: Path) -> None:
    async def main() -> None:
        async with (
            serve_host(ok_response(b"{}")) as upstream,
            open_gateway(world_dir, f"{upstream.url}/proxy/") as way,
            way.client() as client,
        ):
            await client.get("/v1/models?limit=2&after_id=a%2Fb")
        assert upstream.received.startswith(b"GET /proxy/v1/models?limit=2&after_id=a%2Fb HTTP/1.1\r\n")

    asyncio.run(main())


# --- streaming ---------------------------------------------------------------------------------


def test_each_piece_of_an_answer_is_there_before_the_next_is_sent(world_dir: Path) -> None:
    async def main() -> None:
        arrived = [asyncio.Event() for _ in range(5)]

        async def paced(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            for number, event in enumerate(arrived):
                writer.write(b"9\r\ndata: %d\n\n\r\n" % number)
                await asyncio.wait_for(event.wait(), TIMEOUT_SECONDS)
            writer.write(b"0\r\n\r\n")
            await writer.drain()

        heard = b""
        async with (
            serve_host(paced) as upstream,
            open_gateway(world_dir, upstream.url) as way,
            way.client() as client,
            client.stream("POST", "/v1/messages", content=b"{}") as answer,
        ):
            async for piece in answer.aiter_raw():
                heard += piece
                arrived[int(piece.split()[1])].set()
        assert heard == b"".join(b"data: %d\n\n" % number for number in range(5))

    asyncio.run(main())


def numbered(count: int, length: int) -> list[bytes]:
    """Return lines of this length with numbers."""
    return [b"%0*d\n" % (length - 1, number) for number in range(count)]


async def write_lines(lines: list[bytes], go_on: asyncio.Event, writer: asyncio.StreamWriter) -> None:
    """Write an answer of lines: the first one, and the others once they may come."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    writer.write(head)
    for number, line in enumerate(lines):
        if number == 1:
            await asyncio.wait_for(go_on.wait(), TIMEOUT_SECONDS)
        writer.write(b"%x\r\n%b\r\n" % (len(line), line))
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def test_pieces_wake_no_task_for_an_agent_that_reads_and_wait_for_one_that_does_not(
    world_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    returned: list[bytes] = []
    task_woken = asyncio.Event()
    next_chunk = UpstreamResponse.next_chunk

    async def noted(response: UpstreamResponse) -> bytes:
        chunk = await next_chunk(response)
        returned.append(chunk)
        task_woken.set()
        return chunk

    monkeypatch.setattr(UpstreamResponse, "next_chunk", noted)

    async def answered(lines: list[bytes], *, reads_at_once: bool) -> bytes:
        go_on = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await write_lines(lines, go_on, writer)

        heard = b""
        async with (
            serve_host(answer) as upstream,
            open_gateway(world_dir, upstream.url) as way,
            way.client() as client,
            client.stream("POST", "/v1/messages", content=b"{}") as response,
        ):
            async for piece in response.aiter_raw():
                heard += piece
                if not go_on.is_set():
                    returned.clear()
                    task_woken.clear()
                    go_on.set()
                    if not reads_at_once:
                        await asyncio.wait_for(task_woken.wait(), TIMEOUT_SECONDS)
        return heard

    async def main() -> None:
        lines = numbered(500, 10)
        assert await answered(lines, reads_at_once=True) == b"".join(lines)
        assert returned == [b""]
        lines = numbered(500, 8_000)
        assert await answered(lines, reads_at_once=False) == b"".join(lines)
        assert len(returned) > 1

    asyncio.run(main())


FIRST, SECOND = b'{"model":"claude-haiku-4-5","messages":["', b'the end"]}'
SIZED = {"content-length": str(len(FIRST + SECOND))}


async def halves(go_on: asyncio.Event) -> AsyncIterator[bytes]:
    yield FIRST
    await asyncio.wait_for(go_on.wait(), TIMEOUT_SECONDS)
    yield SECOND


@pytest.mark.parametrize("headers", [{}, SIZED])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_each_piece_of_a_request_is_there_before_the_next_is_sent(
    world_dir: Path, path: str, headers: dict[str, str]
) -> None:
    async def main() -> None:
        came = asyncio.Event()

        async def listening(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(FIRST)
            came.set()
            await reader.readuntil(SECOND)
            writer.write(ok_response(b"{}"))
            await writer.drain()

        async with (
            serve_host(listening) as upstream,
            open_gateway(world_dir, upstream.url) as way,
            way.client() as client,
        ):
            answer = await client.post(path, content=halves(came), headers=headers)
        assert answer.status_code == 200

    asyncio.run(main())


def test_a_request_that_is_turned_away_in_its_middle_is_sent_again_from_its_beginning(
    world_dir: Path,
) -> None:
    async def main() -> None:
        turned = asyncio.Event()
        heard: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            if not turned.is_set():
                await reader.readexactly(len(FIRST))
                writer.write(b"HTTP/1.1 429 Busy\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n")
                await writer.drain()
                turned.set()
                await reader.read()  # until it is given up
                return
            heard.append(await reader.readexactly(len(FIRST + SECOND)))
            writer.write(ok_response(b"{}"))
            await writer.drain()

        async with (
            serve_host(serve) as upstream,
            open_gateway(world_dir, upstream.url) as way,
            way.client() as client,
        ):
            answer = await client.post("/v1/messages", content=halves(turned), headers=SIZED)
        assert answer.status_code == 200
        assert heard == [FIRST + SECOND]
        assert upstream.connections == 2

    asyncio.run(main())


def test_an_answer_that_breaks_off_does_not_look_whole(
    world_dir: Path, scripted_model: ScriptedModel
) -> None:
    async def main() -> None:
        async with open_gateway(world_dir, scripted_model.url) as way, way.client() as client:
            with pytest.raises(httpx2.TransportError):
                await client.post("/v1/messages", json=asking("cut"))
            assert (
                await client.post("/v1/messages", json=ASK)
            ).status_code == 200  # and the next one is served

    asyncio.run(main())


def test_a_model_that_is_not_there_is_told_in_the_words_of_its_api(world_dir: Path) -> None:
    async def main() -> None:
        async with serve_host() as gone:
            pass
        async with open_gateway(world_dir, gone.url) as way, way.client() as client:
            answer = await client.post("/v1/messages", json=ASK)
        assert answer.status_code == 502
        assert answer.json()["type"] == "error"
        assert answer.json()["error"]["type"] == "api_error"
        assert "127.0.0.1" not in answer.text

    asyncio.run(main())


def test_a_refusal_of_the_model_comes_through_as_it_is(
    world_dir: Path, scripted_model: ScriptedModel
) -> None:
    async def main() -> None:
        async with open_gateway(world_dir, scripted_model.url) as way, way.client() as client:
            answer = await client.post("/v1/messages", json=asking("rate-limited"))
        assert answer.status_code == 429
        assert answer.headers["retry-after"]
        assert answer.json()["error"]["type"] == "rate_limit_error"

    asyncio.run(main())


def test_twenty_answers_stream_at_once(world_dir: Path, scripted_model: ScriptedModel) -> None:
    async def main() -> None:
        async with open_gateway(world_dir, scripted_model.url) as way, way.client() as client:

            async def one(number: int) -> str:
                body = asking("echo")
                body["metadata"] = {"user_id": str(number)}
                return (await client.post("/v1/messages", json=body)).text

            answers = await asyncio.gather(*(one(number) for number in range(20)))
        assert all("message_stop" in answer for answer in answers)
        assert {request.headers["x-api-key"] for request in scripted_model.requests} == {CANARY}
        assert len(scripted_model.requests) == 20

    asyncio.run(main())


def test_the_call_to_the_model_ends_when_the_agent_goes_away(world_dir: Path) -> None:
    async def main() -> None:
        asked = asyncio.Event()

        async def thinking(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            while await reader.read(1 << 16):
                pass

        async with (
            serve_host(thinking) as upstream,
            open_gateway(world_dir, upstream.url) as way,
            way.client() as client,
        ):
            call = asyncio.ensure_future(client.post("/v1/messages", content=b"{}"))
            await asyncio.wait_for(asked.wait(), TIMEOUT_SECONDS)
            assert not upstream.disconnected.is_set()
            call.cancel()
            await asyncio.wait_for(upstream.disconnected.wait(), TIMEOUT_SECONDS)

    asyncio.run(main())


def test_one_connection_to_the_service_serves_request_after_request(world_dir: Path) -> None:
    streamed = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"

    async def main() -> None:
        for answer in (ok_response(b"{}"), streamed):

            async def serve(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: bytes = answer
            ) -> None:
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                    await reader.readexactly(length)
                    writer.write(said)

            async with (
                serve_host(serve) as upstream,
                open_gateway(world_dir, upstream.url) as way,
                way.client() as client,
            ):
                for _ in range(5):
                    assert (await client.post("/v1/messages", json=ASK)).status_code == 200
                assert upstream.connections == 1

    asyncio.run(main())


def test_a_connection_that_the_service_closed_meanwhile_is_made_anew(world_dir: Path) -> None:
    async def main() -> None:
        async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"}]}")
            writer.write(ok_response(b"{}"))
            await writer.drain()
            await reader.readuntil(b"}]}")  # the next request: it ends here, unanswered

        asked = {"model": "claude-haiku-4-5", "messages": [{"role": "user"}]}
        async with (
            serve_host(once) as upstream,
            open_gateway(world_dir, upstream.url) as way,
            way.client() as client,
        ):
            for _ in range(3):
                assert (await client.post("/v1/messages", json=asked)).status_code == 200
            assert upstream.connections == 3

    asyncio.run(main())


# --- bodies ------------------------------------------------------------------------------------


def test_a_body_of_twenty_megabytes_goes_through_whole(world_dir: Path) -> None:
    async def main() -> None:
        size = 20 << 20
        body = os.urandom(1 << 20) * (size >> 20)

        async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"content-length: %d" % size in head.lower()
            same = await reader.readexactly(size) == body
            writer.write(ok_response(b"same" if same else b"other"))
            await writer.drain()

        async with (
            serve_host(counting) as upstream,
            open_gateway(world_dir, upstream.url) as way,
            way.client() as client,
        ):
            answer = await client.post("/v1/messages", content=body, timeout=60)
        assert answer.text == "same"

    asyncio.run(main())


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(world_dir: Path) -> None:
    async def main() -> None:
        async with serve_host(ok_response(b"")) as upstream, open_gateway(world_dir, upstream.url) as way:
            head = b"POST /v1/messages HTTP/1.1\r\nhost: m\r\ncontent-length: %d\r\n\r\n"
            answer = await way.send_to_model(head % (request_body.MAX_BODY_BYTES + 1))
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "request_too_large"
        assert upstream.connections == 0

    asyncio.run(main())


def test_a_body_that_turns_out_too_large_never_arrives_whole(
    world_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_body, "MAX_BODY_BYTES", 1 << 20)

    async def endless() -> object:
        for _ in range(64):
            yield b"x" * (1 << 16)

    async def main() -> None:
        async with (
            serve_host() as upstream,
            open_gateway(world_dir, upstream.url) as way,
            way.client() as client,
        ):
            try:
                answer = await client.post("/v1/messages", content=endless())  # type: ignore[arg-type]
                assert answer.status_code == 413
            except httpx2.WriteError:
                pass  # cut while it was still sending
            await wait_until(upstream.disconnected.is_set)
        assert len(upstream.received) < 2 << 20
        assert not upstream.received.endswith(b"\r\n0\r\n\r\n")

    asyncio.run(main())


# --- whose socket it is ------------------------------------------------------------------------


def test_connections_are_taken_only_while_a_run_holds_the_slot_and_end_with_it(
    world_dir: Path, scripted_model: ScriptedModel
) -> None:
    async def main() -> None:
        gateway = ModelGateway(
            world_dir,
            slots=2,
            sandbox_socket=SOCKET_INSIDE,
            billing=BillingDeps(MemoryLedger(), FLAT_PRICES, job_limits),
            providers=[Provider(base_url=scripted_model.url)],
        )
        socket = slot_dir(world_dir, 0) / "model.sock"

        async def emit(body: object) -> None:
            pass

        async def call() -> int:
            transport = httpx2.AsyncHTTPTransport(uds=str(socket))
            async with httpx2.AsyncClient(transport=transport, timeout=TIMEOUT_SECONDS) as client:
                return (await client.post("http://m/v1/messages", json=ASK)).status_code

        async with gateway.serving():
            with pytest.raises(httpx2.TransportError):
                await call()
            async with gateway.open_run(make_run_context(make_checkout(world_dir)), emit):
                assert await call() == 200
                with pytest.raises(RunError):
                    async with gateway.open_run(make_run_context(make_checkout(world_dir)), emit):
                        pass
                reader, writer = await asyncio.open_unix_connection(socket)
                writer.write(b"POST /v1/messages HTTP/1.1\r\n")  # a request under way when the run ends
                await wait_until(lambda: bool(gateway._unix_listeners[0]._state.connections))
            assert await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS) == b""
            with pytest.raises(httpx2.TransportError):
                await call()
            async with gateway.open_run(make_run_context(make_checkout(world_dir)), emit):
                assert await call() == 200
        assert not socket.exists()

    asyncio.run(main())


def test_no_more_than_so_many_connections_are_taken(world_dir: Path, scripted_model: ScriptedModel) -> None:
    async def main() -> None:
        async with open_gateway(world_dir, scripted_model.url) as way:
            ends = [await asyncio.open_unix_connection(way.socket) for _ in range(MAX_CONNECTIONS)]
            for _, writer in ends:
                writer.write(b"POST")
            assert await way.send_to_model(b"POST /v1/messages HTTP/1.1\r\n") == b""
            for _, writer in ends:
                writer.transport.abort()
            async with way.client() as client:
                status = 0
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    while status != 200:
                        try:
                            status = (await client.post("/v1/messages", json=ASK)).status_code
                        except httpx2.TransportError:
                            await asyncio.sleep(0.01)

    asyncio.run(main())


def test_the_service_may_open_as_many_files_as_agents_can_make_it_open(
    world_dir: Path, scripted_model: ScriptedModel
) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 4096:
        pytest.fail(f"this test needs 4096 open files, and the machine allows {before[1]}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))

    async def main() -> None:
        async with open_gateway(world_dir, scripted_model.url):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1000
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300

    try:
        asyncio.run(main())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_data_directory_may_be_deeper_than_a_sockets_name_is_long(
    world_dir: Path, scripted_model: ScriptedModel
) -> None:
    deep = world_dir / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)

    async def main() -> None:
        async with open_gateway(deep, scripted_model.url) as way:
            handle = os.open(way.socket.parent, os.O_PATH)
            way.socket = Path(f"/proc/self/fd/{handle}/model.sock")
            async with way.client() as client:
                assert (await client.post("/v1/messages", json=ASK)).status_code == 200
            os.close(handle)

    asyncio.run(main())


def test_a_socket_of_an_earlier_life_is_made_anew(world_dir: Path, scripted_model: ScriptedModel) -> None:
    folder = slot_dir(world_dir, 0)
    folder.mkdir(parents=True)
    (folder / "model.sock").write_text("left")

    async def main() -> None:
        async with open_gateway(world_dir, scripted_model.url) as way, way.client() as client:
            assert (await client.post("/v1/messages", json=ASK)).status_code == 200

    asyncio.run(main())


_CONNECT = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print('in')"


@as_root
def test_only_the_user_of_the_run_can_connect_to_its_socket(
    world_dir: Path, scripted_model: ScriptedModel
) -> None:
    def connect(path: Path, user: int) -> str:
        done = subprocess.run(
            ["/usr/bin/python3", "-c", _CONNECT, path],
            user=user,
            group=user,
            extra_groups=[],
            capture_output=True,
            timeout=30,
            check=False,
        )
        return (done.stdout + done.stderr).decode().strip().splitlines()[-1]

    async def main() -> None:
        async with open_gateway(world_dir, scripted_model.url, slot=1, user=64001) as way:
            assert await asyncio.to_thread(connect, way.socket, 64001) == "in"
            assert "PermissionError" in await asyncio.to_thread(connect, way.socket, 64000)
            other = slot_dir(world_dir, 0) / "model.sock"
            assert "PermissionError" in await asyncio.to_thread(connect, other, 64001)
            assert "PermissionError" in await asyncio.to_thread(
                connect, other, 64000
            )  # nobody holds that slot
            assert way.socket.stat().st_mode & 0o777 == 0o600

    asyncio.run(main())
