"""The proxy: what is on the list is reached, and nothing else, by whatever name, address, spelling or detour."""

import asyncio
import contextlib
import ipaddress
import itertools
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.gateway.gateway_harness import (
    QUICK_TIMEOUTS,
    TIMEOUT_SECONDS,
    RecordingHost,
    ok_response,
    open_gateway,
    serve_host,
    status_of,
    wait_until,
)

from steadyhand.addresses import Address, parse_target
from steadyhand.errors import SpawnError
from steadyhand.gateway.egress.connect_proxy import MAX_CONNECTIONS, ConnectProxy, ProxyTimeouts
from steadyhand.gateway.egress.rules import EgressRules
from steadyhand.gateway.run_events import MAX_REFUSALS, RunEvents

LOOPBACK = {"listed.test": ["127.0.0.1"], "a.pages.test": ["127.0.0.1"]}


def listing(found: RecordingHost, *more: str) -> list[str]:
    """A list with this host under two names; the address itself is there because a loopback is not public."""
    return [f"listed.test:{found.port}", f"*.pages.test:{found.port}", f"127.0.0.1:{found.port}", *more]


def connect(authority: str) -> bytes:
    return f"CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n".encode()


def get(url: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {url} HTTP/1.1", "host: x", *headers, "", ""]).encode()


# --- what is listed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["listed.test", "LISTED.Test", "listed.test.", "a.pages.test", "127.0.0.1", "0x7f.1"]
)
def test_a_tunnel_leads_to_a_host_on_the_list(world_dir: Path, name: str) -> None:
    async def main() -> None:
        async with (
            serve_host(b"pong") as found,
            open_gateway(world_dir, egress=listing(found), names=LOOPBACK) as way,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", way.proxy)
            writer.write(connect(f"{name}:{found.port}") + b"early\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
            assert await reader.readexactly(4) == b"pong"
            writer.transport.abort()
            await wait_until(found.disconnected.is_set)
            assert found.received == b"early\r\n\r\n"
            assert way.refused_hosts == []
            assert len(way.warnings("egress_host")) == 1

    asyncio.run(main())


def test_a_tunnel_carries_both_ways_at_once_and_each_end_by_itself(world_dir: Path) -> None:
    size = 8 << 20

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
        writer.write(b"end")
        writer.write_eof()
        await reader.read()
        await asyncio.sleep(0.1)

    async def main() -> None:
        async with (
            serve_host(echo) as found,
            open_gateway(world_dir, egress=listing(found), names=LOOPBACK) as way,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", way.proxy)
            writer.write(connect(f"listed.test:{found.port}"))
            await reader.readuntil(b"\r\n\r\n")

            async def send() -> None:
                for _ in range(size >> 16):
                    writer.write(b"x" * (1 << 16))
                    await writer.drain()
                writer.write_eof()

            async with asyncio.timeout(30), asyncio.TaskGroup() as group:
                group.create_task(send())
                heard = await reader.read(-1)
            assert len(heard) == size + 3
            assert heard.endswith(b"xend")
            writer.transport.abort()

    asyncio.run(main())


def test_plain_http_goes_through_in_the_hosts_own_words(world_dir: Path) -> None:
    async def main() -> None:
        async with serve_host(ok_response(b"hello", "x-theirs: 1")) as found:
            async with open_gateway(world_dir, egress=listing(found), names=LOOPBACK) as way:
                answer = await way.send_to_proxy(
                    get(
                        f"http://Listed.test:{found.port}/a%2Fb?c=d",
                        "proxy-authorization: Basic YTpi",
                        "connection: x-hop",
                        "x-hop: 1",
                        "x-mine: 1",
                    )
                )
                assert status_of(answer) == 200
                assert b"x-theirs: 1" in answer
                assert answer.endswith(b"\r\n\r\nhello")
            head = bytes(found.received)
            assert head.startswith(b"GET /a%2Fb?c=d HTTP/1.1\r\n")
            assert b"host: listed.test:%d\r\n" % found.port in head.lower()
            assert head.lower().count(b"host:") == 1
            assert b"x-mine: 1" in head
            assert b"x-hop: 1" not in head
            assert b"proxy-auth" not in head

    asyncio.run(main())


@pytest.mark.parametrize(
    "body",
    [
        b"content-length: 5\r\n\r\nhello",
        b"transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    ],
)
def test_a_body_of_plain_http_goes_through(world_dir: Path, body: bytes) -> None:
    async def main() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard = b""
            while not heard.endswith((b"hello", b"0\r\n\r\n")):
                heard += await reader.read(1 << 16)
            writer.write(ok_response(b"%d" % heard.count(b"hello") or heard))
            await writer.drain()

        async with (
            serve_host(echo) as found,
            open_gateway(world_dir, egress=listing(found), names=LOOPBACK) as way,
        ):
            head = f"POST http://listed.test:{found.port}/ HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n"
            answer = await way.send_to_proxy(head.encode() + body)
            assert b"HTTP/1.1 200 OK" in answer

    asyncio.run(main())


def test_each_new_host_is_an_event_once(world_dir: Path) -> None:
    async def main() -> None:
        async with (
            serve_host(ok_response(b"")) as found,
            open_gateway(world_dir, egress=listing(found), names=LOOPBACK) as way,
        ):
            for name in ("listed.test", "listed.test", "a.pages.test", "LISTED.test"):
                await way.send_to_proxy(get(f"http://{name}:{found.port}/"))
            assert way.warnings("egress_host") == [
                f"The agent reached listed.test:{found.port}.",
                f"The agent reached a.pages.test:{found.port}.",
            ]

    asyncio.run(main())


# --- what is not -------------------------------------------------------------------------------

BY_NAME = [
    "other.test", "listed.test.evil.test", "evillisted.test", "x.listed.test", "pages.test", "evilpages.test",
    "xn--lsted-qta.test", "listed.test@other.test", "other.test@listed.test", "listed.test%2eother.test",
    "listed%2etest",    "listed.test%00", "listed.test\\.other.test", "listed_test", "localhost", "ip6-localhost",
    "metadata.google.internal",
]  # fmt: skip
BY_ADDRESS = [
    "127.0.0.2", "127.1.1", "127.2", "2130706434", "0x7f000002", "0x7f.0.0.2", "0177.0.0.2", "017700000002", "0",
    "[::1]", "[::]", "[::ffff:127.0.0.2]", "[::ffff:7f00:2]", "[0:0:0:0:0:ffff:127.0.0.2]", "[::127.0.0.1]",
    "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1%25lo]", "169.254.169.254", "2852039166", "0xa9fea9fe",
    "[fd00:ec2::254]",
    "100.100.100.200", "10.0.0.1", "192.168.1.1", "172.17.0.1", "224.0.0.1", "1.1.1.1", "[2606:4700::1111]",
]  # fmt: skip


@pytest.mark.parametrize("name", BY_NAME + BY_ADDRESS)
def test_what_is_not_listed_is_refused_and_told(world_dir: Path, name: str) -> None:
    async def main() -> None:
        anywhere = {each: ["127.0.0.1"] for each in BY_NAME}
        async with (
            serve_host(ok_response(b"in")) as found,
            open_gateway(world_dir, egress=listing(found), names=LOOPBACK | anywhere) as way,
        ):
            asked = f"{name}:{found.port}"
            answers = [
                status_of(await way.send_to_proxy(each)) for each in (connect(asked), get(f"http://{asked}/"))
            ]
            assert set(answers) <= {400, 403}  # 400 for what is no request at all
            assert found.connections == 0
            assert len(way.refused_hosts) == answers.count(403)
            assert way.warnings("egress_host") == []

    asyncio.run(main())


@pytest.mark.parametrize("port", [22, 25, 80, 443, 6379, 0, 65536, -1])
def test_another_port_of_a_listed_host_is_refused(world_dir: Path, port: int) -> None:
    async def main() -> None:
        async with (
            serve_host() as found,
            open_gateway(world_dir, egress=listing(found), names=LOOPBACK) as way,
        ):
            assert status_of(await way.send_to_proxy(connect(f"listed.test:{port}"))) == 403
            assert len(way.refused_hosts) == 1
            assert found.connections == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.5", "169.254.169.254", "100.64.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1",
     "2002:7f00:1::",     "fd00:ec2::254", "224.0.0.1", "0.0.0.1"],
)  # fmt: skip
def test_a_listed_name_that_leads_inside_is_refused(world_dir: Path, address: str) -> None:
    async def main() -> None:
        async with serve_host(ok_response(b"in")) as found:
            egress = [f"listed.test:{found.port}"]
            async with open_gateway(world_dir, egress=egress, names={"listed.test": [address]}) as way:
                assert status_of(await way.send_to_proxy(connect(f"listed.test:{found.port}"))) == 403
                assert way.refused_hosts == [f"listed.test:{found.port}"]
            assert found.connections == 0

    asyncio.run(main())


def test_of_several_addresses_only_those_that_may_be_reached_are_left_and_the_name_is_asked_once() -> None:
    asked = 0

    async def rebinding(name: str, port: int) -> Sequence[Address]:
        nonlocal asked
        asked += 1
        first = ["93.184.216.34", "127.0.0.1", "10.0.0.1", "2606:4700::1111"]
        return [ipaddress.ip_address(a) for a in (first if asked == 1 else ["127.0.0.1"])]

    async def emit(body: object) -> None:
        pass

    async def main() -> None:
        egress = ConnectProxy(EgressRules.parse(["listed.test"]), RunEvents(emit), rebinding, QUICK_TIMEOUTS)
        target = parse_target("listed.test:443", None)
        assert target is not None
        assert [str(a) for a in await egress._resolve_target(target)] == ["93.184.216.34", "2606:4700::1111"]
        assert asked == 1

    asyncio.run(main())


def test_a_name_that_changes_between_two_requests_leads_nowhere_else(world_dir: Path) -> None:
    answers = itertools.cycle(["127.0.0.1", "127.0.0.2", "127.0.0.3"])

    async def rebinding(name: str, port: int) -> Sequence[Address]:
        return [ipaddress.ip_address(next(answers))]

    async def main() -> None:
        async with (
            serve_host(ok_response(b"listed")) as found,
            serve_host(ok_response(b"inside"), address="127.0.0.2", port=found.port) as inside,
            open_gateway(world_dir, egress=listing(found), resolve=rebinding) as way,
        ):
            heard = [await way.send_to_proxy(get(f"http://listed.test:{found.port}/")) for _ in range(9)]
            assert [status_of(answer) for answer in heard] == [200, 403, 403] * 3
            assert (found.connections, inside.connections) == (3, 0)
            assert len(way.refused_hosts) == 6

    asyncio.run(main())


def test_a_redirect_to_a_host_that_is_not_listed_ends_at_the_proxy(world_dir: Path) -> None:
    async def main() -> None:
        async with serve_host(ok_response(b"secret")) as inside:
            moved = f"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{inside.port}/\r\ncontent-length: 0\r\n\r\n"
            async with (
                serve_host(moved.encode()) as found,
                open_gateway(world_dir, egress=listing(found), names=LOOPBACK) as way,
            ):
                done = await asyncio.to_thread(curl, way.proxy, "-L", f"http://listed.test:{found.port}/")
                assert b"secret" not in done.stdout
                assert b"not on this agent's list" in done.stdout
                assert way.refused_hosts == [f"127.0.0.1:{inside.port}"]
            assert inside.connections == 0

    asyncio.run(main())


def curl(proxy: int, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    address = f"http://127.0.0.1:{proxy}"
    env = {"http_proxy": address, "https_proxy": address, "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        ["curl", "-sS", "-m", "10", *arguments], env=env, capture_output=True, timeout=30, check=False
    )


def test_curl_and_git_and_python_say_that_they_were_refused(world_dir: Path) -> None:
    def run(proxy: int, *argv: str) -> str:
        address = f"http://127.0.0.1:{proxy}"
        env = {
            "http_proxy": address,
            "https_proxy": address,
            "PATH": os.environ["PATH"],
            "HOME": str(world_dir),
        }
        done = subprocess.run(argv, env=env, capture_output=True, timeout=30, check=False)
        return (done.stdout + done.stderr).decode()

    opened = "import urllib.request as u; u.urlopen('https://other.test/')"

    async def main() -> None:
        async with open_gateway(world_dir) as way:
            assert "403" in await asyncio.to_thread(run, way.proxy, "curl", "-sS", "https://other.test/")
            assert "403" in await asyncio.to_thread(
                run, way.proxy, "git", "ls-remote", "https://other.test/r.git"
            )
            assert "403" in await asyncio.to_thread(run, way.proxy, "/usr/bin/python3", "-c", opened)
            assert way.refused_hosts == ["other.test"] * 3

    asyncio.run(main())


NO_REQUESTS = {
    "origin form": b"GET / HTTP/1.1\r\nhost: listed.test\r\n\r\n",
    "https": b"GET https://listed.test/ HTTP/1.1\r\nhost: listed.test\r\n\r\n",
    "ftp": b"GET ftp://listed.test/ HTTP/1.1\r\nhost: listed.test\r\n\r\n",
    "file": b"GET file:///etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n",
    "no authority": b"GET http:///x HTTP/1.1\r\nhost: listed.test\r\n\r\n",
    "no port": b"CONNECT listed.test HTTP/1.1\r\nhost: x\r\n\r\n",
    "a path to connect to": b"CONNECT /listed.test:443 HTTP/1.1\r\nhost: x\r\n\r\n",
    "SOCKS": b"\x05\x01\x00",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a line without end": b"G" * 200_000,
    "many headers": b"GET http://listed.test/ HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 50_000,
    "a long target": b"GET http://listed.test/" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    "a length and chunks": b"POST http://listed.test/ HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n"
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST http://listed.test/ HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "half a head": b"GET http://listed.test/ HTTP/1.1\r\nhost: x",
}


@pytest.mark.parametrize("name", NO_REQUESTS)
def test_what_is_no_request_for_a_proxy_is_refused_and_ends(world_dir: Path, name: str) -> None:
    async def main() -> None:
        async with serve_host(ok_response(b"in")) as found:
            egress = [f"listed.test:{port}" for port in (80, 443, found.port)] + [f"127.0.0.1:{found.port}"]
            async with open_gateway(world_dir, egress=egress, names=LOOPBACK, patience=QUICK_TIMEOUTS) as way:
                request = NO_REQUESTS[name].replace(b"listed.test/", b"listed.test:%d/" % found.port)
                assert status_of(await way.send_to_proxy(request)) in (0, 400, 403, 408, 431, 501)
            assert found.connections == 0

    asyncio.run(main())


# --- bounds ------------------------------------------------------------------------------------


def test_a_head_that_never_ends_is_given_up(world_dir: Path) -> None:
    async def main() -> None:
        async with open_gateway(world_dir, patience=QUICK_TIMEOUTS) as way:
            _reader, writer = await asyncio.open_connection("127.0.0.1", way.proxy)
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    for byte in connect("listed.test:443") * 50:
                        writer.write(bytes([byte]) if byte != 13 else b"x")
                        await writer.drain()
                        await asyncio.sleep(0.02)
            except ConnectionError:
                pass
            else:
                pytest.fail("it was listened to for as long as it spoke")
            writer.transport.abort()

    asyncio.run(main())


def test_floods_of_tiny_pieces_hold_nothing_else_up(world_dir: Path) -> None:
    """Nothing that one agent writes may keep the loop, and so every other caller, waiting."""

    async def main() -> None:
        async def deaf(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            while await reader.read(1 << 16):
                pass

        async with (
            serve_host(deaf) as found,
            open_gateway(world_dir, found.url, egress=listing(found), names=LOOPBACK) as way,
        ):
            head = b"POST %b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            chunks = b"1\r\nx\r\n" * 10_000
            headers = b"GET http://listed.test/ HTTP/1.1\r\n" + b"a:b\r\n" * 10_000

            async def flood(path: Path | None, first: bytes, then: bytes) -> None:
                _reader, writer = (
                    await asyncio.open_unix_connection(path)
                    if path
                    else await asyncio.open_connection("127.0.0.1", way.proxy)
                )
                with contextlib.suppress(OSError):
                    writer.write(first)
                    for _ in range(10):
                        writer.write(then)
                        await writer.drain()
                        await asyncio.sleep(0)
                writer.transport.abort()

            took = time.process_time()
            for _ in range(3):
                await flood(way.socket, head % b"/v1/messages", chunks)
                await flood(way.socket, b"GET /v1/models HTTP/1.1\r\n", b"a:b\r\n" * 10_000)
                await flood(None, head % f"http://listed.test:{found.port}/".encode(), chunks)
                await flood(None, b"", headers)
            took = time.process_time() - took
            # 7 MB in tiny pieces: by a parser in Python this is the better part of a minute of the loop's time.
            assert took < 10

    asyncio.run(main())


def test_an_idle_tunnel_ends(world_dir: Path) -> None:
    async def main() -> None:
        patience = ProxyTimeouts(head=30, connect=10, idle=0.3, linger=0.1)
        async with (
            serve_host() as found,
            open_gateway(world_dir, egress=listing(found), names=LOOPBACK, patience=patience) as way,
        ):
            assert (await way.send_to_proxy(connect(f"listed.test:{found.port}"))).endswith(
                b"established\r\n\r\n"
            )
            await wait_until(found.disconnected.is_set)

    asyncio.run(main())


def test_so_many_connections_are_served_at_once_and_the_rest_wait(world_dir: Path) -> None:
    async def main() -> None:
        async with (
            serve_host(b"pong") as found,
            open_gateway(world_dir, egress=listing(found), names=LOOPBACK) as way,
        ):
            tunnels = []
            for _ in range(MAX_CONNECTIONS):
                reader, writer = await asyncio.open_connection("127.0.0.1", way.proxy)
                writer.write(connect(f"listed.test:{found.port}"))
                await reader.readuntil(b"\r\n\r\n")
                tunnels.append(writer)
            waiting = asyncio.ensure_future(way.send_to_proxy(connect("other.test:443")))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            assert way.refused_hosts == []
            tunnels[0].transport.abort()
            assert status_of(await waiting) == 403
            for writer in tunnels:
                writer.transport.abort()

    asyncio.run(main())


def test_an_agent_that_is_refused_in_a_loop_fills_no_store(world_dir: Path) -> None:
    async def main() -> None:
        async with open_gateway(
            world_dir, patience=ProxyTimeouts(head=1, connect=1, idle=1, linger=0.01)
        ) as way:
            for number in range(MAX_REFUSALS + 20):
                await way.send_to_proxy(connect(f"h{number}.test:443"))
            assert len(way.refused_hosts) == MAX_REFUSALS
            assert len(way.warnings("egress_refusals")) == 1

    asyncio.run(main())


def test_tunnels_and_the_door_end_with_the_run(world_dir: Path) -> None:
    async def main() -> None:
        async with serve_host() as found:
            async with open_gateway(world_dir, egress=listing(found), names=LOOPBACK) as way:
                reader, writer = await asyncio.open_connection("127.0.0.1", way.proxy)
                writer.write(connect(f"listed.test:{found.port}"))
                await reader.readuntil(b"\r\n\r\n")
            with contextlib.suppress(ConnectionError):  # cut is ended as well
                assert await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS) == b""
            await wait_until(found.disconnected.is_set)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", way.proxy)
            writer.transport.abort()

    asyncio.run(main())


def test_a_host_that_says_nothing_and_one_that_breaks_off_do_not_look_like_an_answer(world_dir: Path) -> None:
    async def main() -> None:
        async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")

        async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
            await writer.drain()
            writer.write_eof()
            await asyncio.sleep(0.2)

        async with (
            serve_host(silent) as found,
            open_gateway(world_dir, egress=listing(found), names=LOOPBACK) as way,
        ):
            assert status_of(await way.send_to_proxy(get(f"http://listed.test:{found.port}/"))) == 502
        async with (
            serve_host(broken) as found,
            open_gateway(world_dir, egress=listing(found), names=LOOPBACK) as way,
        ):
            answer = await way.send_to_proxy(get(f"http://listed.test:{found.port}/"))
            assert b"hello" in answer
            assert not answer.endswith(b"0\r\n\r\n")

    asyncio.run(main())


def test_a_host_that_is_not_there_is_no_refusal(world_dir: Path) -> None:
    async def main() -> None:
        async with serve_host() as gone:
            pass
        async with open_gateway(world_dir, egress=listing(gone, "nowhere.test"), names=LOOPBACK) as way:
            assert status_of(await way.send_to_proxy(connect(f"listed.test:{gone.port}"))) == 502
            assert status_of(await way.send_to_proxy(connect("nowhere.test:443"))) == 502
            assert way.refused_hosts == []

    asyncio.run(main())


def test_what_fails_in_the_run_is_not_wrapped_by_its_doors(world_dir: Path) -> None:
    async def main() -> None:
        with pytest.raises(SpawnError, match="did not start"):
            async with open_gateway(world_dir):
                raise SpawnError("It did not start.")

    asyncio.run(main())
