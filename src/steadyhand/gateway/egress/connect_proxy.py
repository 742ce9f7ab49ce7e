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

import structlog

from steadyhand.gateway.egress.relay import Ends, exchange, relay
from steadyhand.gateway.egress.rules import USUAL_PORTS, Address, Rules, Target, parse_target
from steadyhand.gateway.http_messages import Answer, Request, Unreadable
from steadyhand.gateway.run_events import Reports, printable
from steadyhand.ports import Emit, Listening

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""Gives the addresses of a name; raises `OSError` when there are none."""

MOST_CONNECTIONS = 64
MOST_RESOLVING = 4
MOST_ADDRESSES = 4
HEAD_BYTES = 64 * 1024
_HTTP = 80
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
            reader, writer = await asyncio.open_connection(sock=accepted, limit=HEAD_BYTES)
            await self._answer(reader, writer)
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
                    async with asyncio.timeout(self._patience.linger):
                        await writer.wait_closed()
                writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await self._head(reader)
            if request is None:
                return
            target, path = wanted(request)
            host = await self._connect(target)
        except Refused as refused:
            if refused.host is not None:
                await self._reports.refused(refused.host)
            await self._refuse(reader, writer, refused)
            return
        try:
            await self._reports.reached(str(target))
            if request.method == b"CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await relay((reader, writer), host, idle=self._patience.idle)
            elif not await self._exchange(request, target, path, (reader, writer), host):
                await self._refuse(reader, writer, Refused(502, f"{target} gave no answer."))
        finally:
            host[1].transport.abort()

    async def _exchange(
        self, request: Request, target: Target, path: bytes, client: Ends, host: Ends
    ) -> bool:
        if request.waits:
            client[1].write(b"HTTP/1.1 100 Continue\r\n\r\n")
        name = f"{target}:{target.port}" if target.port in USUAL_PORTS - {_HTTP} else str(target)
        host[1].write(request.onward(path, name.encode()))
        answer = Answer(without_body=request.method == b"HEAD")
        return await exchange(request, answer, client, host, idle=self._patience.idle)

    async def _head(self, reader: asyncio.StreamReader) -> Request | None:
        """Read a request's head; null when the client went away before its end."""
        try:
            async with asyncio.timeout(self._patience.head):
                return Request.read(await reader.readuntil(b"\r\n\r\n"))
        except asyncio.IncompleteReadError:
            return None
        except asyncio.LimitOverrunError as error:
            raise Refused(431, "The head of the request is too long.") from error
        except Unreadable as error:
            raise Refused(400, "That is not a request this proxy understands.") from error
        except TimeoutError as error:
            raise Refused(408, "The request took too long to arrive.") from error

    async def _connect(self, target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to an address of the target that may be reached. Raises `Refused`."""
        if not self._rules.allow(target):
            raise Refused(403, f"{target} is not on this agent's list of hosts.", str(target))
        for address in await self._addresses(target):
            try:
                async with asyncio.timeout(self._patience.connect):
                    return await asyncio.open_connection(str(address), target.port, limit=HEAD_BYTES)
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
                while left > 0 and (data := await reader.read(HEAD_BYTES)):
                    left -= len(data)


_PHRASES = {
    400: "Bad Request",
    403: "Forbidden",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
}


def wanted(request: Request) -> tuple[Target, bytes]:
    """Say where a request wants to go, and the path there. Raises `Refused` when that is not to be understood."""
    asked = request.target.decode("latin-1")
    path = ""
    if request.method == b"CONNECT":
        target = parse_target(asked, None)
    else:
        scheme, separator, rest = asked.partition("://")
        if not separator or scheme.lower() != "http":
            raise Refused(
                400, "This is a proxy: ask for http://HOST/, or CONNECT HOST:443 for anything else."
            )
        rest = rest.partition("#")[0]
        cut = min((at for mark in "/?" if (at := rest.find(mark)) >= 0), default=len(rest))
        asked, path = rest[:cut], rest[cut:]
        target = parse_target(asked, _HTTP)
    if target is None:
        raise Refused(403, "That is not the name of a host.", printable(asked))
    return target, (path if path.startswith("/") else f"/{path}").encode("latin-1")


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
