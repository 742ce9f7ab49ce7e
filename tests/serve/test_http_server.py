"""Connections of the HTTP server: deadlines, bounds, and responses that are sent before a body was read."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from steadyhand.api.transport.context import ApiOptions
from steadyhand.api.transport.middleware import AllowedHosts, RequestMiddleware
from steadyhand.api.transport.sse import DirectWriter, EventStreamResponse, Frame, framed_chunk
from steadyhand.redact import NO_REDACTION
from steadyhand.serve.connection_table import SPARE_CONNECTIONS, ConnectionLimits
from steadyhand.serve.http_server import HttpServer
from steadyhand.testing.service import wait_until

SECONDS = 20.0
LIMITS = ConnectionLimits(
    total=40,
    per_address=40,
    head_seconds=0.5,
    body_seconds=0.5,
    drain_seconds=0.5,
    drain_bytes=4 * 1024 * 1024,
    write_seconds=0.5,
)
PATIENT = replace(LIMITS, head_seconds=SECONDS, body_seconds=SECONDS, drain_seconds=SECONDS)
GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
BIG = 24 * 1024 * 1024


class Stream:
    """An event stream whose frames come from the test, by its task or written at once."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._frames: asyncio.Queue[bytes] = asyncio.Queue()
        self.writer = DirectWriter(framed_chunk)

    async def source(self) -> AsyncGenerator[Frame, None]:
        while frame := await self._frames.get():
            yield Frame(frame)

    def put(self, frame: bytes) -> None:
        """Let the task send a frame; an empty one ends the stream."""
        self._loop.call_soon_threadsafe(self._frames.put_nowait, frame)

    def write(self, data: bytes) -> bool:
        """Write at once; return False if that could not be."""

        async def write() -> bool:
            return self.writer.write(data)

        return asyncio.run_coroutine_threadsafe(write(), self._loop).result(SECONDS)


class App:
    """The routes of the tests: an answer at once, a body that is read, one that is not, a wait, a long answer."""

    def __init__(self) -> None:
        self.left = threading.Event()
        self.waiting = 0
        self.streams: list[Stream] = []
        self.is_key_valid = True

    async def health(self, _request: Request) -> Response:
        return PlainTextResponse("well")

    async def refuse(self, _request: Request) -> Response:
        return PlainTextResponse("no", 401)

    async def echo(self, request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async def wait(self, request: Request) -> Response:
        try:
            await request.body()
            self.waiting += 1
            while (await request.receive())["type"] != "http.disconnect":
                pass
        except ClientDisconnect:
            pass
        self.left.set()
        return PlainTextResponse("late")

    async def stream(self, _request: Request) -> Response:
        stream = Stream()
        self.streams.append(stream)
        return EventStreamResponse(
            stream.source(), lambda: self.is_key_valid, preamble=b": open\n\n", direct_writer=stream.writer
        )

    async def long(self, _request: Request) -> Response:
        return PlainTextResponse(b"x" * BIG)

    def asgi(self) -> RequestMiddleware:
        methods = ["GET", "POST"]
        routes = [
            Route(f"/{name}", getattr(self, name), methods=methods)
            for name in ("health", "refuse", "echo", "wait", "long", "stream")
        ]
        hosts = AllowedHosts(ApiOptions(allowed_hosts=("*",)))
        return RequestMiddleware(Starlette(routes=routes), hosts=hosts, redactor=NO_REDACTION)


def test_a_connection_that_is_accepted_just_before_the_end_is_passed_on() -> None:
    async def scene() -> None:
        passed: list[socket.socket] = []
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        server = HttpServer(App().asgi(), PATIENT, on_started=lambda: None)
        server.pass_connections_to(passed.append)
        async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve(sockets=[listener]))
            await server.listening.wait()
            with socket.create_connection(address, SECONDS) as client:
                client.sendall(GET)
                await asyncio.sleep(0)
                await asyncio.sleep(0)  # the kernel's connection is accepted, and not one of the server yet
                await server.shutdown([listener])
                server.stop()
                await serving
                (connection,) = passed
                with connection:
                    assert connection.recv(1000) == GET

    asyncio.run(scene())


@contextmanager
def serving(limits: ConnectionLimits) -> Iterator[tuple[int, App]]:
    """Run the server in a thread; yield its port and its app."""
    app, started = App(), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    server = HttpServer(app.asgi(), limits, on_started=started.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        assert started.wait(SECONDS)
        yield port, app
    finally:
        server.should_exit = True
        thread.join(SECONDS)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def quick() -> Iterator[tuple[int, App]]:
    """A server with short deadlines."""
    with serving(LIMITS) as found:
        yield found


@pytest.fixture(scope="module")
def patient() -> Iterator[tuple[int, App]]:
    """A server with deadlines that no test reaches."""
    with serving(PATIENT) as found:
        yield found


@contextmanager
def connected(port: int, data: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), SECONDS) as sock:
        sock.sendall(data)
        yield sock


