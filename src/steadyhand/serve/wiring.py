"""The wiring of all parts: with the `*_setup` files beside it, the only place that names adapters."""

import asyncio
import importlib
import os
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from starlette.applications import Starlette

from steadyhand import __version__, web
from steadyhand.admission import Admission, spending_from_ledger
from steadyhand.api import ApiOptions, ModelAlias, create_app
from steadyhand.api.native.serializers import job_json
from steadyhand.api.openai.responses.resource import AppendRequest
from steadyhand.api.openai.responses.webhook_event import webhook_event
from steadyhand.callbacks.plan import Renderers
from steadyhand.cancellations import Cancellations
from steadyhand.clock import utc_now
from steadyhand.config.secret_values import secret_values
from steadyhand.config.settings import Settings
from steadyhand.control import Control
from steadyhand.errors import RetryLater
from steadyhand.event_log import EventFeed, EventLog
from steadyhand.gateway import ModelGateway
from steadyhand.job import Job
from steadyhand.keyring import Keyring, secret_digest
from steadyhand.metrics import ServiceMetrics
from steadyhand.ports import (
    ALL_SCOPES,
    ApiKey,
    DoctorCheck,
    Gateway,
    JobObserver,
    JobObservers,
    Queue,
    Scope,
    Store,
)
from steadyhand.ports.artifacts import Artifacts
from steadyhand.ports.nodes import NodeRole, Nodes
from steadyhand.redact import Redactor
from steadyhand.retry import continues_parent
from steadyhand.runner.claude.runner import ClaudeRunner
from steadyhand.runner.claude.tool_names import TOOL_NAMES
from steadyhand.runner.process.kill_run import kill_leftover_run
from steadyhand.runner.process.sandbox_exec import ProcessSandboxExec
from steadyhand.schedules.ended_jobs import EndedJobs
from steadyhand.serve.artifacts_setup import PROGRESS_SECONDS, open_artifacts
from steadyhand.serve.callbacks_setup import Callbacks, create_callbacks
from steadyhand.serve.gateway_setup import create_gateway, shared_limits_getter
from steadyhand.serve.isolation import NO_ISOLATION, IsolationLevel
from steadyhand.serve.limits_setup import SharedLimits, create_shared_limits
from steadyhand.serve.metrics_setup import ScrapeService, ServiceReadings, create_metrics, create_scrape
from steadyhand.serve.node_calls_setup import create_node_calls
from steadyhand.serve.nodes_setup import create_nodes, node_info, read_figures
from steadyhand.serve.queue_setup import count_waiting_runs, create_queue, is_cut_off
from steadyhand.serve.reattach import FoundRuns, held_runs_of
from steadyhand.serve.redaction import log_short_secrets as announce_secrets
from steadyhand.serve.redaction import with_secret_refresh
from steadyhand.serve.runner_setup import (
    create_agent_files,
    create_environment,
    create_other_runners,
    create_runner,
)
from steadyhand.serve.schedules_setup import ScheduleParts, create_schedules
from steadyhand.serve.telemetry_setup import Telemetry, create_telemetry
from steadyhand.steering import SteerBroker
from steadyhand.store import SqlStore, is_postgres_url
from steadyhand.tool_calls import ToolCallBroker
from steadyhand.worker import ParkedJobs, Worker, WorkerConfig, WorkerDeps
from steadyhand.workspace.checkout import GitCheckouts
from steadyhand.workspace.git import GitSettings
from steadyhand.workspace.in_place import directories_in_place

if TYPE_CHECKING:
    from steadyhand.serve.shared_state import SharedState

CALLER_SCOPES: frozenset[Scope] = frozenset({"submit", "read", "cancel"})
MIN_SECRET_LENGTH = 16


# --- keys --------------------------------------------------------------------------------------


def load_admin_key(data_dir: Path) -> tuple[str, Path]:
    """Return the local key with all scopes and its file, which the first start creates."""
    path = data_dir / "admin.key"
    if path.exists():
        return path.read_text("ascii").strip(), path
    secret = f"sh_admin_{secrets.token_urlsafe(32)}"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secret + "\n")
    return secret, path


def _configured_key(key_id: str, source: str, secret: str, scopes: frozenset[Scope]) -> ApiKey:
    return ApiKey(key_id, source, secret_digest(secret.encode()), scopes, utc_now())


