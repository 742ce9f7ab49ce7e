"""A gateway with its agent's ends: the model's socket, the proxy's port, and hosts that write down what they get."""

import asyncio
import ipaddress
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2

from steadyhand.addresses import Address
from steadyhand.agents import Agent, Workspace
from steadyhand.events import EgressRefused, EventBody, TextDelta, WarningEvent
from steadyhand.gateway import (
    BillingDeps,
    Credential,
    ModelGateway,
    Prices,
    Provider,
    ProxyTimeouts,
    Resolve,
    RetryLimits,
    job_limits,
    slot_dir,
)
from steadyhand.ports import Checkout, GetBudgetLimits, JobPaths, RunAccess, RunContext
from steadyhand.testing.contracts.samples import FakeClock, make_job
from steadyhand.testing.memory_ledger import MemoryLedger
from steadyhand.testing.service import PLAIN_HTTP

CANARY = "sk-ant-canary-the-real-key"
KEY = Credential("api_key", CANARY)
QUICK_TIMEOUTS = ProxyTimeouts(head=0.5, connect=2, idle=5, linger=0.2)
PATIENT_TIMEOUTS = ProxyTimeouts(head=30, connect=10, idle=5, linger=0.2)
"""Of a head that is not what a test is about: on a busy machine one may take longer than the quick ones allow."""
TIMEOUT_SECONDS = 30.0
SHORT_SLEEP = 30.0
SOCKET_INSIDE = "/run/steadyhand/model.sock"

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def make_checkout(root: Path, slot: int = 0, user: int | None = None) -> Checkout:
    return Checkout(
        workspace=Workspace("scratch"),
        paths=JobPaths(root),
        directory=root,
        home=root,
        config_dir=None,
        uid=user,
        commit=None,
        slot=slot,
    )


def make_run_context(checkout: Checkout, egress: Sequence[str] = (), **job: Any) -> RunContext:
    return RunContext(make_job(**job), Agent("claude", egress=tuple(egress)), checkout)


FLAT_PRICES = Prices.load(
    {"claude-*": dict.fromkeys(("input", "output", "cache_read", "cache_write_5m", "cache_write_1h"), "1")}
)
"""A micro-dollar for each token of whatever kind, so that what is spent is what was counted."""


class SkippingClock(FakeClock):
    """A clock that short sleeps move on at once; who sleeps for longer sleeps until a test lets time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []
        self._moved = asyncio.Event()

    def advance(self, length: timedelta) -> None:
        super().advance(length)
        self._moved.set()
        self._moved = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if seconds <= SHORT_SLEEP:
            self.advance(timedelta(seconds=seconds))
            await asyncio.sleep(0)
            return
        end = self.now + timedelta(seconds=seconds)
        while self.now < end:
            await self._moved.wait()


@dataclass
class GatewayHarness:
    """What a run has of the gateway."""

    socket: Path
    proxy: int = 0
    events: list[EventBody | TextDelta] = field(default_factory=list)
    ledger: MemoryLedger = field(default_factory=MemoryLedger)
    access: RunAccess | None = None
    gateway: ModelGateway | None = None

    async def emit(self, body: EventBody | TextDelta) -> None:
        self.events.append(body)

    @property
    def refused_hosts(self) -> list[str]:
        return [body.host for body in self.events if isinstance(body, EgressRefused)]

    def warnings(self, code: str) -> list[str]:
        return [body.message for body in self.events if isinstance(body, WarningEvent) and body.code == code]

    @property
    def open_access(self) -> RunAccess:
        assert self.access is not None
        return self.access

    def client(self) -> httpx2.AsyncClient:
        """A client on the model's socket, as the CLI is one."""
        return httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=str(self.socket), verify=PLAIN_HTTP),
            base_url="http://model.invalid",
            timeout=TIMEOUT_SECONDS,
        )

    async def send_to_model(self, request: bytes) -> bytes:
        """Send bytes to the model's socket; all that comes back until the end."""
        return await exchange(await asyncio.open_unix_connection(self.socket), request)

    async def send_to_proxy(self, request: bytes) -> bytes:
        """Send bytes to the proxy; all that comes back until the end."""
        return await exchange(await asyncio.open_connection("127.0.0.1", self.proxy), request)