def read_all(sock: socket.socket) -> bytes:
    """Read to the end; a reset fails, and so does an end that does not come."""
    parts = []
    while part := sock.recv(65_536):
        parts.append(part)
    return b"".join(parts)


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1])


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"", b""),
        pytest.param(b"\r\n", b"HTTP/1.1 408 ", marks=pytest.mark.long),
        (b"GET /health HTTP/1.1\r\nhost: x\r\nx-a: ", b"HTTP/1.1 408 "),
        pytest.param(GET + b"\r\n", b"HTTP/1.1 200 ", marks=pytest.mark.long),
        (GET + b"GET /hea", b"HTTP/1.1 200 "),
        pytest.param(
            b"POST /health HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc",
            b"HTTP/1.1 200 ",
            marks=pytest.mark.long,
        ),
        (b"POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc", b"HTTP/1.1 401 "),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc", b"", marks=pytest.mark.long
        ),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", b""),
    ],
)
def test_a_request_that_never_ends_is_closed_at_its_deadline(
    quick: tuple[int, App], sent: bytes, expected: bytes
) -> None:
    with connected(quick[0], sent) as sock:
        assert read_all(sock)[: len(expected) or None] == expected


def test_a_head_that_comes_a_byte_at_a_time_is_closed_at_its_deadline(quick: tuple[int, App]) -> None:
    with connected(quick[0], b"GET /health HTTP/1.1\r\nhost: x\r\nx-a: ") as sock:
        sock.settimeout(0.05)
        end = time.monotonic() + SECONDS
        data = b""
        while not data:
            assert time.monotonic() < end
            try:
                sock.sendall(b"a")
                data = sock.recv(100)
            except TimeoutError:
                continue
    assert status(data) == 408


def test_a_head_that_is_too_long_is_refused(patient: tuple[int, App]) -> None:
    with connected(patient[0]) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nx-a: " + b"a" * (200 * 1024))
        assert status(sock.recv(100)) == 431
        sock.shutdown(socket.SHUT_WR)
        read_all(sock)


def test_a_client_that_does_not_read_is_closed(quick: tuple[int, App]) -> None:
    with connected(quick[0], b"GET /long HTTP/1.1\r\nhost: x\r\n\r\n") as sock:
        sock.recv(1)
        port = sock.getsockname()[1]
        wait_until(lambda: not _is_open(port, quick[0]))
        assert len(read_all(sock)) < BIG


def _is_open(port: int, server_port: int) -> bool:
    """Return true while the server's side of the connection of a client's port is open."""
    for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if local.endswith(f":{server_port:04X}") and remote.endswith(f":{port:04X}"):
            return state == "01"  # established
    return False


