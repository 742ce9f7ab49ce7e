"""What an agent can write to the model's socket that is no call to the model: nothing of it arrives."""

import asyncio
from pathlib import Path

import pytest
from tests.gateway.gateway_harness import CANARY, ok_response, open_gateway, serve_host, status_of

from steadyhand.gateway.run_events import MAX_REFUSALS

PATHS = [
    b"/",
    b"/v1",
    b"/v1/",
    b"/v1/messagesx",
    b"/v1/messages-x",
    b"/v1/complete",
    b"/v1/files",
    b"/v1/organizations/me",
    b"/v1/messages/batches",
    b"/v1/messages/batches/msgbatch_1/results",
    b"/v1/messages/",
    b"/v1/messages//x",
    b"//v1/messages",
    b"/v1//messages",
    b"/v1/messages/../files",
    b"/v1/messages/./x",
    b"/v1/messages/..",
    b"/v1/messages/../../x",
    b"/v1/messages/..%2f..%2ffiles",
    b"/v1/messages/%2e%2e/files",
    b"/v1/messages%2f..%2ffiles",
    b"/v1/messages/.%2e/files",
    b"/v1/%6dessages",
    b"/v1/messages;/../files",
    b"/v1/messages\\..\\files",
    b"/v1/messages#/x",
    b"/v1/messages%00",
    b"/v1/messages%0d%0aX: y",
    b"/V1/MESSAGES",
    b"/api/oauth/claude_cli/create_api_key",
    b"/x?/v1/messages",
    b"/v1/messages?a=b#c",
    b"/v1/messages?" + b"a" * 9000,
    b"http://evil.test/v1/messages",
    b"http://model.invalid/v1/messages",
    b"https://evil.test/v1/messages",
    b"//evil.test/v1/messages",
    b"@evil.test/v1/messages",
    b"*",
    b"evil.test:443",
]


@pytest.mark.parametrize("path", PATHS)
def test_no_other_path_passes(world_dir: Path, path: bytes) -> None:
    async def main() -> None:
        async with serve_host(ok_response(b"{}")) as upstream, open_gateway(world_dir, upstream.url) as way:
            answer = await way.send_to_model(
                b"POST %b HTTP/1.1\r\nhost: m\r\ncontent-length: 2\r\n\r\n{}" % path
            )
            assert status_of(answer) in (400, 403), answer
            if status_of(answer) == 403:
                assert len(way.warnings("gateway_refused")) == 1
            assert CANARY.encode() not in answer
        assert upstream.connections == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    "path", [b"/v1/messages", b"/v1/messages?beta=true", b"/v1/messages/count_tokens", b"/v1/models/a.b-1"]
)
def test_the_ways_to_the_model_pass(world_dir: Path, path: bytes) -> None:
    async def main() -> None:
        async with serve_host(ok_response(b"{}")) as upstream, open_gateway(world_dir, upstream.url) as way:
            answer = await way.send_to_model(
                b"GET %b HTTP/1.1\r\nhost: m\r\nconnection: close\r\n\r\n" % path
            )
            assert status_of(answer) == 200
            assert way.events == []
        assert upstream.received.startswith(b"GET %b HTTP/1.1\r\n" % path)

    asyncio.run(main())


