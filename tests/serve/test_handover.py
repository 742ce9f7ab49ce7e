"""The hand-over between two services: sockets, connections, and what happens if one of them goes away."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from steadyhand.errors import ConfigError
from steadyhand.serve.handover import HandoverServer, inherit

Scenario = Callable[["Running"], Awaitable[None]]


class Running:
    """A service that runs, as far as a hand-over sees it."""

    def __init__(self, data_dir: Path, listener: socket.socket) -> None:
        self.data_dir = data_dir
        self.listener = listener
        self.stopped = asyncio.Event()
        self.refusal: str | None = None
        self.successors: list[int] = []
        self.server = HandoverServer(1.0, self._begin_stop, lambda _pid: self.refusal)

    def _begin_stop(self, pid: int) -> None:
        self.successors.append(pid)
        self.stopped.set()


@asynccontextmanager
async def running(data_dir: Path) -> AsyncIterator[Running]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        service = Running(data_dir, listener)
        async with service.server.listening(data_dir, {"http": listener}):
            yield service
        await service.server.close()


def play(data_dir: Path, scenario: Scenario) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), running(data_dir) as service:
            await scenario(service)

    asyncio.run(main())


def test_the_next_service_gets_the_socket_and_a_connection_with_what_was_sent_meanwhile(
    tmp_path: Path,
) -> None:
    async def scenario(service: Running) -> None:
        host, port = service.listener.getsockname()
        with socket.create_connection((host, port)) as client:
            accepted, _ = service.listener.accept()
            inheritance = await inherit(tmp_path)
            taking = asyncio.create_task(inheritance.take_over())
            await service.stopped.wait()
            assert service.successors == [os.getpid()]
            service.listener.close()
            service.server.add_connection(accepted)
            client.sendall(b"hello")
            await service.server.send_connections()
            await service.server.close()
            await taking
            (connection,) = inheritance.take_connections()
            with connection:
                assert connection.recv(100) == b"hello"
        inherited = inheritance.take_listener("http", host, port)
        assert inherited is not None
        with inherited, socket.create_connection((host, port)):  # it still listens
            inherited.accept()[0].close()
        inheritance.close()

    play(tmp_path, scenario)


def test_a_connection_that_was_accepted_at_the_last_moment_passes_on_as_well(tmp_path: Path) -> None:
    async def scenario(service: Running) -> None:
        inheritance = await inherit(tmp_path)
        taking = asyncio.create_task(inheritance.take_over())
        await service.stopped.wait()
        await service.server.send_connections()
        ours, theirs = socket.socketpair()
        ours.sendall(b"hello")
        service.server.add_connection(theirs)
        await service.server.close()
        await taking
        (connection,) = inheritance.take_connections()
        with ours, connection:
            assert connection.recv(100) == b"hello"
        inheritance.close()

    play(tmp_path, scenario)


def test_a_hundred_connections_pass_in_one_go(tmp_path: Path) -> None:
    async def scenario(service: Running) -> None:
        inheritance = await inherit(tmp_path)
        taking = asyncio.create_task(inheritance.take_over())
        await service.stopped.wait()
        pairs = [socket.socketpair() for _ in range(100)]
        for ours, theirs in pairs:
            ours.sendall(b"%d" % ours.fileno())
            service.server.add_connection(theirs)
        await service.server.send_connections()
        await service.server.close()
        await taking
        got = inheritance.take_connections()
        assert [each.recv(10) for each in got] == [b"%d" % ours.fileno() for ours, _ in pairs]
        for each in (*got, *(ours for ours, _ in pairs)):
            each.close()
        inheritance.close()

    play(tmp_path, scenario)


def test_a_socket_on_another_address_is_not_taken(tmp_path: Path) -> None:
    async def scenario(service: Running) -> None:
        inheritance = await inherit(tmp_path)
        port = service.listener.getsockname()[1]
        assert inheritance.take_listener("http", "127.0.0.1", port + 1) is None
        assert inheritance.take_listener("http", "127.0.0.2", port) is None
        assert inheritance.take_listener("metrics", "127.0.0.1", port) is None
        taken = inheritance.take_listener("http", "127.0.0.1", 0)
        assert taken is not None
        taken.close()
        inheritance.close()

    play(tmp_path, scenario)


def test_a_service_that_ends_before_it_is_ready_changes_nothing_and_another_may_follow(
    tmp_path: Path,
) -> None:
    async def scenario(service: Running) -> None:
        (await inherit(tmp_path)).close()
        inheritance = await inherit(tmp_path)
        assert not service.stopped.is_set()
        taking = asyncio.create_task(inheritance.take_over())
        await service.stopped.wait()
        await service.server.close()
        await taking
        inheritance.close()

    play(tmp_path, scenario)


def test_a_refusal_has_its_reason(tmp_path: Path) -> None:
    async def scenario(service: Running) -> None:
        service.refusal = "It belongs to somebody."
        with pytest.raises(ConfigError, match=r"was not replaced\. It belongs to somebody\."):
            await inherit(tmp_path)
        assert not service.stopped.is_set()

    play(tmp_path, scenario)


def test_without_a_running_service_there_is_nothing_to_take(tmp_path: Path) -> None:
    async def main() -> None:
        inheritance = await inherit(tmp_path)
        await inheritance.take_over()
        assert (inheritance.listeners, inheritance.connections) == ({}, [])
        inheritance.close()

    asyncio.run(main())
    play(tmp_path, lambda _service: asyncio.sleep(0))
    asyncio.run(main())  # nor after one that ended


def test_only_the_user_of_the_service_reaches_its_socket(tmp_path: Path) -> None:
    async def scenario(_service: Running) -> None:
        assert (tmp_path / "run" / "handover").stat().st_mode & 0o777 == 0o600

    play(tmp_path, scenario)
