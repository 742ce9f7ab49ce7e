"""The composition root: runs the service from its start until the last job is drained. `wiring` builds the parts."""

import asyncio
import contextlib
import errno
import gc
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

import structlog

from steadyhand.clock import utc_now
from steadyhand.config.settings import Settings
from steadyhand.errors import ConfigError
from steadyhand.metrics import ServiceMetrics
from steadyhand.outcome import StopReason
from steadyhand.redact import Redactor
from steadyhand.runner.process.cgroups import enter_service_cgroup, sweep_cgroups
from steadyhand.serve import service_manager
from steadyhand.serve.config_warnings import log_config_warnings
from steadyhand.serve.gateway_setup import log_credentials as announce_credentials
from steadyhand.serve.http_server import HttpServer, connection_limits
from steadyhand.serve.isolation import choose_level
from steadyhand.serve.isolation import log_isolation as announce_level
from steadyhand.serve.late_imports import load_late_modules
from steadyhand.serve.listen_socket import bind_socket
from steadyhand.serve.logs import configure_logging
from steadyhand.serve.metrics_server import create_metrics_server, open_metrics_socket
from steadyhand.serve.metrics_setup import create_metrics
from steadyhand.serve.reattach import FoundRuns, orphaned_runs, without_reattach
from steadyhand.serve.redaction import create_redactor
from steadyhand.serve.wiring import Service, build_service, database_url, find_agent_cli
from steadyhand.store import DataDirectoryLock, open_store

__all__ = ["embedded", "serve"]

GC_THRESHOLD = 10_000
"""New objects between two runs of the garbage collector; an accepted job makes some dozens."""

# --- start and stop ----------------------------------------------------------------------------


def open_socket(settings: Settings) -> socket.socket:
    """Return the bound socket. A port that is in use fails here, before anything is changed."""
    server = settings.tables.server
    return bind_socket(server.host, server.port, _bind_remedy)


