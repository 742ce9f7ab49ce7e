"""The composition root: lives from the start to the last drained job. What is wired to what is in `wiring`."""

import asyncio
import contextlib
import gc
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

import structlog
import uvicorn

from steadyhand.config.settings import Settings
from steadyhand.errors import ConfigError
from steadyhand.outcome import Stop
from steadyhand.redact import Redactor
from steadyhand.runner.process.cgroups import sweep_groups
from steadyhand.serve.doctor import doctor, misconfigured
from steadyhand.serve.gateway_setup import announce as announce_credentials
from steadyhand.serve.isolation import announce as announce_level
from steadyhand.serve.isolation import level_of
from steadyhand.serve.logs import log_to_stderr
from steadyhand.serve.redaction import redactor_of
from steadyhand.serve.wiring import Service, cli_of, database_url, now, wire
from steadyhand.store import DataDirectoryLock, open_store

__all__ = ["doctor", "embedded", "misconfigured", "serve"]

SHUTDOWN_SECONDS = 5
COLLECT_EVERY = 10_000
"""How many new objects there are between two rounds of the collector; an accepted job is some dozens."""

# --- its life ----------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: a stop drains first, and it is ours to ask for."""

    def __init__(self, config: uvicorn.Config, answering: Callable[[], None]) -> None:
        super().__init__(config)
        self._answering = answering

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._answering()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(settings: Settings) -> socket.socket:
    """Open the socket, so that a port that is taken stops the start before anything was touched."""
    server = settings.tables.server
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    # asyncio turns Nagle's delay off only for a socket that names its protocol: without it an answer takes 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((server.host, server.port))
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"Cannot listen on {server.host}:{server.port}: {error.strerror}. "
            "Is another one running? Choose another with --port or [server] port."
        ) from error
    sock.set_inheritable(False)
    return sock


def make_data_dir(settings: Settings) -> None:
    """Make the data directory; when the service is root, agents may pass through it and see nothing."""
    mode = 0o711 if os.geteuid() == 0 else 0o700
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        settings.data_dir.chmod(mode)
    except OSError as error:
        raise ConfigError(
            f"The data directory {settings.data_dir} cannot be made: {error.strerror}. "
            "Choose another with --data-dir or STEADYHAND_DATA_DIR."
        ) from error


async def live(
    settings: Settings,
    redactor: Redactor,
    *,
    started: Callable[[str], None],
    stop: asyncio.Event,
    at_once: asyncio.Event,
    clock: Callable[[], datetime] = now,
) -> None:
    """Run the service until `stop` is set and all is drained; `at_once` cuts the grace period short.

    `started` is called with the service's address once it answers. `redactor` takes secrets out of all that is told.
    """
    make_data_dir(settings)
    with DataDirectoryLock(settings.data_dir), contextlib.closing(listen(settings)) as sock:
        cli = cli_of(settings)
        level = await level_of(settings, cli)
        announce_level(settings, level)
        announce_credentials(settings)
        store = await open_store(database_url(settings), clock=clock)
        try:
            service = wire(settings, store, stop.is_set, cli, level, redactor=redactor, clock=clock)
            await service.keyring.load()
            host, port = sock.getsockname()[:2]
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            server = _Server(
                uvicorn.Config(
                    service.app,
                    loop="asyncio",
                    http="httptools",
                    lifespan="off",
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    timeout_graceful_shutdown=SHUTDOWN_SECONDS,
                ),
                answering=lambda: started(url),
            )
            async with contextlib.nullcontext() if service.gateway is None else service.gateway.serving():
                # After the gateway has settled what was left open: what an interrupted run cost is then known.
                await service.worker.recover()
                await sweep_groups()
                await _serve(service, server, sock, stop, at_once)
        finally:
            await store.close()


async def _serve(
    service: Service, server: _Server, sock: socket.socket, stop: asyncio.Event, at_once: asyncio.Event
) -> None:
    async with asyncio.TaskGroup() as group:
        http = group.create_task(server.serve(sockets=[sock]), name="http")
        work = group.create_task(service.worker.run(), name="worker")
        await stop.wait()
        hurry = group.create_task(_hurry(service, at_once), name="hurry")
        await service.worker.drain()
        hurry.cancel()
        service.feed.close()
        server.should_exit = True
        await http
        work.cancel()
    structlog.get_logger("steadyhand").info("stopped")


async def _hurry(service: Service, at_once: asyncio.Event) -> None:
    await at_once.wait()
    service.queue.stop_all(Stop.SHUTDOWN)


def serve(settings: Settings, *, announce: Callable[[str], None] = print) -> None:
    """Run the service in this process until SIGTERM or SIGINT; a second signal cuts the grace period short."""
    redactor = redactor_of(settings)
    log_to_stderr(settings.tables.service.log_level, redactor)

    async def main() -> None:
        stop, at_once = asyncio.Event(), asyncio.Event()

        def asked() -> None:
            (at_once if stop.is_set() else stop).set()

        def started(url: str) -> None:
            settle_memory()
            announce(url)

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked)
        await live(settings, redactor, started=started, stop=stop, at_once=at_once)

    asyncio.run(main())


def settle_memory() -> None:
    """Leave what the start has made out of the collector's rounds; for a process that is the service alone.

    It stays until the end anyway, and going through it took a fifth of the time of accepting a job.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY, *gc.get_threshold()[1:])


@contextmanager
def embedded(settings: Settings, *, clock: Callable[[], datetime] = now) -> Iterator[tuple[str, str]]:
    """Run the service in a thread of this process for the length of the block.

    Gives its address and a key with all scopes. What is still running at the end is stopped at once.
    """
    secret = settings.api_key or secrets.token_urlsafe(32)
    settings = replace(settings, api_key=secret)
    redactor = redactor_of(settings)
    log_to_stderr("error", redactor)
    made: list[str] = []
    failed: list[BaseException] = []
    ready = threading.Event()
    handles: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, asyncio.Event]] = []

    async def main() -> None:
        stop, at_once = asyncio.Event(), asyncio.Event()
        handles.append((asyncio.get_running_loop(), stop, at_once))

        def started(url: str) -> None:
            made.append(url)
            ready.set()

        await live(settings, redactor, started=started, stop=stop, at_once=at_once, clock=clock)

    def thread() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001  # carried over to the thread that waits, below
            failed.append(error)
        finally:
            ready.set()

    running = threading.Thread(target=thread, name="steadyhand", daemon=True)
    running.start()
    ready.wait(60)
    if not made:
        raise failed[0] if failed else ConfigError("The service did not start within 60 s.")
    try:
        yield made[0], secret
    finally:
        loop, stop, at_once = handles[0]
        loop.call_soon_threadsafe(stop.set)
        loop.call_soon_threadsafe(at_once.set)
        running.join(90)
