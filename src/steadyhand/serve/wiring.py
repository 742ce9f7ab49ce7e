"""What is wired to what: the only place where adapters are named."""

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
from fastapi import FastAPI

from steadyhand import __version__
from steadyhand.admission import Admission, spent_by
from steadyhand.agents import Agent
from steadyhand.api import Alias, ApiOptions, create_app
from steadyhand.config.secret_values import values_of
from steadyhand.config.settings import DEFAULT_PATH, Settings
from steadyhand.control import Control
from steadyhand.errors import TryLater
from steadyhand.event_log import Feed, Recorder
from steadyhand.gateway import ModelGateway
from steadyhand.job import Job
from steadyhand.keyring import Keyring, digest_of
from steadyhand.ports import ALL_SCOPES, ApiKey, Gateway, Place, Queue, Runner, Sandbox, Scope, Store
from steadyhand.queue.local import LocalQueue
from steadyhand.redact import Redactor
from steadyhand.runner.claude import install
from steadyhand.runner.claude.plain import PlainRunner
from steadyhand.runner.claude.runner import ClaudeRunner
from steadyhand.runner.process.agent_process import sweep
from steadyhand.runner.sandbox_exec import SandboxErrands
from steadyhand.serve.gateway_setup import gateway_of
from steadyhand.serve.isolation import UNSEALED, Level
from steadyhand.serve.redaction import announce as announce_secrets
from steadyhand.serve.redaction import redactor_of, watched
from steadyhand.store import SqlStore
from steadyhand.tool_calls import Exchange
from steadyhand.worker import Parking, Parts, Tending, Worker
from steadyhand.workspace.checkout import GitCheckouts
from steadyhand.workspace.git import GitSettings

CALLER_SCOPES: frozenset[Scope] = frozenset({"submit", "read", "cancel"})
SHORT_SECRET = 16
_WITHHELD = ("API_BEARER_TOKEN", "STEADYHAND_")


def now() -> datetime:
    """Give the time, in UTC."""
    return datetime.now(UTC)


# --- keys --------------------------------------------------------------------------------------


def admin_key(data_dir: Path) -> tuple[str, Path]:
    """Give the local all-scopes key and its file, made on the first start."""
    path = data_dir / "admin.key"
    if path.exists():
        return path.read_text("ascii").strip(), path
    secret = f"sh_admin_{secrets.token_urlsafe(32)}"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secret + "\n")
    return secret, path


def _key(key_id: str, source: str, secret: str, scopes: frozenset[Scope]) -> ApiKey:
    return ApiKey(key_id, source, digest_of(secret.encode()), scopes, now())


def keys_of(settings: Settings) -> list[ApiKey]:
    """Give the keys that are set outside the service; with none configured, `admin.key` is made and used."""
    found = []
    if settings.bearer_token:
        found.append(_key("k_bearer", "API_BEARER_TOKEN", settings.bearer_token, CALLER_SCOPES))
    if settings.api_key:
        found.append(_key("k_admin", "STEADYHAND_API_KEY", settings.api_key, ALL_SCOPES))
    log = structlog.get_logger("steadyhand.keys")
    for name, secret in (
        ("API_BEARER_TOKEN", settings.bearer_token),
        ("STEADYHAND_API_KEY", settings.api_key),
    ):
        if secret and len(secret) < SHORT_SECRET:
            log.warning("key.short", name=name, characters=len(secret), wanted=SHORT_SECRET)
    if not found and not settings.classic:
        secret, path = admin_key(settings.data_dir)
        log.info("key.admin", file=str(path))
        found.append(_key("k_local", "admin.key", secret, ALL_SCOPES))
    return found


# --- what an agent is given --------------------------------------------------------------------


def environment_of(
    settings: Settings, *, sealed: bool, alone: bool
) -> Callable[[Agent, Place], Mapping[str, str]]:
    """Say what the service grants an agent's process, beside what the gateway tells it and its profile names.

    That is a path and a locale. An agent that is left `alone`, with no gateway between it and its model, gets the
    service's own environment but for its keys, with the model's address and credential: the classic profile's way.
    """
    if sealed:
        base = {"PATH": DEFAULT_PATH, "LANG": "C.UTF-8", "SHELL": "/bin/bash"}
    elif not alone:
        base = {"PATH": settings.path, "LANG": settings.inherited.get("LANG", "C.UTF-8")}
    else:
        base = {k: v for k, v in settings.inherited.items() if not k.startswith(_WITHHELD)}
        told = {
            "ANTHROPIC_API_KEY": settings.anthropic_api_key,
            "CLAUDE_CODE_OAUTH_TOKEN": settings.oauth_token,
            "ANTHROPIC_BASE_URL": settings.base_url,
        }
        base |= {name: value for name, value in told.items() if value}
    return lambda _agent, _place: base


def agent_uid_base(settings: Settings) -> int | None:
    """Give the first uid of agents; null when the service is not root and cannot give them one of their own."""
    return settings.tables.service.agent_uid_base if os.geteuid() == 0 else None


# --- wiring ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of a running service that its life is made of."""

    app: FastAPI
    worker: Worker
    queue: Queue
    feed: Feed
    store: Store
    keyring: Keyring
    gateway: Gateway | None = None


