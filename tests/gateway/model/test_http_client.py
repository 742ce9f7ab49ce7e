"""Connections to the model's service: over TLS to whom it is, and with an end to every silence."""

import asyncio
import ssl
import subprocess
from pathlib import Path

import httpx2
import pytest
from tests.gateway.gateway_harness import TIMEOUT_SECONDS, ok_response, open_gateway, serve_host

from steadyhand.errors import ConfigError
from steadyhand.gateway.model import http_client
from steadyhand.gateway.model.http_client import HttpClient, UpstreamError, UpstreamRequest

ASK = {"model": "claude-haiku-4-5", "messages": []}


def test_a_service_that_says_nothing_is_given_up_and_costs_what_was_reserved(
    world_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "RESPONSE_SECONDS", 0.2)

    async def main() -> None:
        async with (
            serve_host() as silent,
            open_gateway(world_dir, silent.url) as way,
            way.client() as client,
        ):
            answer = await client.post("/v1/messages", json=ASK)
            assert answer.status_code == 502
            spent = await way.open_access.final_usage()
            await asyncio.wait_for(silent.disconnected.wait(), TIMEOUT_SECONDS)
        assert spent.complete is False
        assert spent.micros > 4096

    asyncio.run(main())


def test_an_answer_that_falls_silent_is_cut_and_does_not_look_whole(
    world_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "RESPONSE_SECONDS", 0.2)

    async def main() -> None:
        async def stopping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\ndata:\r\n")
            await reader.read()
            while await reader.read(1 << 16):
                pass

        async with (
            serve_host(stopping) as silent,
            open_gateway(world_dir, silent.url) as way,
            way.client() as client,
        ):
            with pytest.raises(httpx2.TransportError):
                await client.post("/v1/messages", json=ASK)
            assert (await way.open_access.final_usage()).complete is False

    asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * (300 * 1024),
        b"",
    ],
)
def test_what_is_no_answer_is_none(world_dir: Path, answer: bytes) -> None:
    async def main() -> None:
        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()

        async with serve_host(speak) as odd, open_gateway(world_dir, odd.url) as way, way.client() as client:
            reply = await client.post("/v1/messages", json=ASK)
        assert reply.status_code == 502

    asyncio.run(main())


def test_words_before_the_answer_are_not_the_answer(world_dir: Path) -> None:
    async def main() -> None:
        early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nx-early: 1\r\n\r\n"

        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(early + ok_response(b"{}", "x-late: 1"))
            await writer.drain()
            await reader.read(1 << 16)
            await asyncio.sleep(0)

        async with (
            serve_host(speak) as service,
            open_gateway(world_dir, service.url) as way,
            way.client() as client,
        ):
            answer = await client.post("/v1/messages", json=ASK)
        assert (answer.status_code, answer.content) == (200, b"{}")
        assert answer.headers["x-late"] == "1"
        assert "x-early" not in answer.headers

    asyncio.run(main())


@pytest.mark.parametrize("url", ["ftp://example.org", "http://", "example.org", "unix:/x"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        HttpClient(url)


# --- TLS ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody else believes, with its key in one file."""
    made = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(made.with_suffix(".key")), "-out", str(made.with_suffix(".crt"))),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    made.write_text(made.with_suffix(".key").read_text() + made.with_suffix(".crt").read_text())
    return made


@pytest.mark.parametrize(
    ("believed", "name"), [(True, "127.0.0.1"), (False, "127.0.0.1"), (True, "localhost")]
)
def test_only_a_service_that_proves_who_it_is_gets_the_key(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, name: str, *, believed: bool
) -> None:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heard.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(ok_response(b"{}"))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def main() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        if believed:
            trusting = ssl.create_default_context(cafile=str(certificate.with_suffix(".crt")))
            monkeypatch.setattr(http_client, "_default_tls_context", lambda: trusting)
        service = HttpClient(f"https://{name}:{port}")
        ask = UpstreamRequest("GET", b"/v1/models", [(b"x-api-key", b"secret")])
        if believed and name == "127.0.0.1":
            answer = await service.send(ask)
            assert answer.status == 200
            assert await answer.read_up_to(10) == b"{}"
            answer.close()
            assert b"x-api-key: secret" in heard[0]
        else:
            with pytest.raises(UpstreamError) as refused:
                await service.send(ask)
            assert refused.value.sent is False
            assert heard == []
        service.close()
        server.close()

    asyncio.run(main())
