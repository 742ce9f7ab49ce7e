"""The parts of a measurement of streams, each a process of its own: `python -m bench.streaming PART`.

`model WIRE` streams answers event by event; `gateway WIRE DIRECTORY ADDRESS` is ours before it; `relay WIRE DIRECTORY
ADDRESS` copies bytes and looks at nothing; `client WIRE` keeps so many streams going at once and says when each first
token came. All are as light as they can be made, so that the way between is what is measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.wires import END, TOKENS, WIRES, Wire
from steadyhand.agents import Agent, Workspace
from steadyhand.gateway import (
    BillingDeps,
    Credential,
    ModelGateway,
    Prices,
    Provider,
    job_limits,
    slot_dir,
)
from steadyhand.ports import Checkout, JobPaths, RunContext
from steadyhand.serve import freeze_startup_objects
from steadyhand.store import open_store
from steadyhand.testing.contracts.samples import make_job

PACE_SECONDS = 0.01


# --- the model ---------------------------------------------------------------------------------


class _Model(asyncio.Protocol):
    """Answers each request with a stream; the first token comes with the head, the others one by one."""

    def __init__(self, wire: Wire) -> None:
        self._first = wire.start + wire.piece
        self._wire = wire
        self._transport: asyncio.Transport | None = None
        self._left = 0
        self._buffer = b""
        self._tokens = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._left:
            self._left -= len(data)
        else:
            self._buffer += data
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            self._left = int(length or 0) - len(rest)
            self._buffer = b""
        if self._left <= 0 and self._transport is not None:
            self._left = 0
            self._transport.write(self._first)
            self._tokens = 1
            asyncio.get_running_loop().call_later(PACE_SECONDS, self._next)

    def _next(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._tokens >= TOKENS:
            self._transport.write(self._wire.last)
            return
        self._tokens += 1
        self._transport.write(self._wire.piece)
        asyncio.get_running_loop().call_later(PACE_SECONDS, self._next)


async def model(wire: Wire) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Model(wire), "127.0.0.1", 0)
    _say({"url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"})
    await _until_end_of_input()


# --- what stands between -----------------------------------------------------------------------


async def gateway(wire: Wire, directory: Path, address: str) -> None:
    """Our gateway with a real ledger, and one run that it lets out by its socket."""
    store = await open_store(f"sqlite:///{directory}/ledger.db")
    files = JobPaths(directory / "job")
    place = Checkout(Workspace("bench"), files, files.checkout, files.home, files.config_dir, None, None)
    made = ModelGateway(
        directory,
        slots=1,
        sandbox_socket="/unused",
        billing=BillingDeps(store, Prices.load(), job_limits),
        providers=[Provider(kind=wire.api, base_url=address, credential=Credential("api_key", "sk-bench"))],
    )

    async def emit(told: object) -> None:
        raise RuntimeError(f"the gateway told of {told}")

    work = RunContext(make_job(budget_micros=10**15), Agent("bench"), place)
    async with made.serving(), made.open_run(work, emit) as attendance:
        _say({"socket": str(slot_dir(directory, 0) / "model.sock")})
        await _until_end_of_input()
        spent = await attendance.final_usage()
        _say({"calls": spent.calls, "output": spent.tokens.output, "complete": spent.complete})
    await store.close()


class _Copy(asyncio.Protocol):
    def __init__(self, other: _Copy | None = None) -> None:
        self.other = other
        self.transport: asyncio.Transport | None = None
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self.other is not None:
            transport.write(b"".join(self.other.early))
            self.other.other = self

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            self.early.append(data)
        else:
            self.other.transport.write(data)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


async def relay(_wire: Wire, directory: Path, address: str) -> None:
    """What any way between costs at the least in this language: every byte read and written once."""
    to = urlsplit(address)
    loop = asyncio.get_running_loop()
    dialling: set[asyncio.Task[Any]] = set()

    def accept() -> _Copy:
        near = _Copy()
        dial = loop.create_connection(lambda: _Copy(near), to.hostname or "", to.port or 0)
        task = loop.create_task(dial)
        dialling.add(task)
        task.add_done_callback(dialling.discard)
        return near

    await loop.create_unix_server(accept, str(directory / "relay.sock"))
    _say({"socket": str(directory / "relay.sock")})
    await _until_end_of_input()


# --- the client --------------------------------------------------------------------------------


class _Stream(asyncio.Protocol):
    """One connection: asks, notes when the first token came, and asks again when the stream has ended."""

    def __init__(self, wire: Wire, count: int, taken: list[float], done: asyncio.Future[None]) -> None:
        self._request = wire.request
        self._mark = wire.first
        self._count = count
        self._taken = taken
        self._done = done
        self._transport: asyncio.Transport | None = None
        self._began = 0
        self._first = False
        self._tail = b""
        self.bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()

    def ask(self) -> None:
        assert self._transport is not None
        self._first = True
        self._tail = b""
        self._began = time.monotonic_ns()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.bytes += len(data)
        if self._first and self._mark in self._tail + data:
            self._taken.append((time.monotonic_ns() - self._began) / 1e6)
            self._first = False
        self._tail = (self._tail + data)[-64:]
        if not self._tail.endswith(END):
            return
        self._count -= 1
        if self._count:
            self.ask()
        elif not self._done.done():
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionError(f"the connection ended: {exc}"))


async def client(wire: Wire) -> None:
    """Read rounds from stdin (`to streams each`), and print what each came to."""
    loop = asyncio.get_running_loop()
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        taken: list[float] = []
        connections: list[_Stream] = []
        waits: list[asyncio.Future[None]] = []
        for _ in range(asked["streams"]):
            done = loop.create_future()
            stream = _Stream(wire, asked["each"], taken, done)
            if asked["to"].startswith("http"):
                to = urlsplit(asked["to"])
                await loop.create_connection(lambda made=stream: made, to.hostname, to.port)  # type: ignore[misc]
            else:
                await loop.create_unix_connection(lambda made=stream: made, asked["to"])  # type: ignore[misc]
            connections.append(stream)
            waits.append(done)
        for number, stream in enumerate(connections):
            # Spread over the time of a stream, as agents are: all at once would measure the queue before the first.
            loop.call_later(number * TOKENS * PACE_SECONDS / asked["streams"], stream.ask)
        async with asyncio.timeout(120):
            await asyncio.gather(*waits)
        for stream in connections:
            stream.close()
        _say({"first": taken, "bytes": sum(each.bytes for each in connections)})


# --- all of them -------------------------------------------------------------------------------


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


async def _until_end_of_input() -> None:
    await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    part, name, *rest = sys.argv[1:]
    wire = WIRES[name]
    freeze_startup_objects()  # as the service does: what is measured is its way of running
    if part == "model":
        asyncio.run(model(wire))
    elif part == "client":
        asyncio.run(client(wire))
    else:
        asyncio.run({"gateway": gateway, "relay": relay}[part](wire, Path(rest[0]), rest[1]))


if __name__ == "__main__":
    main()
