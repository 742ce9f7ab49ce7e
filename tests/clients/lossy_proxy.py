"""A proxy that loses the first answer to a request that says so, as a network does once in a while."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

LOSE_HEADER = "lose-the-first-answer"
"""A request with this in its body is answered by nothing the first time, once its answer is there."""
_CHUNK = 1 << 16
_SECONDS = 120.0


class LossyProxy:
    """Hands bytes on between clients and the server at `url`, in threads of its own; `lost` tells."""

    def __init__(self, url: str) -> None:
        self._to = urlsplit(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self.lost_answers = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

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
        for one in left:
            _end(one)
        self._thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection((self._to.hostname, self._to.port), timeout=_SECONDS)
            client.settimeout(_SECONDS)
            line = _Connection(self, client, server)
            with self._lock:
                self._open |= {client, server}
            for pump in (line.forward_request, line.forward_response):
                threading.Thread(target=pump, daemon=True).start()

    def should_lose(self) -> bool:
        """Say whether an answer is still to be lost, which it then is."""
        with self._lock:
            first, self.lost_answers = not self.lost_answers, True
        return first

    def forget(self, *ends: socket.socket) -> None:
        for end in ends:
            _end(end)
        with self._lock:
            self._open.difference_update(ends)


class _Connection:
    """One connection of a client, and the one of its own to the server."""

    def __init__(self, proxy: LossyProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._losing = False

    def forward_request(self) -> None:
        tail = b""
        for piece in _pieces(self._client):
            tail += piece
            if LOSE_HEADER.encode() in tail:
                self._losing, tail = True, b""
            tail = tail[-len(LOSE_HEADER) :]
            with contextlib.suppress(OSError):
                self._server.sendall(piece)
        self._proxy.forget(self._client, self._server)

    def forward_response(self) -> None:
        for piece in _pieces(self._server):
            # An answer that is whole begins when its run has ended.
            if self._losing and self._proxy.should_lose():
                break
            self._losing = False
            with contextlib.suppress(OSError):
                self._client.sendall(piece)
        self._proxy.forget(self._client, self._server)


def _pieces(end: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(OSError):
        while piece := end.recv(_CHUNK):
            yield piece


def _end(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