def _bind_remedy(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "Is another one running? Choose another port with --port or [server] port."
    if error.errno == errno.EACCES:
        return "Ports below 1024 need more rights: choose another with --port or [server] port."
    return "Is it an address of this machine? Choose another with --host or [server] host."


def create_data_dir(settings: Settings) -> None:
    """Create the data directory. If the service is root, agents can enter it but not list it."""
    mode = 0o711 if os.geteuid() == 0 else 0o700
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        settings.data_dir.chmod(mode)
    except OSError as error:
        raise ConfigError(
            f"The data directory {settings.data_dir} cannot be created: {error.strerror}. "
            "Choose another with --data-dir or STEADYHAND_DATA_DIR."
        ) from error


async def run_service(
    settings: Settings,
    redactor: Redactor,
    *,
    on_started: Callable[[str], None],
    stop: asyncio.Event,
    stop_now: asyncio.Event,
    clock: Callable[[], datetime] = utc_now,
    metrics: ServiceMetrics | None = None,
) -> None:
    """Run the service until `stop` is set and all jobs are drained; `stop_now` ends the grace period.

    `on_started` is called with the service's address once it answers. `redactor` removes secrets from all output.
    `metrics` are those that the log counts its lines in.
    """
    metrics = metrics or create_metrics(settings)
    create_data_dir(settings)
    with (
        DataDirectoryLock(settings.data_dir),
        contextlib.closing(open_socket(settings)) as sock,
        open_metrics_socket(settings) as metrics_sock,
    ):
        enter_service_cgroup()  # first: a process that is started before it stays outside
        async with orphaned_runs(settings) as found:  # soon: they wait for a limited time
            await _run_in_data_dir(
                settings, redactor, found, sock, metrics_sock,
                on_started=on_started, stop=stop, stop_now=stop_now, clock=clock, metrics=metrics,
            )  # fmt: skip


async def _run_in_data_dir(
    settings: Settings,
    redactor: Redactor,
    found: FoundRuns,
    sock: socket.socket,
    metrics_sock: socket.socket | None,
    *,
    on_started: Callable[[str], None],
    stop: asyncio.Event,
    stop_now: asyncio.Event,
    clock: Callable[[], datetime],
    metrics: ServiceMetrics,
) -> None:
    """Run the service in a data directory that is its own."""
    cli = find_agent_cli(settings)
    level = await choose_level(settings, cli)
    announce_level(settings, level)
    announce_credentials(settings)
    log_config_warnings(settings)
    store = await open_store(database_url(settings), clock=clock, on_commit=metrics.store_written)
    try:
        service = build_service(
            settings, store, stop.is_set, cli, level,
            redactor=redactor, clock=clock, metrics=metrics, found=found,
        )  # fmt: skip
        await service.keyring.load()
        await service.callbacks.endpoints.load()
        await service.schedules.load()
        host, port = sock.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        server_table = settings.tables.server
        limits = connection_limits(server_table.max_connections, server_table.max_connections_per_address)
        servers = [(HttpServer(service.app, limits, on_started=lambda: on_started(url)), sock)]
        if metrics_sock is not None:
            servers.append((create_metrics_server(service.scrape, metrics_sock), metrics_sock))
        async with contextlib.nullcontext() if service.gateway is None else service.gateway.serving():
            # After the gateway has settled open calls: the cost of an interrupted run is then known.
            await service.worker.recover()
            await sweep_cgroups()
            await _serve_until_stopped(service, servers, stop, stop_now)
        await service.telemetry.stop()
    finally:
        await store.close()


async def _serve_until_stopped(
    service: Service,
    servers: Sequence[tuple[HttpServer, socket.socket]],
    stop: asyncio.Event,
    stop_now: asyncio.Event,
) -> None:
    async with asyncio.TaskGroup() as group:
        http = [group.create_task(server.serve(sockets=[sock]), name="http") for server, sock in servers]
        late_imports = group.create_task(_load_late_modules(servers[0][0]), name="late imports")
        work = group.create_task(service.worker.run(), name="worker")
        callbacks = group.create_task(service.callbacks.run(), name="callbacks")
        telemetry = group.create_task(service.telemetry.run(), name="telemetry")
        schedules = group.create_task(service.schedules.scheduler.run(), name="schedules")
        await stop.wait()
        schedules.cancel()  # a tick of the stop is for the next start
        second_signal = group.create_task(_stop_on_second_signal(service, stop_now), name="hurry")
        await service.worker.drain()
        second_signal.cancel()
        service.feed.close()
        for server, _ in servers:
            server.should_exit = True
        await asyncio.wait(http)
        await service.queue.close()
        work.cancel()
        callbacks.cancel()
        telemetry.cancel()
        late_imports.cancel()
    structlog.get_logger("steadyhand").info("stopped")


async def _load_late_modules(server: HttpServer) -> None:
    await server.listening.wait()
    await load_late_modules()


async def _stop_on_second_signal(service: Service, stop_now: asyncio.Event) -> None:
    await stop_now.wait()
    service.queue.stop_all(StopReason.SHUTDOWN)


def serve(settings: Settings, *, announce: Callable[[str], None] = print) -> None:
    """Run the service in this process until SIGTERM, SIGINT or SIGHUP.

    A second SIGTERM or SIGINT ends the grace period. SIGHUP stays ignored if it was.
    """
    redactor = create_redactor(settings)
    service_table = settings.tables.service
    metrics = create_metrics(settings)
    configure_logging(
        service_table.log_level, redactor, log_format=service_table.log_format, on_line=metrics.line_logged
    )

    async def main() -> None:
        stop, stop_now = asyncio.Event(), asyncio.Event()

        def begin_stop() -> None:
            if not stop.is_set():
                stop.set()
                service_manager.notify(service_manager.STOPPING)

        def on_signal() -> None:
            if stop.is_set():
                stop_now.set()
            begin_stop()

        def on_started(url: str) -> None:
            freeze_startup_objects()
            announce(url)
            service_manager.notify(service_manager.READY)

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
            # A terminal that closes sends it twice: once by the shell, once by the kernel.
            loop.add_signal_handler(signal.SIGHUP, begin_stop)
        await run_service(
            settings, redactor, on_started=on_started, stop=stop, stop_now=stop_now, metrics=metrics
        )

    asyncio.run(main())


def freeze_startup_objects() -> None:
    """Turn garbage collection on, without the objects of the start; only for a process that is the service alone.

    It is off during the start (`cli/service.py`): the collections during the imports took an eighth of its processor
    time and freed nothing. The objects live until the end anyway, and each collection of them took a fifth of the time
    of accepting a job.
    """
    gc.freeze()
    gc.enable()
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])


@contextmanager
def embedded(settings: Settings, *, clock: Callable[[], datetime] = utc_now) -> Iterator[tuple[str, str]]:
    """Run the service in a thread of this process for the length of the block.

    Yield its address and a key with all scopes. Jobs that still run at the end are stopped at once.
    """
    secret = settings.api_key or secrets.token_urlsafe(32)
    settings = without_reattach(replace(settings, api_key=secret))
    redactor = create_redactor(settings)
    configure_logging("error", redactor)
    urls: list[str] = []
    errors: list[BaseException] = []
    ready = threading.Event()
    handles: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, asyncio.Event]] = []

    async def main() -> None:
        stop, stop_now = asyncio.Event(), asyncio.Event()
        handles.append((asyncio.get_running_loop(), stop, stop_now))

        def on_started(url: str) -> None:
            urls.append(url)
            ready.set()

        await run_service(
            settings, redactor, on_started=on_started, stop=stop, stop_now=stop_now, clock=clock
        )

    def run_in_thread() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001  # carried over to the thread that waits, below
            errors.append(error)
        finally:
            ready.set()

    service_thread = threading.Thread(target=run_in_thread, name="steadyhand", daemon=True)
    service_thread.start()
    ready.wait(60)
    if not urls:
        raise errors[0] if errors else ConfigError("The service did not start within 60 s.")
    try:
        yield urls[0], secret
    finally:
        loop, stop, stop_now = handles[0]
        loop.call_soon_threadsafe(stop.set)
        loop.call_soon_threadsafe(stop_now.set)
        service_thread.join(90)
