"""The proxy of one run: HTTP CONNECT and plain HTTP to the hosts on its list, and to nothing else.

It accepts on sockets that listen in the run's own network. A name is resolved here, the addresses are checked, and the
connection goes to a checked address, so a name that leads elsewhere on the second look gains nothing. What is said
inside a CONNECT tunnel is not looked at.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import h11
import structlog

from steadyhand.gateway.relay import exchange, relay
from steadyhand.gateway.reports import Reports, printable
from steadyhand.gateway.rules import Address, Rules, Target, parse_target
from steadyhand.ports import Emit, Listening

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""Gives the addresses of a name; raises `OSError` when there are none."""

MOST_CONNECTIONS = 64
MOST_RESOLVING = 4
MOST_ADDRESSES = 4
HEAD_BYTES = 64 * 1024
_BUFFER_BYTES = 64 * 1024
_LINGER_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the proxy waits, in seconds: for a request's head, for a name or an address, and on an idle way."""

    head: float = 15
    connect: float = 10
    idle: float = 300
    linger: float = 1


class Refused(Exception):
    """A request that is answered with `status` and goes nowhere; with `host` it is told to the job."""

    def __init__(self, status: int, text: str, host: str | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.host = host


class Egress:
    """Serves the requests of one run's processes."""

    def __init__(self, rules: Rules, reports: Reports, resolve: Resolve, patience: Patience) -> None:
        self._rules = rules
        self._reports = reports
        self._resolve = resolve
        self._patience = patience
        self._connections = asyncio.Semaphore(MOST_CONNECTIONS)
        self._resolving = asyncio.Semaphore(MOST_RESOLVING)
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
                group.create_task(self._attend(accepted), name="egress")

    async def _attend(self, accepted: socket.socket) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_connection(sock=accepted, limit=_BUFFER_BYTES)
            await self._answer(reader, writer)
        except (OSError, TimeoutError, h11.ProtocolError):
            pass  # the client or the host went away, or one of them does not speak HTTP: nobody is left to be told
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
                    async with asyncio.timeout(self._patience.linger):
                        await writer.wait_closed()
                writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conn = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        try:
            request = await self._head(conn, reader)
            if request is None:
                return
            target = wanted(request)
            host_reader, host_writer = await self._connect(target)
        except Refused as refused:
            if refused.host is not None:
                await self._reports.refused(refused.host)
            await self._refuse(reader, writer, refused)
            return
        try:
            await self._reports.reached(str(target))
            if request.method == b"CONNECT":
                await self._tunnel(conn, (reader, writer), (host_reader, host_writer))
            else:
                ends = (reader, writer), (host_reader, host_writer)
                await exchange(conn, request, target, *ends, idle=self._patience.idle)
                if conn.our_state is h11.SEND_RESPONSE:
                    await self._refuse(reader, writer, Refused(502, f"{target} gave no answer."))
        finally:
            host_writer.transport.abort()

    async def _head(self, conn: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
        """Read a request's head; null when the client went away before its end."""
        try:
            async with asyncio.timeout(self._patience.head):
                while (event := conn.next_event()) is h11.NEED_DATA:
                    data = await reader.read(_BUFFER_BYTES)
                    conn.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise Refused(error.error_status_hint, "That is not a request this proxy understands.") from error
        except TimeoutError as error:
            raise Refused(408, "The request took too long to arrive.") from error
        return event if isinstance(event, h11.Request) else None

    async def _connect(self, target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to an address of the target that may be reached. Raises `Refused`."""
        if not self._rules.allow(target):
            raise Refused(403, f"{target} is not on this agent's list of hosts.", str(target))
        for address in await self._addresses(target):
            try:
                async with asyncio.timeout(self._patience.connect):
                    return await asyncio.open_connection(str(address), target.port, limit=_BUFFER_BYTES)
            except (OSError, TimeoutError):
                continue
        raise Refused(502, f"{target} could not be reached.")

    async def _addresses(self, target: Target) -> Sequence[Address]:
        if not isinstance(target.host, str):
            return [target.host]
        try:
            async with self._resolving, asyncio.timeout(self._patience.connect):
                found = await self._resolve(target.host, target.port)
        except (OSError, UnicodeError, TimeoutError) as error:
            raise Refused(502, f"The name {target.host} could not be resolved.") from error
        allowed = [address for address in found if self._rules.allow_address(address, target.port)]
        if not allowed:
            raise Refused(
                403,
                f"{target} leads to an address that is not public; list that address itself.",
                str(target),
            )
        return allowed[:MOST_ADDRESSES]

    async def _tunnel(
        self,
        conn: h11.Connection,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        host: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        early, _ended = conn.trailing_data
        client[1].write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        if early:
            host[1].write(early)
        await relay(client, host, idle=self._patience.idle)

    async def _refuse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, refused: Refused
    ) -> None:
        """Answer, then read on a little: closing on a request that is still arriving would take the answer back."""
        body = f"Steadyhand: {refused.text}\n".encode()
        head = (
            f"HTTP/1.1 {refused.status} {_PHRASES.get(refused.status, 'Refused')}\r\n"
            "content-type: text/plain; charset=utf-8\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience.linger):
                await writer.drain()
                writer.write_eof()
                left = _LINGER_BYTES
                while left > 0 and (data := await reader.read(_BUFFER_BYTES)):
                    left -= len(data)


_PHRASES = {400: "Bad Request", 403: "Forbidden", 408: "Request Timeout", 502: "Bad Gateway"}


def wanted(request: h11.Request) -> Target:
    """Say where a request wants to go. Raises `Refused` when that is not to be understood."""
    asked = request.target.decode("ascii", "replace")
    if request.method == b"CONNECT":
        target = parse_target(asked, None)
    else:
        scheme, separator, rest = asked.partition("://")
        if not separator or scheme.lower() != "http":
            raise Refused(
                400, "This is a proxy: ask for http://HOST/, or CONNECT HOST:443 for anything else."
            )
        authority = rest.partition("/")[0].partition("?")[0].partition("#")[0]
        target = parse_target(authority, 80)
        asked = authority
    if target is None:
        raise Refused(403, "That is not the name of a host.", printable(asked))
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and b"content-length" in names:
        raise Refused(400, "A request has one length.")
    return target


@asynccontextmanager
async def open_doors(
    rules: Rules, emit: Emit, resolve: Resolve, patience: Patience
) -> AsyncIterator[Listening]:
    """Give what takes a run's listening sockets, and serve them for the length of the block."""
    egress = Egress(rules, Reports(emit), resolve, patience)
    failed: Exception | None = None
    with contextlib.ExitStack() as sockets:
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[None]] = []
            closed = False

            def listening(descriptors: Sequence[int]) -> None:
                for descriptor in descriptors:
                    listener = sockets.enter_context(socket.socket(fileno=descriptor))
                    listener.setblocking(False)
                    if closed:
                        listener.close()
                    else:
                        tasks.append(group.create_task(egress.serve(listener), name="egress listener"))

            try:
                yield listening
            except Exception as error:  # noqa: BLE001  # raised below, as it is: the group would wrap it
                failed = error
            finally:
                closed = True
                for task in tasks:
                    task.cancel()
    if failed is not None:
        raise failed
