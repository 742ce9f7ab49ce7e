"""The proxy of one run: HTTP CONNECT and plain HTTP to the hosts on its list, and to no other.

It accepts on sockets that listen in the run's own network. It resolves a name, checks the addresses and connects to a
checked address, so a name that resolves to another address on the second lookup gains nothing. The content of a CONNECT
tunnel is not read.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from steadyhand.addresses import DEFAULT_PORTS, Address, Target, parse_target
from steadyhand.gateway.egress.relay import Streams, relay, relay_request
from steadyhand.gateway.egress.rules import EgressRules
from steadyhand.gateway.http_messages import MalformedMessage, ProxyRequest, ProxyResponse
from steadyhand.gateway.run_events import RunEvents, printable

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""Returns the addresses of a name; raises `OSError` if there are none."""

MAX_CONNECTIONS = 64
MAX_LOOKUPS = 4
MAX_ADDRESSES = 4
MAX_HEAD_BYTES = 64 * 1024
_HTTP_PORT = 80
_LINGER_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class ProxyTimeouts:
    """The longest waits of the proxy in seconds: for a request's head, for a name or an address, and on an idle way."""

    head: float = 15
    connect: float = 10
    idle: float = 300
    linger: float = 1


class EgressDenied(Exception):
    """A request that is answered with `status` and not forwarded; a `host` is reported to the job."""

    def __init__(self, status: int, text: str, host: str | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.host = host


class ConnectProxy:
    """Serves the requests of one run's processes."""

    def __init__(
        self, rules: EgressRules, events: RunEvents, resolve: Resolve, timeouts: ProxyTimeouts
    ) -> None:
        self._rules = rules
        self._events = events
        self._resolve = resolve
        self._timeouts = timeouts
        self._connections = asyncio.Semaphore(MAX_CONNECTIONS)
        self._lookups = asyncio.Semaphore(MAX_LOOKUPS)
        self._log = structlog.get_logger("steadyhand.egress")

    async def serve(self, listener: socket.socket) -> None:
        """Accept until cancelled; when there are too many at once the rest wait in the kernel."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                await self._connections.acquire()
                try:
                    accepted, _ = await loop.sock_accept(listener)
                except OSError:  # out of descriptors, or a client that went away in the queue
                    self._connections.release()
                    await asyncio.sleep(0.1)
                    continue
                group.create_task(self._serve_connection(accepted), name="egress")

    async def _serve_connection(self, accepted: socket.socket) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_connection(sock=accepted, limit=MAX_HEAD_BYTES)
            await self._handle_request(reader, writer)
        except OSError:
            pass  # the client went away: nobody is left to be told
        except asyncio.CancelledError:
            if writer is not None:
                writer.transport.abort()
            raise
        except Exception:  # noqa: BLE001  # the boundary of a connection: logged, and the others go on
            self._log.exception("egress.failed")
        finally:
            self._connections.release()
            if writer is None:
                accepted.close()
            else:
                writer.close()
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(self._timeouts.linger):
                        await writer.wait_closed()
                writer.transport.abort()

    async def _handle_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await self._read_head(reader)
            if request is None:
                return
            target, path = parse_request_target(request)
            host = await self._connect(target)
        except EgressDenied as denied:
            if denied.host is not None:
                await self._events.report_refused_host(denied.host)
            await self._send_denied(reader, writer, denied)
            return
        try:
            await self._events.report_reached_host(str(target))
            if request.method == b"CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await relay((reader, writer), host, idle=self._timeouts.idle)
            elif not await self._forward_http(request, target, path, (reader, writer), host):
                await self._send_denied(reader, writer, EgressDenied(502, f"{target} gave no answer."))
        finally:
            host[1].transport.abort()

    async def _forward_http(
        self, request: ProxyRequest, target: Target, path: bytes, client: Streams, host: Streams
    ) -> bool:
        if request.expects_continue:
            client[1].write(b"HTTP/1.1 100 Continue\r\n\r\n")
        host_header = (
            f"{target}:{target.port}" if target.port in DEFAULT_PORTS - {_HTTP_PORT} else str(target)
        )
        host[1].write(request.forwarded_head(path, host_header.encode()))
        response = ProxyResponse(without_body=request.method == b"HEAD")
        return await relay_request(request, response, client, host, idle=self._timeouts.idle)

    async def _read_head(self, reader: asyncio.StreamReader) -> ProxyRequest | None:
        """Read a request's head; return None if the client disconnected before its end."""
        try:
            async with asyncio.timeout(self._timeouts.head):
                return ProxyRequest.parse(await reader.readuntil(b"\r\n\r\n"))
        except asyncio.IncompleteReadError:
            return None
        except asyncio.LimitOverrunError as error:
            raise EgressDenied(431, "The head of the request is too long.") from error
        except MalformedMessage as error:
            raise EgressDenied(400, "That is not a request this proxy understands.") from error
        except TimeoutError as error:
            raise EgressDenied(408, "The request took too long to arrive.") from error

    async def _connect(self, target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to an address of the target that may be reached. Raises `Refused`."""
        if not self._rules.allows(target):
            advice = self._rules.near_miss(target)
            raise EgressDenied(403, f"{target} is not on this agent's list of hosts.{advice}", str(target))
        for address in await self._resolve_target(target):
            try:
                async with asyncio.timeout(self._timeouts.connect):
                    return await asyncio.open_connection(str(address), target.port, limit=MAX_HEAD_BYTES)
            except (OSError, TimeoutError):
                continue
        raise EgressDenied(502, f"{target} could not be reached.")

    async def _resolve_target(self, target: Target) -> Sequence[Address]:
        if not isinstance(target.host, str):
            return [target.host]
        try:
            async with self._lookups, asyncio.timeout(self._timeouts.connect):
                addresses = await self._resolve(target.host, target.port)
        except (OSError, UnicodeError, TimeoutError) as error:
            raise EgressDenied(502, f"The name {target.host} could not be resolved.") from error
        allowed = [address for address in addresses if self._rules.allows_address(address, target.port)]
        if not allowed:
            raise EgressDenied(
                403,
                f"{target} leads to an address that is not public; list that address itself.",
                str(target),
            )
        return allowed[:MAX_ADDRESSES]

    async def _send_denied(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, denied: EgressDenied
    ) -> None:
        """Answer, then read on a little: closing on a request that is still arriving would take the answer back."""
        body = f"Steadyhand: {denied.text}\n".encode()
        head = (
            f"HTTP/1.1 {denied.status} {_REASON_PHRASES.get(denied.status, 'Refused')}\r\n"
            "content-type: text/plain; charset=utf-8\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeouts.linger):
                await writer.drain()
                writer.write_eof()
                bytes_left = _LINGER_BYTES
                while bytes_left > 0 and (data := await reader.read(MAX_HEAD_BYTES)):
                    bytes_left -= len(data)


_REASON_PHRASES = {
    400: "Bad Request",
    403: "Forbidden",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
}


def parse_request_target(request: ProxyRequest) -> tuple[Target, bytes]:
    """Return the target of a request and its path. Raises `EgressDenied` if they cannot be parsed."""
    authority = request.target.decode("latin-1")
    path = ""
    if request.method == b"CONNECT":
        target = parse_target(authority, None)
    else:
        scheme, separator, rest = authority.partition("://")
        if not separator or scheme.lower() != "http":
            raise EgressDenied(
                400, "This is a proxy: ask for http://HOST/, or CONNECT HOST:443 for anything else."
            )
        rest = rest.partition("#")[0]
        path_start = min((at for mark in "/?" if (at := rest.find(mark)) >= 0), default=len(rest))
        authority, path = rest[:path_start], rest[path_start:]
        target = parse_target(authority, _HTTP_PORT)
    if target is None:
        raise EgressDenied(403, "That is not the name of a host.", printable(authority))
    return target, (path if path.startswith("/") else f"/{path}").encode("latin-1")
