"""The parts of a measurement of streams, each a process of its own: `python -m bench.streaming PART`.

`model` streams answers event by event; `gateway DIRECTORY ADDRESS` is ours before it; `relay DIRECTORY ADDRESS` copies
bytes and looks at nothing; `client` keeps so many streams going at once and says when each first token came. All are
as light as they can be made, so that the way between is what is measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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

BODY_BYTES = 50_000
"""What the CLI sends for its first turn."""
TOKENS = 60
"""Events with text in a stream."""
PACE_SECONDS = 0.01
FIRST = b"content_block_delta"
_DELTA = {"type": "text_delta", "text": "some words of an answer that comes piece by piece "}
_END = b"0\r\n\r\n"


def _event(kind: str, **fields: Any) -> bytes:
    data = json.dumps({"type": kind, **fields}).encode()
    event = b"event: %b\ndata: %b\n\n" % (kind.encode(), data)
    return b"%x\r\n%b\r\n" % (len(event), event)


_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_USAGE = {"input_tokens": 12, "cache_read_input_tokens": 9_000, "output_tokens": 1}
_START = _HEAD + _event(
    "message_start", message={"type": "message", "model": "claude-haiku-4-5", "content": [], "usage": _USAGE}
)
_OPEN = _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
PIECE = _event("content_block_delta", index=0, delta=_DELTA)
_LAST = (
    _event("content_block_stop", index=0)
    + _event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": TOKENS})
    + _event("message_stop")
    + _END
)
STREAM_BYTES = len(_START + _OPEN + _LAST) + TOKENS * len(PIECE)


# --- the model ---------------------------------------------------------------------------------


class _Model(asyncio.Protocol):
    """Answers each request with a stream; the first token comes with the head, the others one by one."""

    def __init__(self) -> None:
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
            self._transport.write(_START + _OPEN + PIECE)
            self._tokens = 1
            asyncio.get_running_loop().call_later(PACE_SECONDS, self._next)

    def _next(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._tokens >= TOKENS:
            self._transport.write(_LAST)
            return
        self._tokens += 1
        self._transport.write(PIECE)
        asyncio.get_running_loop().call_later(PACE_SECONDS, self._next)


async def model() -> None:
    server = await asyncio.get_running_loop().create_server(_Model, "127.0.0.1", 0)
    _say({"url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"})
    await _until_end_of_input()


# --- what stands between -----------------------------------------------------------------------


async def gateway(directory: Path, address: str) -> None:
    """Our gateway with a real ledger, and one run that it lets out by its socket."""
    store = await open_store(f"sqlite:///{directory}/ledger.db")
    files = JobPaths(directory / "job")
    place = Checkout(Workspace("bench"), files, files.checkout, files.home, files.config_dir, None, None)
    made = ModelGateway(
        directory,
        slots=1,
        sandbox_socket="/unused",
        billing=BillingDeps(store, Prices.load(), job_limits),
        providers=[Provider(base_url=address, credential=Credential("api_key", "sk-bench"))],
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


async def relay(directory: Path, address: str) -> None:
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

    def __init__(self, request: bytes, count: int, taken: list[float], done: asyncio.Future[None]) -> None:
        self._request = request
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
        if self._first and FIRST in self._tail + data:
            self._taken.append((time.monotonic_ns() - self._began) / 1e6)
            self._first = False
        self._tail = (self._tail + data)[-64:]
        if not self._tail.endswith(_END):
            return
        self._count -= 1
        if self._count:
            self.ask()
        elif not self._done.done():
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionError(f"the connection ended: {exc}"))


async def client() -> None:
    """Read rounds from stdin (`to streams each`), and print what each came to."""
    loop = asyncio.get_running_loop()
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        taken: list[float] = []
        connections: list[_Stream] = []
        waits: list[asyncio.Future[None]] = []
        for _ in range(asked["streams"]):
            done = loop.create_future()
            stream = _Stream(_request(), asked["each"], taken, done)
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


def _request() -> bytes:
    start = b'{"model":"claude-haiku-4-5","messages":[{"role":"user","content":"'
    end = b'"}],"max_tokens":128000,"stream":true}'
    body = start + b"x" * (BODY_BYTES - len(start) - len(end)) + end
    head = (
        b"POST /v1/messages?beta=true HTTP/1.1\r\nhost: model.invalid\r\nx-api-key: placeholder\r\n"
        b"content-type: application/json\r\nanthropic-version: 2023-06-01\r\nx-app: cli\r\n"
        b"user-agent: bench\r\nconnection: keep-alive\r\naccept: application/json\r\n"
    )
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


# --- all of them -------------------------------------------------------------------------------


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


async def _until_end_of_input() -> None:
    await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    part, *rest = sys.argv[1:]
    freeze_startup_objects()  # as the service does: what is measured is its way of running
    if part == "model":
        asyncio.run(model())
    elif part == "client":
        asyncio.run(client())
    else:
        asyncio.run({"gateway": gateway, "relay": relay}[part](Path(rest[0]), rest[1]))


if __name__ == "__main__":
    main()