async def exchange(ends: tuple[asyncio.StreamReader, asyncio.StreamWriter], request: bytes) -> bytes:
    reader, writer = ends
    received = b""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            writer.write(request)
            while piece := await reader.read(1 << 16):
                received += piece
    except ConnectionError:
        pass  # cut: what was heard until then counts
    finally:
        writer.transport.abort()
    return received


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


@asynccontextmanager
async def open_gateway(
    root: Path,
    upstream: str | None = None,
    *,
    credential: Credential | None = KEY,
    egress: Sequence[str] = (),
    names: Mapping[str, Sequence[str]] | None = None,
    resolve: Resolve | None = None,
    patience: ProxyTimeouts = PATIENT_TIMEOUTS,
    slot: int = 0,
    user: int | None = None,
    provider: Provider | None = None,
    ledger: MemoryLedger | None = None,
    get_limits: GetBudgetLimits = job_limits,
    waits: RetryLimits | None = None,
    clock: SkippingClock | None = None,
    **job: Any,
) -> AsyncIterator[GatewayHarness]:
    """A gateway of two slots, and a run that holds one of them. `names` is all that can be resolved."""

    async def from_names(name: str, port: int) -> list[Address]:
        if name not in (names or {}):
            raise OSError("no such name")
        return [ipaddress.ip_address(address) for address in (names or {})[name]]

    harness = GatewayHarness(slot_dir(root, slot) / "model.sock", ledger=ledger or MemoryLedger())
    time = clock or SkippingClock()
    gateway = harness.gateway = ModelGateway(
        root,
        slots=2,
        sandbox_socket=SOCKET_INSIDE,
        billing=BillingDeps(harness.ledger, FLAT_PRICES, get_limits),
        providers=[provider or Provider(base_url=upstream or "http://127.0.0.1:9", credential=credential)],
        resolve=resolve or from_names,
        proxy_timeouts=patience,
        retry_limits=waits,
        clock=time,
        sleep=time.sleep,
    )
    work = make_run_context(make_checkout(root, slot, user), egress, **job)
    async with gateway.serving(), gateway.open_run(work, harness.emit) as attendance:
        harness.access = attendance
        listener = socket.create_server(("127.0.0.1", 0))
        harness.proxy = listener.getsockname()[1]
        descriptor = os.dup(listener.fileno())
        listener.close()
        assert attendance.on_listening is not None
        attendance.on_listening([descriptor])
        yield harness


@dataclass
class RecordingHost:
    """A server on loopback that counts who came and keeps what they said."""

    port: int
    connections: int = 0
    received: bytearray = field(default_factory=bytearray)
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def serve_host(
    answer: Answer | bytes = b"", *, address: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[RecordingHost]:
    """Serve: bytes are the answer to each request's head; a function takes over after nothing was read."""
    found = RecordingHost(0)

    async def attend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.connections += 1
        try:
            if isinstance(answer, bytes):
                while piece := await reader.read(1 << 16):
                    found.received += piece
                    if b"\r\n\r\n" in found.received and answer:
                        writer.write(answer)
            else:
                await answer(reader, writer)
            await close_when_sent(writer)
        except OSError:
            pass
        finally:
            found.disconnected.set()
            writer.transport.abort()

    server = await asyncio.start_server(attend, address, port)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()


async def close_when_sent(writer: asyncio.StreamWriter) -> None:
    """Close a connection once its peer took what was written: an abort would drop what waits in this process."""
    writer.close()
    with suppress(TimeoutError):
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await writer.wait_closed()


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():  # noqa: ASYNC110  # what is waited for is another program's doing
            await asyncio.sleep(0.01)


def ok_response(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