@pytest.mark.parametrize("method", [b"PUT", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT", b"PROPFIND", b"post"])
def test_no_other_method_passes(world_dir: Path, method: bytes) -> None:
    async def main() -> None:
        async with serve_host(ok_response(b"{}")) as upstream, open_gateway(world_dir, upstream.url) as way:
            answer = await way.send_to_model(b"%b /v1/messages HTTP/1.1\r\nhost: m\r\n\r\n" % method)
            assert status_of(answer) in (400, 403)
        assert upstream.connections == 0

    asyncio.run(main())


INNER = b"POST /v1/files HTTP/1.1\r\nhost: m\r\ncontent-length: 0\r\n\r\n"
CHUNKED_INNER = b"0\r\n\r\n" + INNER
SMUGGLED = [
    b"content-length: %d\r\ntransfer-encoding: chunked\r\n\r\n" % len(CHUNKED_INNER) + CHUNKED_INNER,
    b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n" + CHUNKED_INNER,
    b"content-length: 0\r\ncontent-length: %d\r\n\r\n" % len(INNER) + INNER,
    b"content-length: 0, %d\r\n\r\n" % len(INNER) + INNER,
    b"content-length: +0\r\n\r\n" + INNER,
    b"content-length: -1\r\n\r\n" + INNER,
    b"content-length: 0x10\r\n\r\n" + INNER,
    b"content-length : 0\r\n\r\n" + INNER,
    b"transfer-encoding: xchunked\r\n\r\n" + CHUNKED_INNER,
    b"transfer-encoding: identity\r\n\r\n" + INNER,
    b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n" + CHUNKED_INNER,
    b"transfer-encoding : chunked\r\n\r\n" + CHUNKED_INNER,
    b"transfer-encoding:\x0bchunked\r\n\r\n" + CHUNKED_INNER,
    b"x: y\rtransfer-encoding: chunked\r\n\r\n" + CHUNKED_INNER,
    b"x: y\n z: w\r\ncontent-length: 0\r\n\r\n" + INNER,
    b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n-1\r\n" + INNER,
    b"transfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n" + INNER,
    b"transfer-encoding: chunked\r\n\r\n0\r\ncontent-length: 50\r\n\r\n" + INNER,
    b"connection: content-length\r\ncontent-length: %d\r\n\r\n" % len(INNER) + INNER,
    b"connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n\r\n" + CHUNKED_INNER,
    b"connection: x-api-key, authorization\r\ncontent-length: 0\r\n\r\n" + INNER,
    b"upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AA\r\ncontent-length: 0\r\n\r\n"
    + INNER,
    b"upgrade: websocket\r\nconnection: upgrade\r\n\r\n" + INNER,
]


@pytest.mark.parametrize("rest", SMUGGLED)
def test_no_second_request_is_smuggled_in_the_first(world_dir: Path, rest: bytes) -> None:
    async def main() -> None:
        async with serve_host(ok_response(b"{}")) as upstream, open_gateway(world_dir, upstream.url) as way:
            ends = await asyncio.open_unix_connection(way.socket)
            ends[1].write(b"POST /v1/messages HTTP/1.1\r\nhost: m\r\n" + rest)
            ends[1].write(b"GET /v1/models/last HTTP/1.1\r\nhost: m\r\nconnection: close\r\n\r\n")
            try:
                async with asyncio.timeout(1):
                    while await ends[0].read(1 << 16):
                        pass
            except (TimeoutError, ConnectionError):
                pass  # a body that does not end, or a cut: neither is an answer
            ends[1].transport.abort()
        heard = bytes(upstream.received)
        # As text in a body it may arrive; as a request of its own it would carry the key.
        for request in heard.split(CANARY.encode())[:-1]:
            first = request.rpartition(b" HTTP/1.1\r\n")[0].rpartition(b"\n")[2]
            assert first in (b"POST /v1/messages", b"GET /v1/models/last"), heard
        assert heard.count(CANARY.encode()) <= 2

    asyncio.run(main())


@pytest.mark.parametrize("rest", SMUGGLED[:2])
def test_a_request_with_two_lengths_is_refused(world_dir: Path, rest: bytes) -> None:
    async def main() -> None:
        async with serve_host(ok_response(b"{}")) as upstream, open_gateway(world_dir, upstream.url) as way:
            assert (
                status_of(await way.send_to_model(b"POST /v1/messages HTTP/1.1\r\nhost: m\r\n" + rest)) == 400
            )
        assert upstream.connections == 0

    asyncio.run(main())


FLOODS = {
    "one long header": b"GET /v1/models HTTP/1.1\r\nhost: m\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
    "many headers": b"GET /v1/models HTTP/1.1\r\nhost: m\r\n" + b"x: y\r\n" * 50_000 + b"\r\n",
    "a long target": b"GET /v1/models?" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    "a line without end": b"G" * 200_000,
    "a long chunk header": b"POST /v1/messages HTTP/1.1\r\nhost: m\r\ntransfer-encoding: chunked\r\n\r\n"
    + b"0" * 200_000,
    "long trailers": b"POST /v1/messages HTTP/1.1\r\nhost: m\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
    + b"x: y\r\n" * 50_000,
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /v1/models\r\n\r\n",
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_in_the_head_ends_the_connection(world_dir: Path, name: str) -> None:
    async def main() -> None:
        async with serve_host() as upstream, open_gateway(world_dir, upstream.url) as way:
            answer = await way.send_to_model(FLOODS[name])
            assert status_of(answer) in (0, 400, 403, 413, 431), answer[:200]
        assert not upstream.received.endswith(b"\r\n0\r\n\r\n")
        assert len(upstream.received) < 1000

    asyncio.run(main())


def test_an_agent_that_asks_in_a_loop_fills_no_store(world_dir: Path) -> None:
    async def main() -> None:
        async with (
            serve_host() as upstream,
            open_gateway(world_dir, upstream.url) as way,
            way.client() as client,
        ):
            for number in range(MAX_REFUSALS + 50):
                assert (await client.get(f"/v1/other/{number}")).status_code == 403
            for _ in range(50):
                await client.get("/v1/other/1")
            assert len(way.events) <= MAX_REFUSALS + 1

    asyncio.run(main())


def test_what_an_agent_writes_stands_in_an_event_as_plain_text(world_dir: Path) -> None:
    async def main() -> None:
        async with serve_host() as upstream, open_gateway(world_dir, upstream.url) as way:
            await way.send_to_model(b"GET /\x1b[31m" + b"x" * 5000 + b" HTTP/1.1\r\nhost: m\r\n\r\n")
            await way.send_to_model(b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nhost: m\r\n\r\n")
            (message,) = way.warnings("gateway_refused")
            assert message.isprintable()
            assert len(message) < 400

    asyncio.run(main())