def configured_keys(settings: Settings) -> list[ApiKey]:
    """Return the keys that are configured outside of the store. Without any, create and return `admin.key`."""
    keys = []
    if settings.bearer_token:
        keys.append(_configured_key("k_bearer", "API_BEARER_TOKEN", settings.bearer_token, CALLER_SCOPES))
    if settings.api_key:
        keys.append(_configured_key("k_admin", "STEADYHAND_API_KEY", settings.api_key, ALL_SCOPES))
    log = structlog.get_logger("steadyhand.keys")
    for name, secret in (
        ("API_BEARER_TOKEN", settings.bearer_token),
        ("STEADYHAND_API_KEY", settings.api_key),
    ):
        if secret and len(secret) < MIN_SECRET_LENGTH:
            log.warning("key.short", name=name, characters=len(secret), wanted=MIN_SECRET_LENGTH)
    if not keys and not settings.classic:
        secret, path = load_admin_key(settings.data_dir)
        log.info("key.admin", file=str(path))
        keys.append(_configured_key("k_local", "admin.key", secret, ALL_SCOPES))
    return keys


# --- wiring ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of a running service."""

    app: Starlette
    worker: Worker
    queue: Queue
    feed: EventFeed
    store: Store
    keyring: Keyring
    scrape: ScrapeService
    callbacks: Callbacks
    telemetry: Telemetry
    schedules: ScheduleParts
    nodes: Nodes
    gateway: Gateway | None = None
    shared: "SharedState | None" = None
    limits: SharedLimits | None = None


def create_checkouts(
    settings: Settings,
    level: IsolationLevel = NO_ISOLATION,
    gateway: ModelGateway | None = None,
    *,
    redactor: Redactor,
    artifacts: Artifacts | None = None,
) -> GitCheckouts:
    """Return the checkouts. At a sandboxed level, all git on the files of agents runs inside the sandbox."""
    git, catalog = settings.tables.git, settings.build_catalog()
    agent_files_of = create_agent_files(settings)
    create: Callable[..., GitCheckouts] = GitCheckouts
    if artifacts is not None:
        from steadyhand.workspace.shared_checkouts import SharedCheckouts  # noqa: PLC0415  # one node needs it not

        create = partial(SharedCheckouts, artifacts=artifacts)
    return create(
        settings.data_dir,
        agent_uid_base=settings.tables.service.agent_uid_base,
        git=GitSettings(
            author_name=git.author_name,
            author_email=git.author_email,
            credential_file=git.credential_file,
            ssh_key_file=git.ssh_key_file,
            ca_file=git.ca_file,
        ),
        classic=settings.classic,
        home=settings.home,
        sandbox_exec=ProcessSandboxExec(level.sandbox, gateway) if level.is_sandboxed else None,
        overlay=level.overlay,
        shares_objects=level.shares_objects,
        agent_files=agent_files_of("claude"),
        agent_files_of=agent_files_of,
        redactor=redactor,
        disk_limit_of=lambda job: catalog.agent(job.agent).disk_bytes or settings.tables.defaults.disk,
    )


