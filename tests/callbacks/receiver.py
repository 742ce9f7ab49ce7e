"""A receiver of callbacks on loopback that answers as a test says, in threads of its own."""

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, slots=True)
class Received:
    """One message; header names are in lower case."""

    path: str
    headers: Mapping[str, str]
    body: str


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: a status, headers, and a body that may go on for long; `hangs` sends nothing."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    hangs: bool = False


class Receiver:
    """The messages that arrived, in order, and the reply to each of them."""

    def __init__(self, url: str, port: int) -> None:
        self.url = url
        self.port = port
        self.messages: list[Received] = []
        self.reply: Callable[[int, Received], Reply] = lambda _number, _message: Reply()
        """Returns the reply to a message by its number from 1 on."""
        self.lock = threading.Lock()
        self.release = threading.Event()
        """Ends the waits of the replies that hang."""


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Start a receiver on a free port, over TLS with a context."""
    handler: Any = type("Handler", (_Handler,), {})
    with _Server(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        port = int(server.server_address[1])
        handler.receiver = receiver = Receiver(
            f"{'http' if tls is None else 'https'}://127.0.0.1:{port}", port
        )
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.release.set()
            server.shutdown()
            thread.join(10)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_arguments: object) -> None:
        """Write nothing: a service that is killed resets its connections."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    receiver: Receiver

    def do_POST(self) -> None:
        length = int(self.headers["content-length"] or 0)
        body = self.rfile.read(length).decode()
        if len(body) < length:  # its sender was killed
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        message = Received(self.path, headers, body)
        with self.receiver.lock:
            self.receiver.messages.append(message)
            reply = self.receiver.reply(len(self.receiver.messages), message)
        if reply.hangs:
            self.receiver.release.wait(30)
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if "content-length" not in {name.lower() for name in reply.headers}:
            self.send_header("content-length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    do_GET = do_PUT = do_POST  # noqa: N815  # the names that the base class calls

    def log_message(self, *_arguments: object) -> None:
        """Write nothing."""
