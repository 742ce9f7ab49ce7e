"""The hand-over of a running service to the next one: its listening sockets and its open connections pass on.

The running service listens on `<data-dir>/run/handover`, where only its own user can connect. The next one gets the
listening sockets there, prepares its start and says that it is ready. The running one then drains as at a stop, which
leaves the runs that may outlive it. It accepts nothing more and lets requests end that are under way. It sends each
connection to the next one once no request is on it, and ends. Meanwhile connections and requests wait in the kernel.

Messages are JSON in packets, with descriptors beside them.
"""

import asyncio
import contextlib
import errno
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from steadyhand.errors import ConfigError

HELLO_SECONDS = 5.0
"""The time for an answer that needs no work."""
PREPARE_SECONDS = 120.0
"""The time of the next service between the sockets and its readiness."""
SEND_SECONDS = 5.0
"""The time for the open connections, of which each message has some."""
END_SECONDS = 60.0
"""The time of the running service after its jobs had theirs."""
_MAX_BYTES = 4_096
_MAX_DESCRIPTORS = 64
_RETRY_SECONDS = 0.01


class Channel:
    """One end of the connection between the two services."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock

    async def send(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send a message with descriptors, which stay open here. The caller bounds the wait. Raises `OSError`."""
        data = json.dumps(message).encode()
        loop = asyncio.get_running_loop()
        while True:
            try:
                socket.send_fds(self._sock, [data], list(descriptors))
            except BlockingIOError:
                await _until_ready(self._sock, loop.add_writer, loop.remove_writer)
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise
                await asyncio.sleep(_RETRY_SECONDS)  # the other one has not taken those before
            else:
                return

    async def receive(self) -> tuple[Mapping[str, Any], list[int]] | None:
        """Return the next message and its descriptors; None at the end. The caller bounds the wait.

        Raises `OSError`, and `ValueError` for what is no message.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(
                    self._sock, _MAX_BYTES, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                await _until_ready(self._sock, loop.add_reader, loop.remove_reader)
                continue
            if not data:
                return None
            try:
                return dict(json.loads(data)), descriptors
            except (ValueError, TypeError) as error:
                _close_all(descriptors)
                raise ValueError("the other service sent no message") from error

    @property
    def peer(self) -> tuple[int, int]:
        """Return the pid and the user of the process at the other end, as the kernel noted them."""
        data = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, user, _ = struct.unpack("3i", data)
        return pid, user

    def close(self) -> None:
        """Close it: the other end gets the end."""
        self._sock.close()


async def _until_ready(
    sock: socket.socket, add: Callable[..., Any], remove: Callable[[socket.socket], Any]
) -> None:
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    add(sock, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        remove(sock)


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


@contextmanager
def _socket_path(data_dir: Path) -> Iterator[str]:
    """Yield the path of the socket, by a descriptor of its folder: the kernel takes 107 bytes of path."""
    folder = data_dir / "run"
    folder.mkdir(mode=0o711, exist_ok=True)
    dir_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{dir_fd}/handover"
    finally:
        os.close(dir_fd)


# --- the running service -----------------------------------------------------------------------


@dataclass(slots=True)
class HandoverServer:
    """The running service's side. `close` it when the data directory is free: the next service then starts.

    `begin_stop` is called once the next service is ready. `accepts` returns the reason why the process with a pid
    cannot take over, or None.
    """

    seconds: float
    """The time that running jobs have at a stop."""
    begin_stop: Callable[[int], None]
    refusal: Callable[[int], str | None] = lambda _pid: None
    _successor: Channel | None = None
    _connections: list[socket.socket] = field(default_factory=list)

    @property
    def has_successor(self) -> bool:
        """True once the next service is ready, and waits for the end of this one."""
        return self._successor is not None

    @asynccontextmanager
    async def listening(self, data_dir: Path, listeners: Mapping[str, socket.socket]) -> AsyncIterator[None]:
        """Wait for the next service for the length of the block. It gets the `listeners`, by their names."""
        with _bind(data_dir) as sock:
            server = asyncio.create_task(self._serve(sock, listeners), name="handover")
            try:
                yield
            finally:
                server.cancel()
                await asyncio.wait({server})

    async def _serve(self, sock: socket.socket, listeners: Mapping[str, socket.socket]) -> None:
        """Hand over to the first process that becomes ready; one at a time may try."""
        loop, log = asyncio.get_running_loop(), structlog.get_logger("steadyhand")
        while self._successor is None:
            try:
                connection, _ = await loop.sock_accept(sock)
                channel = Channel(connection)
            except OSError as error:
                log.warning("handover.failed", error=str(error))
                await asyncio.sleep(1)
                continue
            try:
                is_ready = await self._negotiate(channel, listeners)
            except (OSError, ValueError, TimeoutError) as error:
                log.warning("handover.failed", error=str(error) or type(error).__name__)
                is_ready = False
            except BaseException:  # whatever it is, no descriptor stays open
                channel.close()
                raise
            if not is_ready:
                channel.close()
                continue
            self._successor = channel
            log.info("handover.begins", successor=channel.peer[0])
            self.begin_stop(channel.peer[0])

    async def _negotiate(self, channel: Channel, listeners: Mapping[str, socket.socket]) -> bool:
        """Send the sockets and wait until the next service is ready; return False if it has gone."""
        pid, user = channel.peer
        if user != os.geteuid():
            return False
        refusal = self.refusal(pid)
        async with asyncio.timeout(HELLO_SECONDS):
            if refusal is not None:
                await channel.send({"refused": refusal})
                return False
            await channel.send(
                {"listeners": list(listeners), "seconds": self.seconds + END_SECONDS},
                [each.fileno() for each in listeners.values()],
            )
        async with asyncio.timeout(PREPARE_SECONDS):
            reply = await channel.receive()
        if reply is None:
            return False
        _close_all(reply[1])
        return reply[0].get("ready") is True

    def add_connection(self, connection: socket.socket) -> None:
        """Add a connection without a request, for the next service."""
        self._connections.append(connection)

    async def send_connections(self) -> None:
        """Send the connections to the next service. Those that cannot be sent are closed."""
        connections, self._connections = self._connections, []
        log = structlog.get_logger("steadyhand")
        try:
            if self._successor is not None:
                async with asyncio.timeout(SEND_SECONDS):
                    for start in range(0, len(connections), _MAX_DESCRIPTORS):
                        batch = connections[start : start + _MAX_DESCRIPTORS]
                        await self._successor.send({"connections": len(batch)}, [c.fileno() for c in batch])
                log.info("handover.connections", count=len(connections))
        except (OSError, TimeoutError) as error:
            log.warning("handover.failed", error=str(error) or type(error).__name__)
        finally:
            for each in connections:
                each.close()

    async def close(self) -> None:
        """Let the next service start, if there is one, with the connections that were accepted at the last moment."""
        if self._connections:
            await self.send_connections()
        if self._successor is not None:
            self._successor.close()
            self._successor = None


@contextmanager
def _bind(data_dir: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock, _socket_path(data_dir) as path:
        sock.setblocking(False)
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()  # of a service that was killed
        sock.bind(path)
        Path(path).chmod(0o600)  # before it listens: until then nobody can connect
        sock.listen(1)
        try:
            yield sock
        finally:
            with contextlib.suppress(OSError):
                Path(path).unlink()


# --- the next service --------------------------------------------------------------------------


@dataclass(slots=True)
class Inheritance:
    """The sockets of the service that ran before, and its open connections; empty if none ran."""

    listeners: dict[str, socket.socket] = field(default_factory=dict)
    connections: list[socket.socket] = field(default_factory=list)
    channel: Channel | None = None
    seconds: float = 0.0

    def take_listener(self, name: str, host: str, port: int) -> socket.socket | None:
        """Return the listening socket with a name, if it is on this address; port 0 is any port."""
        sock = self.listeners.get(name)
        if sock is None:
            return None
        address = sock.getsockname()
        wanted = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICSERV)
        hosts = {each[4][0] for each in wanted}
        if address[0] not in hosts or port not in (0, address[1]):
            return None
        return self.listeners.pop(name)

    def take_connections(self) -> list[socket.socket]:
        """Return the connections, which the caller closes."""
        connections, self.connections = self.connections, []
        return connections

    async def take_over(self) -> None:
        """Announce that this service is ready, receive the open connections and wait for the end of the other one.

        Raises `ConfigError`.
        """
        if self.channel is None:
            return
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                await self.channel.send({"ready": True})
            async with asyncio.timeout(self.seconds):
                while (message := await self.channel.receive()) is not None:
                    self.connections += [socket.socket(fileno=each) for each in message[1]]
        except TimeoutError as error:
            raise ConfigError("The running service did not end in time. Look into its log.") from error
        except ConnectionError:
            pass  # it was killed; what it had sent is here
        except (OSError, ValueError) as error:
            raise ConfigError(f"The running service could not be replaced: {error}.") from error

    def close(self) -> None:
        """Close what nobody has taken."""
        for each in (*self.listeners.values(), *self.take_connections()):
            each.close()
        self.listeners.clear()
        if self.channel is not None:
            self.channel.close()


async def inherit(data_dir: Path) -> Inheritance:
    """Ask the service that runs on a data directory for its sockets; empty if none runs. Raises `ConfigError`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _socket_path(data_dir) as path:
            sock.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return Inheritance()
    except OSError as error:
        sock.close()
        raise ConfigError(f"The running service could not be asked: {error.strerror}.") from error
    channel = Channel(sock)
    try:
        async with asyncio.timeout(HELLO_SECONDS):
            reply = await channel.receive()
    except (OSError, ValueError, TimeoutError) as error:
        channel.close()
        raise ConfigError("The running service did not answer. Look into its log.") from error
    message, descriptors = ({}, []) if reply is None else reply
    names = message.get("listeners")
    if not isinstance(names, list) or len(names) != len(descriptors):
        _close_all(descriptors)
        channel.close()
        reason = message.get("refused") or "It is about to end."
        raise ConfigError(f"The running service was not replaced. {reason}")
    sockets = [socket.socket(fileno=each) for each in descriptors]
    listeners = dict(zip(map(str, names), sockets, strict=True))
    return Inheritance(listeners, [], channel, float(message.get("seconds", END_SECONDS)))