def build_service(
    settings: Settings,
    store: SqlStore,
    is_stopping: Callable[[], bool],
    cli: Path,
    level: IsolationLevel = NO_ISOLATION,
    *,
    redactor: Redactor,
    clock: Callable[[], datetime] = utc_now,
    metrics: ServiceMetrics | None = None,
    found: FoundRuns | None = None,
    role: NodeRole = "serve",
) -> Service:
    """Create all parts and connect them, but start none. `found` are the runs that an earlier service left."""
    found, tables, metrics = found or FoundRuns(), settings.tables, metrics or create_metrics(settings)
    feed = EventFeed()
    shared = create_shared_state(settings)
    relay_live = None if shared is None else shared.follow_events(store, feed)
    keyring = Keyring(configured_keys(settings), store, is_shared=shared is not None, clock=clock)
    catalog, parking = settings.build_catalog(), ParkedJobs()
    telemetry = create_telemetry(settings, metrics, redactor, clock)
    ended = EndedJobs()
    observers: list[JobObserver] = [metrics, ended, *([telemetry.tracing] if telemetry.traces else [])]
    observer: JobObserver = JobObservers(*observers)
    limits = create_shared_limits(settings, shared, may_use=lambda: not is_cut_off(queue))
    gateway = create_gateway(
        settings,
        store,
        keyring.limits_of,
        sandboxed=level.is_sandboxed,
        metrics=metrics,
        tracing=telemetry.tracing,
        orphans=found.orphans,
        clock=clock,
        leases=None if limits is None else limits.leases,
        credential_states=None if limits is None else limits.credentials,
    )

    def may_start(job: Job) -> bool:
        """Return false while the credential of the job is blocked or rests, or while its parent is parked."""
        if job.parent_job_id is not None and continues_parent(job) and parking.contains(job.parent_job_id):
            return False
        active = (catalog.agent(other.agent) for other in queue.active_jobs())
        return gateway is None or gateway.may_start(catalog.agent(job.agent), active)

    async def end_lost_run(job_id: str, job_run: int) -> None:
        await worker.end_lost_run(job_id, job_run)

    info = node_info(settings, role)

    directories = directories_in_place(catalog.workspaces)
    queue = create_queue(
        settings,
        store,
        shared,
        can_start=may_start,
        placement_of=catalog.placement_of,
        info=info,
        get_figures=lambda: read_figures(queue, worker),
        running_limit=lambda key_id: keyring.limits_of(key_id).running,
        queued_limit=lambda key_id: keyring.limits_of(key_id).queued,
        directory_of=lambda job: directories.get(job.workspace or ""),
        on_accepted=metrics.job_accepted,
        on_lost=end_lost_run,
    )
    if gateway is not None:
        gateway.on_credential_change(queue.recheck)
    artifacts = open_artifacts(settings, store)
    checkouts = create_checkouts(settings, level, gateway, redactor=redactor, artifacts=artifacts)
    callbacks = create_callbacks(
        settings,
        store,
        redactor,
        Renderers(lambda job: job_json(job, None), webhook_event),
        clock,
        endpoint_store=store,
        key_name=keyring.name_of,
        begin_span=telemetry.delivery_spans(store),
        is_shared=shared is not None,
    )
    redactor.add(secret_values(settings))  # the local key may be new
    announce_secrets(settings)
    steers = SteerBroker()
    tool_call_broker = ToolCallBroker(tables.openai.tool_result_seconds)
    cancellations = Cancellations()
    node_calls = create_node_calls(settings, shared)
    control = Control(
        node_calls=node_calls,
        read_update=AppendRequest.from_json,
        tool_calls=tool_call_broker,
        steers=steers,
        cancellations=cancellations,
        observer=observer,
        tracing=telemetry.tracing,
        get_shared_limits=shared_limits_getter(settings, keyring.limits_of),
        list_limited_keys=keyring.list_limited,
        store=store,
        outbox=store,
        saved_items=store,
        check_callback=callbacks.guard.check,
        queue=queue,
        checkouts=checkouts,
        feed=feed,
        ledger=store,
        catalog=catalog,
        clock=clock,
        admission=Admission(
            get_limits=keyring.limits_of,
            get_backlog=queue.backlog,
            # With several nodes the gateway of this one does not know what the others have spent.
            get_spending=spending_from_ledger(store, clock)
            if gateway is None or limits is not None
            else gateway.spent_by_key,
            get_waiting_runs=count_waiting_runs(queue, tool_call_broker),
            rates=None if limits is None else limits.rates,
            max_waiting_runs=tables.service.max_waiting_runs_per_key,
            clock=clock,
        ),
    )
    schedules = create_schedules(
        settings,
        store.schedules,
        control,
        keyring,
        ended,
        get_job=store.get,
        metrics=metrics,
        clock=clock,
    )
    runner = create_runner(settings, cli, level.sandbox, redactor, budgeted=gateway is None)
    worker_deps = WorkerDeps(
        store=store,
        queue=queue,
        checkouts=checkouts,
        runners={"claude": runner, **create_other_runners(settings, level.sandbox, redactor)},
        warm_runners={"claude": runner} if isinstance(runner, ClaudeRunner) and gateway is not None else {},
        event_log=EventLog(store, feed, redactor, hold=True, observer=observer, relay_live=relay_live),
        catalog=catalog,
        config=WorkerConfig(
            node=tables.service.node,
            clock=clock,
            environment_for=with_secret_refresh(
                settings,
                redactor,
                create_environment(settings, without_gateway=gateway is None, sandboxed=level.is_sandboxed),
            ),
            kill_leftovers=kill_leftover_run,
            drain_seconds=tables.service.drain_seconds,
            keep_jobs=tables.retention.jobs,
            keep_transcripts=tables.retention.transcripts,
            keep_checkouts=tables.retention.kept_checkouts,
            max_bytes=tables.retention.max_bytes,
            progress_seconds=None if artifacts is None else PROGRESS_SECONDS,
            max_waiting_runs=tables.service.waiting_runs,
            max_waiting_runs_per_key=tables.service.max_waiting_runs_per_key,
            first_warm_slot=tables.service.slots,
            warm_memory=tables.service.warm_memory,
        ),
        ledger=store,
        node_calls=node_calls,
        gateway=gateway,
        parked=parking,
        tool_calls=tool_call_broker,
        steers=steers,
        cancellations=cancellations,
        metrics=metrics,
        tracing=telemetry.tracing,
        held_runs=held_runs_of(settings),
        orphans=found.orphans,
        lost_runs=frozenset(found.lost),
        ended_after_stop=frozenset(found.ended_after_stop),
    )
    worker = Worker(worker_deps)
    nodes = create_nodes(info, queue, store.drained_nodes, worker, clock)
    metrics.sources.append(
        ServiceReadings(
            settings,
            queue,
            feed,
            store,
            worker,
            gateway,
            callbacks.deliverer.counts,
            callbacks.notification_counts,
            clock,
            nodes.counts,
        )
    )
    scrape = create_scrape(metrics, settings.data_dir)

    async def check_ready() -> None:
        if is_stopping():
            raise RetryLater("The service is stopping.", code="draining", retry_after=5)
        await control.check()

    server = tables.server
    options = ApiOptions(
        profile=tables.service.profile,
        allowed_hosts=server.allowed_hosts,
        bind_host=server.host,
        public_url=server.public_url,
        cors_origins=server.cors_origins,
        max_body_bytes=server.max_body_bytes,
        openai_default_agent=tables.openai.default_agent,
        openai_models={
            name: ModelAlias(alias.agent, alias.model, alias.reasoning)
            for name, alias in tables.openai.models.items()
        },
        version=__version__,
        readiness_check=check_ready,
        get_warm_processes=worker.warm_processes,
        get_warm_agents=worker.warm_agents,
        get_rejected_providers=(lambda: ()) if gateway is None else gateway.rejected_providers,
        get_callback_secret=callbacks.secret.secret_for,
        callback_endpoints=callbacks.endpoints,
        schedules=schedules.registry,
        nodes=nodes,
        redactor=redactor,
        on_response=metrics.response_began,
        scrape=scrape,
        node=tables.service.node,
        node_calls=node_calls,
        page_sessions=None if shared is None else store.page_sessions,
        run_doctor=lambda: _run_doctor(settings),
    )
    if shared is not None:
        shared.follow_settings(store, keyring, callbacks.endpoints.load, ended.wake)
    app = create_app(
        control=control,
        keyring=keyring,
        options=options,
        tool_names=TOOL_NAMES,
        more_routes=() if settings.classic else web.create_routes(),
    )
    return Service(
        app,
        worker,
        queue,
        feed,
        store,
        keyring,
        scrape,
        callbacks,
        telemetry,
        schedules,
        nodes,
        gateway,
        shared,
        limits,
    )


async def _run_doctor(settings: Settings) -> AsyncGenerator[Sequence[DoctorCheck], None]:
    """Run the checks of `steadyhand doctor`, whose modules are loaded by the first run."""
    doctor = await asyncio.to_thread(importlib.import_module, "steadyhand.serve.doctor")
    async with aclosing(doctor.iter_checks(settings)) as groups:
        async for checks in groups:
            yield checks


def create_shared_state(settings: Settings) -> "SharedState | None":
    """Return what nodes share by a database of Postgres; None if there is none, and so one node."""
    url = database_url(settings)
    if not is_postgres_url(url):
        return None
    from steadyhand.serve.shared_state import SharedState  # noqa: PLC0415  # its driver is an extra
    from steadyhand.store.postgres.listener import Listener  # noqa: PLC0415

    return SharedState(Listener(settings.tables.service.database_listen_url or url))


def database_url(settings: Settings) -> str:
    """Return the URL of the database; by default it is in the data directory."""
    return settings.tables.service.database_url or f"sqlite:///{settings.data_dir / 'steadyhand.db'}"
