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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

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
from steadyhand.serve.connection_table import connection_limits
from steadyhand.serve.gateway_setup import log_credentials as announce_credentials
from steadyhand.serve.handover import HandoverServer, Inheritance, inherit
from steadyhand.serve.http_server import HttpServer
from steadyhand.serve.isolation import IsolationLevel, choose_level
from steadyhand.serve.isolation import log_isolation as announce_level
from steadyhand.serve.late_imports import load_late_modules
from steadyhand.serve.listen_socket import bind_socket
from steadyhand.serve.logs import configure_logging
from steadyhand.serve.metrics_server import create_metrics_server, open_metrics_socket
from steadyhand.serve.metrics_setup import create_metrics
from steadyhand.serve.queue_setup import queue_opened, require_role
from steadyhand.serve.reattach import FoundRuns, orphaned_runs, without_reattach
from steadyhand.serve.redaction import create_redactor
from steadyhand.serve.reload import Reload
from steadyhand.serve.runner_setup import find_agent_cli
from steadyhand.serve.wiring import Service, build_service, database_url
from steadyhand.serve.worker_app import WorkerApp
from steadyhand.store import DataDirectoryLock, open_store

__all__ = ["embedded", "serve"]

GC_THRESHOLD = 10_000
"""New objects between two runs of the garbage collector; an accepted job makes some dozens."""

# --- start and stop ----------------------------------------------------------------------------


def open_socket(settings: Settings, inheritance: Inheritance | None = None) -> socket.socket:
    """Return the bound socket, if possible that of the service before. A port in use fails before any change."""
    server = settings.tables.server
    inherited = None if inheritance is None else inheritance.take_listener("http", server.host, server.port)
    return inherited or bind_socket(server.host, server.port, _bind_remedy)


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


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The begin and the end of a service: it runs until `stop` is set and all jobs are drained.

    `stop_now` ends the grace period. `on_started` is called with the service's address once it answers. With `handover`
    another service may replace this one, and with `replace` this one replaces the service that runs, if there is one.
    """

    on_started: Callable[[str], None]
    stop: asyncio.Event
    stop_now: asyncio.Event
    handover: HandoverServer | None = None
    replace: bool = False

    @property
    def is_handed_over(self) -> bool:
        """True if another service is about to take the place of this one."""
        return self.handover is not None and self.handover.has_successor

    @property
    def is_stopping(self) -> bool:
        """True if this service stops and none takes its place."""
        return self.stop.is_set() and not self.is_handed_over


async def run_service(
    settings: Settings,
    redactor: Redactor,
    lifetime: Lifetime,
    *,
    clock: Callable[[], datetime] = utc_now,
    metrics: ServiceMetrics | None = None,
    works_only: bool = False,
) -> None:
    """Run the service for its lifetime. `redactor` removes secrets from all output.

    `metrics` are those that the log counts its lines in. With `works_only` it takes jobs of the database that it shares
    with other nodes, and answers no requests but those for its health and metrics.
    """
    require_role(settings, works_only=works_only)
    metrics = metrics or create_metrics(settings)
    create_data_dir(settings)
    handover, agent_cli = lifetime.handover, None
    async with AsyncExitStack() as stack:
        if handover is not None:
            stack.push_async_callback(
                handover.close
            )  # last: the data directory is then free for the next service
        inheritance = await inherit(settings.data_dir) if lifetime.replace else Inheritance()
        stack.callback(inheritance.close)
        if inheritance.channel is not None:
            # The other service works on meanwhile. What fails here leaves it as it is.
            enter_service_cgroup()
            agent_cli = await _find_agent_cli(settings)
            await inheritance.take_over()
        stack.enter_context(DataDirectoryLock(settings.data_dir))
        sock = stack.enter_context(contextlib.closing(open_socket(settings, inheritance)))
        metrics_sock = stack.enter_context(open_metrics_socket(settings, inheritance.take_listener))
        listeners = {"http": sock} | ({} if metrics_sock is None else {"metrics": metrics_sock})
        connections = inheritance.take_connections()
        enter_service_cgroup()  # first: a process that is started before it stays outside
        found = await stack.enter_async_context(orphaned_runs(settings))  # soon: they wait for a limited time
        if handover is not None:
            await stack.enter_async_context(handover.listening(settings.data_dir, listeners))
        cli, level = agent_cli or await _find_agent_cli(settings)
        start = _Start(settings, lifetime, cli, level, found, listeners, connections)
        await _run_in_data_dir(start, redactor, clock=clock, metrics=metrics, works_only=works_only)


@dataclass(frozen=True, slots=True)
class _Start:
    """The parts that a service has when it begins to work in its data directory."""

    settings: Settings
    lifetime: Lifetime
    cli: Path
    level: IsolationLevel
    found: FoundRuns
    listeners: Mapping[str, socket.socket]
    connections: Sequence[socket.socket]


async def _find_agent_cli(settings: Settings) -> tuple[Path, IsolationLevel]:
    """Return the agents' CLI and their level of isolation. Raise `ConfigError`."""
    cli = find_agent_cli(settings)
    return cli, await choose_level(settings, cli)


