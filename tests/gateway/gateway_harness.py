"""A gateway with its agent's ends: the model's socket, the proxy's port, and hosts that write down what they get."""

import asyncio
import ipaddress
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2

from steadyhand.agents import Agent, Workspace
from steadyhand.events import Body, EgressRefused, TextDelta, Warned
from steadyhand.gateway import (
    Accounts,
    Credential,
    ModelGateway,
    Patience,
    Prices,
    Provider,
    Resolve,
    Waits,
    budget_of,
    slot_folder,
)
from steadyhand.gateway.egress.rules import Address
from steadyhand.ports import AllowancesOf, Attendance, JobFiles, Place, Work
from steadyhand.testing.contracts.samples import Clock, a_job
from steadyhand.testing.ledger import MemoryLedger
from steadyhand.testing.service import PLAIN_HTTP

CANARY = "sk-ant-canary-the-real-key"
KEY = Credential("api_key", CANARY)
QUICK = Patience(head=0.5, connect=2, idle=5, linger=0.2)
ENOUGH = 10.0
SHORT_SLEEP = 30.0
SOCKET_INSIDE = "/run/steadyhand/model.sock"

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def place_of(root: Path, slot: int = 0, user: int | None = None) -> Place:
    return Place(
        workspace=Workspace("scratch"),
        files=JobFiles(root),
        directory=root,
        home=root,
        config=None,
        user=user,
        commit=None,
        slot=slot,
    )


def work_in(place: Place, egress: Sequence[str] = (), **job: Any) -> Work:
    return Work(a_job(**job), Agent("claude", egress=tuple(egress)), place)


FLAT = Prices.load(
    {"claude-*": dict.fromkeys(("input", "output", "cache_read", "cache_write_5m", "cache_write_1h"), "1")}
)
"""A micro-dollar for each token of whatever kind, so that what is spent is what was counted."""


class Hurried(Clock):
    """A clock that short sleeps move on at once; who sleeps for longer sleeps until a test lets time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []
        self._moved = asyncio.Event()

    def pass_by(self, length: timedelta) -> None:
        super().pass_by(length)
        self._moved.set()
        self._moved = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if seconds <= SHORT_SLEEP:
            self.pass_by(timedelta(seconds=seconds))
            await asyncio.sleep(0)
            return
        end = self.now + timedelta(seconds=seconds)
        while self.now < end:
            await self._moved.wait()


@dataclass
class Way:
    """What a run has of the gateway."""

    socket: Path
    proxy: int = 0
    told: list[Body | TextDelta] = field(default_factory=list)
    ledger: MemoryLedger = field(default_factory=MemoryLedger)
    attendance: Attendance | None = None
    gateway: ModelGateway | None = None

    async def emit(self, body: Body | TextDelta) -> None:
        self.told.append(body)

    @property
    def refused(self) -> list[str]:
        return [body.host for body in self.told if isinstance(body, EgressRefused)]

    def warned(self, code: str) -> list[str]:
        return [body.message for body in self.told if isinstance(body, Warned) and body.code == code]

    @property
    def attended(self) -> Attendance:
        assert self.attendance is not None
        return self.attendance

    def client(self) -> httpx2.AsyncClient:
        """A client on the model's socket, as the CLI is one."""
        return httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=str(self.socket), verify=PLAIN_HTTP),
            base_url="http://model.invalid",
            timeout=ENOUGH,
        )

    async def say(self, request: bytes) -> bytes:
        """Send bytes to the model's socket; all that comes back until the end."""
        return await conversation(await asyncio.open_unix_connection(self.socket), request)

    async def ask(self, request: bytes) -> bytes:
        """Send bytes to the proxy; all that comes back until the end."""
        return await conversation(await asyncio.open_connection("127.0.0.1", self.proxy), request)


async def conversation(ends: tuple[asyncio.StreamReader, asyncio.StreamWriter], request: bytes) -> bytes:
    reader, writer = ends
    heard = b""
    try:
        async with asyncio.timeout(ENOUGH):
            writer.write(request)
            while piece := await reader.read(1 << 16):
                heard += piece
    except ConnectionError:
        pass  # cut: what was heard until then counts
    finally:
        writer.transport.abort()
    return heard


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


@asynccontextmanager
async def way_out(
    root: Path,
    upstream: str | None = None,
    *,
    credential: Credential | None = KEY,
    egress: Sequence[str] = (),
    names: Mapping[str, Sequence[str]] | None = None,
    resolve: Resolve | None = None,
    patience: Patience = QUICK,
    slot: int = 0,
    user: int | None = None,
    provider: Provider | None = None,
    ledger: MemoryLedger | None = None,
    allowances_of: AllowancesOf = budget_of,
    waits: Waits | None = None,
    clock: Hurried | None = None,
    **job: Any,
) -> AsyncIterator[Way]:
    """A gateway of two slots, and a run that holds one of them. `names` is all that can be resolved."""

    async def from_names(name: str, port: int) -> list[Address]:
        if name not in (names or {}):
            raise OSError("no such name")
        return [ipaddress.ip_address(address) for address in (names or {})[name]]

    way = Way(slot_folder(root, slot) / "model.sock", ledger=ledger or MemoryLedger())
    time = clock or Hurried()
    gateway = way.gateway = ModelGateway(
        root,
        slots=2,
        socket_inside=SOCKET_INSIDE,
        accounts=Accounts(way.ledger, FLAT, allowances_of),
        providers=[provider or Provider(base_url=upstream or "http://127.0.0.1:9", credential=credential)],
        resolve=resolve or from_names,
        patience=patience,
        waits=waits,
        clock=time,
        sleep=time.sleep,
    )
    work = work_in(place_of(root, slot, user), egress, **job)
    async with gateway.serving(), gateway.attend(work, way.emit) as attendance:
        way.attendance = attendance
        listener = socket.create_server(("127.0.0.1", 0))
        way.proxy = listener.getsockname()[1]
        descriptor = os.dup(listener.fileno())
        listener.close()
        assert attendance.listening is not None
        attendance.listening([descriptor])
        yield way


@dataclass
class Host:
    """A server on loopback that counts who came and keeps what they said."""

    port: int
    came: int = 0
    heard: bytearray = field(default_factory=bytearray)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def host(
    answer: Answer | bytes = b"", *, address: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Host]:
    """Serve: bytes are the answer to each request's head; a function takes over after nothing was read."""
    found = Host(0)

    async def attend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.came += 1
        try:
            if isinstance(answer, bytes):
                while piece := await reader.read(1 << 16):
                    found.heard += piece
                    if b"\r\n\r\n" in found.heard and answer:
                        writer.write(answer)
            else:
                await answer(reader, writer)
        except OSError:
            pass
        finally:
            found.left.set()
            writer.transport.abort()

    server = await asyncio.start_server(attend, address, port)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(ENOUGH):
        while not true():  # noqa: ASYNC110  # what is waited for is another program's doing
            await asyncio.sleep(0.01)


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
