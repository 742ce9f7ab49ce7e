"""The messages between the service and the supervisor of one run."""

import asyncio
import contextlib
import marshal
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakSet

from steadyhand.ports import StopSignal

START_SECONDS = 30.0
REPLY_SECONDS = 3.0
"""Seconds for a supervisor to report an end that it was asked for. One that is silent for longer hangs or is frozen."""
_T = TypeVar("_T")
_open_channels: "WeakSet[SupervisorChannel]" = WeakSet()


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """The end of the agent: an exit code, or the signal that ended it.

    `unkillable` is True if a process may still be alive, `out_of_memory` if the kernel killed a process of the run at
    its memory limit, `disk_full` if its disk is full. `forks_refused` counts the processes above its limit.
    `lease_over` is True if the supervisor ended it because this process was frozen.
    """

    code: int | None
    signal: int | None
    unkillable: bool = False
    out_of_memory: bool = False
    disk_full: bool = False
    forks_refused: int = 0
    lease_over: bool = False


class SupervisorChannel(asyncio.Protocol):
    """The service's end of the socket pair: each message of the supervisor resolves a future."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.supervisor_pid: asyncio.Future[int | None] = loop.create_future()
        self.started: asyncio.Future[Mapping[str, Any]] = loop.create_future()
        self.exited: asyncio.Future[ExitStatus] = loop.create_future()
        self.cleaned_up: asyncio.Future[bool] = loop.create_future()
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # a socket pair has one
        self.transport = transport
        _open_channels.add(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 4:  # noqa: PLR2004  # the frame's head
            end = 4 + int.from_bytes(self._buffer[:4], "little")
            if len(self._buffer) < end:
                return
            message = marshal.loads(self._buffer[4:end])  # noqa: S302  # from our own supervisor
            del self._buffer[:end]
            self._handle_message(message)

    def set_ended(self, message: Mapping[str, Any]) -> None:
        """Handle the message about the end of an agent that ended while no service was there."""
        self._handle_message(message)
        _resolve_future(self.cleaned_up, True)

    def _handle_message(self, message: Mapping[str, Any]) -> None:
        if "exited" in message:
            _resolve_future(self.exited, _to_exit_status(message))
        elif "gone" in message:
            _resolve_future(self.cleaned_up, True)
        elif "here" in message:
            _resolve_future(self.supervisor_pid, message["here"])
        else:
            _resolve_future(self.started, message)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        _open_channels.discard(self)
        # No message came: somebody killed the supervisor, and with it the agent.
        _resolve_future(self.supervisor_pid, None)
        _resolve_future(self.started, {"failed": "its supervisor died"})
        self.set_killed(cleaned_up=False)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message to the supervisor, if it is still there."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(encode_frame(dict(message)))

    def renew_lease(self, seconds: float) -> None:
        """Let the agent live for so many seconds more, once it has started.

        The transport does not do it: a write to a supervisor that has just ended would close it, and lose the message
        about that end.
        """
        transport = self.transport
        # Before its start the supervisor takes no other message; a frame must not come into the middle of another.
        if transport is None or not self.started.done() or transport.get_write_buffer_size() > 0:
            return
        with contextlib.suppress(OSError):
            os.write(transport.get_extra_info("socket").fileno(), encode_frame({"lease": seconds}))

    def set_killed(self, *, cleaned_up: bool) -> None:
        """Let nobody wait for the agent any more: it was killed, and no message will tell of it."""
        _resolve_future(self.exited, ExitStatus(None, signal.SIGKILL))
        _resolve_future(self.cleaned_up, cleaned_up)


def renew_leases(seconds: float) -> None:
    """Let each agent of this process live for so many seconds more, unless this is called again before."""
    for channel in list(_open_channels):
        channel.renew_lease(seconds)


def _to_exit_status(message: Mapping[str, Any]) -> ExitStatus:
    limit_evidence = message["felt"]
    return ExitStatus(
        message["exited"],
        message["signal"],
        False,
        limit_evidence.get("oom", 0) > 0,
        limit_evidence.get("full", 0) > 0,
        limit_evidence.get("forks_refused", 0),
        message.get("lease_over", False),
    )


async def await_message(message: asyncio.Future[_T], stop: StopSignal | None) -> _T:
    """Wait for a message at the start. Raise `TimeoutError` after `START_SECONDS`, or `REPLY_SECONDS` after a stop."""
    async with asyncio.timeout(START_SECONDS):
        if stop is None:
            return await asyncio.shield(message)
        async with asyncio.TaskGroup() as group:
            stop_request = group.create_task(stop.wait())
            waiting: set[asyncio.Future[Any]] = {message, stop_request}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            stop_request.cancel()
    async with asyncio.timeout(REPLY_SECONDS):
        return await asyncio.shield(message)


def _resolve_future(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def encode_frame(value: Any) -> bytes:
    """Return a message as bytes."""
    data = marshal.dumps(value)
    return len(data).to_bytes(4, "little") + data
