"""The address of their own on which the metrics are, without a key: `[service] metrics_bind`."""

import ipaddress
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from starlette.types import Receive, Scope, Send

from steadyhand.api.transport.middleware import parse_host
from steadyhand.config.file_schema import split_bind_address
from steadyhand.config.settings import Settings
from steadyhand.metrics.names import ALL_METRIC_SCOPES
from steadyhand.serve.connection_table import ConnectionLimits
from steadyhand.serve.http_server import HttpServer
from steadyhand.serve.listen_socket import bind_socket
from steadyhand.serve.metrics_setup import ScrapeService

_LIMITS = ConnectionLimits(total=32, per_address=16)
TakeListener = Callable[[str, str, int], socket.socket | None]
"""Returns an inherited socket by its name, its host and its port; see `handover.Inheritance.take_listener`."""
_REMEDY = "Choose another address with [service] metrics_bind."


@contextmanager
def open_metrics_socket(
    settings: Settings, take_listener: TakeListener = lambda _name, _host, _port: None
) -> Iterator[socket.socket | None]:
    """Bind the address of the metrics for the length of the block; None without one. Raise `ConfigError`.

    `take_listener` returns the socket of the service before this one, if it is on the same address.
    """
    address = settings.tables.service.metrics_bind
    if address is None:
        yield None
        return
    host, port = split_bind_address(address)
    with take_listener("metrics", host, port) or bind_socket(host, port, lambda _: _REMEDY) as sock:
        yield sock


def create_metrics_server(scrape: ScrapeService, sock: socket.socket) -> HttpServer:
    """Return the server of the metrics on a bound socket."""
    host, port = sock.getsockname()[:2]
    url = f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"

    def on_started() -> None:
        structlog.get_logger("steadyhand").info("metrics.listening", url=url)

    return HttpServer(MetricsApp(scrape, host), _LIMITS, on_started)


class MetricsApp:
    """The ASGI app with `/metrics` alone.

    On loopback it answers to a name of loopback only: else a web page could read it by a name that it makes resolve
    to this machine.
    """

    def __init__(self, scrape: ScrapeService, host: str) -> None:
        self._scrape = scrape
        self._is_loopback = ipaddress.ip_address(host).is_loopback

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Respond to one request."""
        if scope["type"] != "http":
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if scope["path"] != "/metrics":
            await _send(send, 404, b"The metrics are at /metrics.\n")
        elif scope["method"] != "GET":
            await _send(send, 405, b"The metrics are read with GET.\n")
        elif self._is_loopback and not _names_loopback(headers.get(b"host", b"")):
            await _send(send, 403, b"The host of the request is not this machine.\n")
        else:
            accept = headers.get(b"accept", b"").decode("latin-1")
            body, content_type = await self._scrape(accept, ALL_METRIC_SCOPES)
            await _send(send, 200, body, content_type.encode("latin-1"))


def _names_loopback(authority: bytes) -> bool:
    name = parse_host(authority.decode("latin-1"))
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def _send(
    send: Send, status: int, body: bytes, content_type: bytes = b"text/plain; charset=utf-8"
) -> None:
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
