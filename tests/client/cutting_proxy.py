"""A proxy that breaks connections where a test says, as a network does once in a while."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_SECONDS = 60.0


class CuttingProxy:
    """Hands bytes on to the server at `url`, and cuts the answers to some requests.

    An answer to a request with `request_part` in it is cut once it contains `answer_part`, which is passed on; an empty
    one loses the whole answer. This happens `times` times; `cuts` counts them, and `found` all such
    answers. With `tls` its clients speak TLS.
    """

    def __init__(
        self,
        url: str,
        request_part: bytes,
        answer_part: bytes = b"",
        *,
        times: int = 1,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._to = urlsplit(url)
        self._tls = tls
        self.request_part, self.answer_part, self._times = request_part, answer_part, times
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self.cuts = self.found = 0
        self.requests: list[bytes] = []

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self._listener.getsockname()[1]}"

    def forward_to(self, url: str) -> None:
        """Hand new connections on to another address."""
        self._to = urlsplit(url)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            left = list(self._open)
        for end in left:
            _end(end)
        self._thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection((self._to.hostname, self._to.port), timeout=_SECONDS)
            except OSError:  # it is being started again
                _end(client)
                continue
            client.settimeout(_SECONDS)
            if self._tls is not None:
                try:
                    client = self._tls.wrap_socket(client, server_side=True)
                except OSError:  # the client does not trust it
                    self._forget(client, server)
                    continue
            with self._lock:
                self._open |= {client, server}
            is_chosen = threading.Event()
            pumps = (self._forward_requests, self._forward_answers)
            for pump in pumps:
                threading.Thread(target=pump, args=(client, server, is_chosen), daemon=True).start()

    def _forward_requests(
        self, client: socket.socket, server: socket.socket, is_chosen: threading.Event
    ) -> None:
        for piece in _pieces(client):
            if self.request_part in piece:
                self.requests.append(piece)
                is_chosen.set()
            with contextlib.suppress(OSError):
                server.sendall(piece)
        self._forget(client, server)

    def _forward_answers(
        self, client: socket.socket, server: socket.socket, is_chosen: threading.Event
    ) -> None:
        received = b""
        for piece in _pieces(server):
            cut = -1
            if is_chosen.is_set():
                received += piece
                cut = received.find(self.answer_part)
            if cut >= 0 and self._should_cut():
                end = cut + len(self.answer_part) - (len(received) - len(piece))
                with contextlib.suppress(OSError):
                    client.sendall(piece[: max(0, end)])
                break
            with contextlib.suppress(OSError):
                client.sendall(piece)
        self._forget(client, server)

    def _should_cut(self) -> bool:
        with self._lock:
            self.found += 1
            cutting = self.cuts < self._times
            self.cuts += cutting
        return cutting

    def _forget(self, *ends: socket.socket) -> None:
        for end in ends:
            _end(end)
        with self._lock:
            self._open.difference_update(ends)


def _pieces(end: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(OSError):
        while piece := end.recv(1 << 16):
            yield piece


def _end(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