@pytest.mark.parametrize("close", [b"", b"connection: close\r\n"])
def test_an_answer_that_comes_before_the_body_was_sent_is_read(
    patient: tuple[int, App], close: bytes
) -> None:
    size = 3 * 1024 * 1024
    head = b"POST /refuse HTTP/1.1\r\nhost: x\r\n%scontent-length: %d\r\n\r\n" % (close, size)
    with connected(patient[0], head) as sock:
        for _ in range(size // 65_536):
            sock.sendall(b"x" * 65_536)
        data = sock.recv(65_536)
        assert status(data) == 401
        sock.shutdown(socket.SHUT_WR)
        read_all(sock)


def test_a_body_without_an_end_is_read_up_to_a_bound_after_its_answer(patient: tuple[int, App]) -> None:
    head = b"POST /refuse HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 99999999999\r\n\r\n"
    sent = 0
    with connected(patient[0], head) as sock, suppress(ConnectionError):
        while sent < 16 * LIMITS.drain_bytes:
            sent += sock.send(b"x" * 65_536)
    assert LIMITS.drain_bytes <= sent < 16 * LIMITS.drain_bytes


def test_a_bad_request_is_answered_with_more_on_its_way(patient: tuple[int, App]) -> None:
    with connected(patient[0], b"NONSENSE\r\n\r\n" + b"x" * 300_000) as sock:
        assert status(sock.recv(100)) == 400
        sock.sendall(b"x" * 300_000)
        sock.shutdown(socket.SHUT_WR)
        read_all(sock)


@pytest.mark.parametrize("path", [b"/echo", b"/health", b"/refuse"])
def test_a_post_and_the_end_of_input_are_answered(patient: tuple[int, App], path: bytes) -> None:
    request = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc" % path
    with connected(patient[0], request) as sock:
        sock.shutdown(socket.SHUT_WR)
        assert status(read_all(sock)) in (200, 401)


def test_the_end_of_input_is_a_disconnect_for_a_route_that_waits() -> None:
    request = b"POST /wait HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc"
    with serving(PATIENT) as (port, app), connected(port, request) as sock:
        sock.shutdown(socket.SHUT_WR)
        assert app.left.wait(SECONDS)


def test_the_end_of_input_before_the_end_of_a_body_closes(patient: tuple[int, App]) -> None:
    with connected(patient[0], b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc") as sock:
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""


@pytest.mark.parametrize("limits", [PATIENT, replace(PATIENT, total=1_000, per_address=40)])
def test_half_open_connections_make_room_for_whole_requests(limits: ConnectionLimits) -> None:
    with serving(limits) as (port, _), ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(connected(port, b"GET /health HTTP/1.1\r\nx-a: "))
            with connected(port, GET) as sock:
                assert status(sock.recv(100)) == 200


def test_probes_are_answered_while_every_connection_has_a_request() -> None:
    wait = b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n"
    with serving(PATIENT) as (port, app), ExitStack() as stack:
        held = [stack.enter_context(connected(port, wait)) for _ in range(PATIENT.total)]
        wait_until(lambda: app.waiting == PATIENT.total)
        with connected(port, GET) as sock:
            assert status(sock.recv(100)) == 200

        with connected(port, b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\n") as sock:
            data = read_all(sock)
        assert status(data) == 503
        assert json.loads(data.partition(b"\r\n\r\n")[2])["code"] == "unavailable"
        for _ in range(2 * SPARE_CONNECTIONS):
            stack.enter_context(connected(port))
        with connected(port, GET) as sock:
            assert status(sock.recv(100)) == 200
        for each in held:
            each.setblocking(False)
            with pytest.raises(BlockingIOError):
                each.recv(1)


STREAM = b"GET /stream HTTP/1.1\r\nhost: localhost\r\n\r\n"


@contextmanager
def streaming(server: tuple[int, App], data: bytes = STREAM) -> Iterator[tuple[socket.socket, Stream]]:
    """Open an event stream and read its beginning."""
    port, app = server
    count = len(app.streams)
    with connected(port, data) as sock:
        assert read_until(sock, b": open\n\n\r\n").startswith(b"HTTP/1.1 200 ")
        wait_until(lambda: len(app.streams) > count)
        yield sock, app.streams[-1]


def read_until(sock: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        part = sock.recv(65_536)
        assert part, data[-200:]
        data += part
    return data


def test_what_is_written_at_once_comes_as_chunks_between_those_of_the_task(patient: tuple[int, App]) -> None:
    with streaming(patient) as (sock, stream):
        assert stream.write(b"data: 1\n\n")
        assert stream.write(b"data: 2\n\n")
        assert read_until(sock, b"2\n\n\r\n") == b"9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n"
        stream.put(b"data: 33\n\n")
        assert read_until(sock, b"33\n\n\r\n") == b"a\r\ndata: 33\n\n\r\n"
        assert stream.write(b"data: 4\n\n")
        assert read_until(sock, b"4\n\n\r\n") == b"9\r\ndata: 4\n\n\r\n"
        stream.put(b"")
        assert read_until(sock, b"\r\n") == b"0\r\n\r\n"
        assert not stream.write(b"data: 5\n\n")
        sock.sendall(GET)  # the connection serves the next request, without a trace of it
        assert read_until(sock, b"well").startswith(b"HTTP/1.1 200 ")
        assert not stream.write(b"data: 6\n\n")
    with streaming(patient, STREAM + GET) as (sock, stream):  # a request behind it
        stream.put(b"data: 7\n\n")
        assert read_until(sock, b"7\n\n\r\n") == b"9\r\ndata: 7\n\n\r\n"
        stream.put(b"")
        assert read_until(sock, b"well").startswith(b"0\r\n\r\nHTTP/1.1 200 ")


def test_a_client_that_reads_slowly_bounds_what_is_written_at_once(patient: tuple[int, App]) -> None:
    frame = b"data: " + b"x" * 4_000 + b"\n\n"
    with streaming(patient) as (slow, stream), streaming(patient) as (other, beside):
        written = 0
        while stream.write(frame):
            written += 1
            assert written * len(frame) < BIG  # the buffers of both sockets, and a bound
        assert not stream.write(frame)
        assert beside.write(b"data: here\n\n")
        read_until(other, b"here\n\n\r\n")
        stream.put(b"data: last\n\n")  # the task waits until there is room
        data = read_until(slow, b"last\n\n\r\n")
        assert data.count(b"fa8\r\n" + frame + b"\r\n") == written
        assert stream.write(frame)


def test_nothing_is_written_at_once_for_a_key_that_is_no_longer_valid(patient: tuple[int, App]) -> None:
    with streaming(patient) as (sock, stream):
        assert stream.write(b"data: 1\n\n")
        read_until(sock, b"1\n\n\r\n")
        patient[1].is_key_valid = False
        try:
            assert not stream.write(b"data: 2\n\n")
            stream.put(b"data: 2\n\n")
            assert read_until(sock, b"\r\n") == b"0\r\n\r\n"
        finally:
            patient[1].is_key_valid = True