def checkouts_of(
    settings: Settings,
    level: Level = UNSEALED,
    gateway: ModelGateway | None = None,
    redactor: Redactor | None = None,
) -> GitCheckouts:
    """Wire the checkouts; at a level with a boundary all that touches what agents leave runs inside it."""
    git, catalogue = settings.tables.git, settings.catalogue()
    return GitCheckouts(
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
        errands=SandboxErrands(level.sandbox, gateway) if level.sealed else None,
        overlay=level.overlay,
        shares=level.shares,
        redactor=redactor,
        disk_of=lambda job: catalogue.agent(job.agent).disk_bytes or settings.tables.defaults.disk,
    )


def cli_of(settings: Settings) -> Path:
    """Find the CLI, and put it where the agents' user can reach it. Raises `ConfigError` when there is none."""
    found = install.find_cli(
        settings.tables.runner.claude.path, classic=settings.classic, path_env=settings.path
    )
    return install.reachable(found, settings.data_dir, agent_uid_base(settings))


def runner_of(
    settings: Settings, cli: Path, sandbox: Sandbox, redactor: Redactor, *, budgeted: bool = True
) -> Runner:
    """Wire the runner of the profile; `budgeted` says that the CLI itself is to hold the budget."""
    if settings.classic:
        return PlainRunner(cli, sandbox, redactor)
    return ClaudeRunner(cli, sandbox, redactor, budgeted=budgeted)


def wire(
    settings: Settings,
    store: SqlStore,
    stopping: Callable[[], bool],
    cli: Path,
    level: Level = UNSEALED,
    *,
    redactor: Redactor | None = None,
    clock: Callable[[], datetime] = now,
) -> Service:
    """Make every part and join them; nothing runs yet."""
    redactor = redactor or redactor_of(settings)
    tables = settings.tables
    feed = Feed()
    keyring = Keyring(keys_of(settings), store, clock=clock)
    redactor.add(values_of(settings))  # the local key may be new
    announce_secrets(settings)
    catalogue, parking = settings.catalogue(), Parking()
    gateway = gateway_of(settings, store, keyring.limits_of, sealed=level.sealed, clock=clock)

    def may_start(job: Job) -> bool:
        """Keep jobs from a rate limit that stands, and turns from a job before them that waits for one."""
        walled = gateway is not None and gateway.wall(catalogue.agent(job.agent)) is not None
        return not walled and (job.parent_job_id is None or not parking.has(job.parent_job_id))

    queue = LocalQueue(
        store,
        capacity=tables.service.concurrency,
        max_queued=tables.service.max_queued,
        paused=tables.service.paused,
        may_start=may_start,
        most_running=lambda key_id: keyring.limits_of(key_id).running,
    )
    if gateway is not None:
        gateway.on_wall(queue.look_again)
    checkouts = checkouts_of(settings, level, gateway, redactor)
    exchange = Exchange(tables.openai.tool_result_seconds)
    control = Control(
        exchange=exchange,
        store=store,
        queue=queue,
        checkouts=checkouts,
        feed=feed,
        ledger=store,
        catalogue=catalogue,
        clock=clock,
        admission=Admission(
            limits_of=keyring.limits_of,
            backlog_of=queue.backlog,
            spent_of=spent_by(store, clock),
            clock=clock,
        ),
    )
    parts = Parts(
        store=store,
        queue=queue,
        checkouts=checkouts,
        runners={"claude": runner_of(settings, cli, level.sandbox, redactor, budgeted=gateway is None)},
        recorder=Recorder(store, feed, redactor),
        catalogue=catalogue,
        tending=Tending(
            node=tables.service.node,
            clock=clock,
            environment=watched(
                settings, redactor, environment_of(settings, alone=gateway is None, sealed=level.sealed)
            ),
            sweep=sweep,
            drain_seconds=tables.service.drain_seconds,
            keep_jobs=tables.retention.jobs,
            keep_transcripts=tables.retention.transcripts,
            keep_checkouts=tables.retention.kept_checkouts,
            max_bytes=tables.retention.max_bytes,
        ),
        ledger=store,
        gateway=gateway,
        parking=parking,
        exchange=exchange,
    )
    worker = Worker(parts)

    async def ready() -> None:
        if stopping():
            raise TryLater("The service is stopping.", code="draining", retry_after=5)
        await control.check()

    server = tables.server
    options = ApiOptions(
        profile=tables.service.profile,
        allowed_hosts=server.allowed_hosts,
        bind_host=server.host,
        public_url=server.public_url,
        max_body_bytes=server.max_body_bytes,
        openai_default_agent=tables.openai.default_agent,
        openai_models={
            name: Alias(alias.agent, alias.model, alias.reasoning)
            for name, alias in tables.openai.models.items()
        },
        version=__version__,
        ready=ready,
        redactor=redactor,
    )
    app = create_app(control=control, keyring=keyring, options=options)
    return Service(app, worker, queue, feed, store, keyring, gateway)


def database_url(settings: Settings) -> str:
    """Say where jobs are kept: in the data directory unless told otherwise."""
    return settings.tables.service.database_url or f"sqlite:///{settings.data_dir / 'steadyhand.db'}"