async def _run_in_data_dir(
    start: _Start,
    redactor: Redactor,
    *,
    clock: Callable[[], datetime],
    metrics: ServiceMetrics,
    works_only: bool,
) -> None:
    """Run the service in a data directory that is its own."""
    settings, lifetime, listeners = start.settings, start.lifetime, start.listeners
    announce_level(settings, start.level)
    announce_credentials(settings)
    log_config_warnings(settings)
    store = await open_store(
        database_url(settings),
        clock=clock,
        on_commit=metrics.store_written,
        node=settings.tables.service.node,
    )
    try:
        service = build_service(
            settings, store, lambda: lifetime.is_stopping, start.cli, start.level,
            redactor=redactor, clock=clock, metrics=metrics, found=start.found,
            role="worker" if works_only else "serve",
        )  # fmt: skip
        await service.keyring.load()
        await service.callbacks.endpoints.load()
        if service.shared is not None:
            await service.callbacks.secret.share(store.page_sessions.share_secret)
        await service.schedules.load()
        await service.nodes.load()
        host, port = listeners["http"].getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        server_table = settings.tables.server
        limits = connection_limits(server_table.max_connections, server_table.max_connections_per_address)
        http_server = HttpServer(
            WorkerApp(service.app) if works_only else service.app,
            limits,
            on_started=lambda: lifetime.on_started(url),
            connections=start.connections,
        )
        servers = [(http_server, listeners["http"])]
        if "metrics" in listeners:
            servers.append(
                (create_metrics_server(service.scrape, listeners["metrics"]), listeners["metrics"])
            )
        async with (
            contextlib.nullcontext() if service.limits is None else service.limits.opened(),
            contextlib.nullcontext() if service.gateway is None else service.gateway.serving(),
            queue_opened(service.queue),
        ):
            # After the gateway has settled open calls: the cost of an interrupted run is then known.
            await service.worker.recover()
            await sweep_cgroups()
            await _serve_until_stopped(service, servers, lifetime)
        await service.telemetry.stop()
    finally:
        await store.close()


async def _serve_until_stopped(
    service: Service,
    servers: Sequence[tuple[HttpServer, socket.socket]],
    lifetime: Lifetime,
) -> None:
    handover = lifetime.handover
    async with asyncio.TaskGroup() as group:
        http = [group.create_task(server.serve(sockets=[sock]), name="http") for server, sock in servers]
        late_imports = group.create_task(_load_late_modules(servers[0][0]), name="late imports")
        work = group.create_task(service.worker.run(), name="worker")
        callbacks = group.create_task(service.callbacks.run(), name="callbacks")
        telemetry = group.create_task(service.telemetry.run(), name="telemetry")
        shared = None if service.shared is None else group.create_task(service.shared.run(), name="shared")
        schedules = group.create_task(service.schedules.scheduler.run(), name="schedules")
        await lifetime.stop.wait()
        schedules.cancel()  # a tick of the stop is for the next start
        second_signal = group.create_task(_stop_on_second_signal(service, lifetime.stop_now), name="hurry")
        await service.worker.drain(accepts_jobs=lifetime.is_handed_over)
        second_signal.cancel()
        service.feed.close()
        if handover is not None and lifetime.is_handed_over:
            servers[0][0].pass_connections_to(handover.add_connection)
        for server, _ in servers:
            server.stop()
        await asyncio.wait(http)
        if handover is not None:
            await handover.send_connections()
        await service.queue.close()
        work.cancel()
        callbacks.cancel()
        telemetry.cancel()
        late_imports.cancel()
        if shared is not None:
            shared.cancel()
    structlog.get_logger("steadyhand").info("stopped")


async def _load_late_modules(server: HttpServer) -> None:
    await server.listening.wait()
    await load_late_modules()


async def _stop_on_second_signal(service: Service, stop_now: asyncio.Event) -> None:
    await stop_now.wait()
    service.queue.stop_all(StopReason.SHUTDOWN)


def serve(
    settings: Settings,
    *,
    announce: Callable[[str], None] = print,
    replace_running: bool = False,
    works_only: bool = False,
) -> None:
    """Run the service in this process until SIGTERM, SIGINT or SIGHUP; `works_only` as for `run_service`.

    A second SIGTERM or SIGINT ends the grace period. SIGHUP stays ignored if it was. SIGUSR2 starts the next service,
    which takes the place of this one. With `replace_running` this one takes the place of the service that runs.
    """
    redactor = create_redactor(settings)
    service_table = settings.tables.service
    metrics = create_metrics(settings)
    configure_logging(
        service_table.log_level, redactor, log_format=service_table.log_format, on_line=metrics.line_logged
    )

    async def main() -> None:
        stop, stop_now = asyncio.Event(), asyncio.Event()
        reload = Reload()

        def begin_stop() -> None:
            if not stop.is_set():
                stop.set()
                service_manager.notify(service_manager.STOPPING)

        def hand_over(successor: int) -> None:
            if not stop.is_set():
                reload.hand_over(successor)
                stop.set()  # without a word to the manager: the unit goes on

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
        loop.add_signal_handler(signal.SIGUSR2, reload.begin)
        handover = HandoverServer(service_table.drain_seconds, hand_over, reload.refusal)
        lifetime = Lifetime(on_started, stop, stop_now, handover, replace_running)
        with contextlib.closing(reload):
            await run_service(settings, redactor, lifetime, metrics=metrics, works_only=works_only)

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

        await run_service(settings, redactor, Lifetime(on_started, stop, stop_now), clock=clock)

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
