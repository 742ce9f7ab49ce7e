"""Build the gateway from the settings: its providers, prices and budget limits."""

import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import structlog

from steadyhand.config.providers import CONSUMER_TERMS_URL, ProviderSetting
from steadyhand.config.settings import Settings
from steadyhand.errors import ConfigError
from steadyhand.gateway import (
    BillingDeps,
    Credential,
    GetKeyLimits,
    ModelGateway,
    Prices,
    Provider,
    RetryLimits,
    create_limits_getter,
    create_shared_limits_getter,
)
from steadyhand.metrics import ServiceMetrics
from steadyhand.money import to_micros
from steadyhand.ports import (
    NO_LIMITS,
    NO_TRACING,
    DoctorCheck,
    GetBudgetLimits,
    GetSharedLimits,
    JobTracing,
    KeyLimits,
    Ledger,
    ModelApi,
    OrphanedRun,
)
from steadyhand.ports.cluster_limits import BudgetLeases, CredentialStates
from steadyhand.sandbox.sandbox import MODEL_ADDRESS, SOCKET_PATH


def _no_limits(_key_id: str) -> KeyLimits:
    return NO_LIMITS


def create_gateway(
    settings: Settings,
    ledger: Ledger,
    get_key_limits: GetKeyLimits = _no_limits,
    *,
    sandboxed: bool,
    metrics: ServiceMetrics | None = None,
    tracing: JobTracing = NO_TRACING,
    orphans: Sequence[OrphanedRun] = (),
    clock: Callable[[], datetime],
    leases: BudgetLeases | None = None,
    credential_states: CredentialStates | None = None,
) -> ModelGateway | None:
    """Return the gateway; `None` in the classic profile at level `none`, where agents call the model directly.

    The `orphans` are runs of an earlier service, which connect as before. `leases` and `credential_states` are those
    that several nodes share. Raise `ConfigError` for an invalid provider
    or price, and for a limit that needs the gateway if there is none.
    """
    if settings.classic and not sandboxed:
        _reject_unenforced_budgets(settings)
        return None
    gateway_table = settings.tables.gateway
    return ModelGateway(
        settings.data_dir,
        slots=settings.tables.service.slots,
        sandbox_socket=str(SOCKET_PATH) if sandboxed else None,
        sandbox_address=MODEL_ADDRESS if sandboxed else None,
        billing=BillingDeps(
            ledger,
            Prices.load(settings.tables.prices),
            create_budget_limits_getter(settings, get_key_limits),
            gateway_table.budget_near,
            leases,
        ),
        credential_states=credential_states,
        providers=[create_provider(provider_setting) for provider_setting in settings.providers],
        clock=clock,
        metrics=metrics,
        tracing=tracing,
        adopted=_gateway_sockets(orphans),
        repeated_runs=[(each.job_id, each.run) for each in orphans if each.exit is None],
        expected_tokens=[str(each.facts["token"]) for each in orphans if "token" in each.facts],
        retry_limits=RetryLimits(gateway_table.max_wait_seconds, gateway_table.max_waits_seconds),
    )


def _gateway_sockets(orphans: Sequence[OrphanedRun]) -> Mapping[int | None, socket.socket]:
    """Return the gateway's sockets of the runs: those in sandboxes by their slot, that on loopback by None."""
    sockets: dict[int | None, socket.socket] = {}
    for orphan in orphans:
        listener = orphan.take_gateway_listener()
        if listener is None:
            continue
        key = orphan.place if orphan.sandboxed else None
        if key in sockets:
            listener.close()  # all runs on loopback have the same one
        else:
            sockets[key] = listener
    return sockets


def _reject_unenforced_budgets(settings: Settings) -> None:
    """Raise `ConfigError` for a limit that only the gateway could enforce: without it, the limit would do nothing."""
    tables = settings.tables
    unenforced = [] if tables.limits.service_per_day_usd is None else ["limits.service_per_day_usd"]
    unenforced += [
        f"agents.{name}.budget_per_day_usd"
        for name, agent in tables.agents.items()
        if agent.budget_per_day_usd is not None
    ]
    if unenforced:
        raise ConfigError(
            f"{', '.join(unenforced)}: only the gateway can enforce this, and the classic profile at level none has no "
            "gateway. Remove the setting, or set STEADYHAND_ISOLATION=bwrap."
        )


def create_budget_limits_getter(settings: Settings, get_key_limits: GetKeyLimits) -> GetBudgetLimits:
    """Return a function that returns the limits of a job: those of the settings and of its key."""
    return create_limits_getter(get_key_limits, _service_day_micros(settings))


def shared_limits_getter(settings: Settings, get_key_limits: GetKeyLimits) -> GetSharedLimits:
    """Return a function that returns the limits that the jobs of a key and an agent share."""
    return create_shared_limits_getter(get_key_limits, _service_day_micros(settings))


def _service_day_micros(settings: Settings) -> int | None:
    per_day = settings.tables.limits.service_per_day_usd
    return None if per_day is None else to_micros(per_day)


def create_provider(setting: ProviderSetting) -> Provider:
    """Return the gateway's form of a provider's settings."""
    credential = None
    if setting.credential is not None and setting.secret is not None:
        credential = Credential(setting.credential, setting.secret, setting.header, setting.file)
    kind: ModelApi = "openai" if setting.kind == "openai-compatible" else setting.kind
    return Provider(setting.name, kind, setting.base_url, credential, setting.region, setting.project)


# --- messages ----------------------------------------------------------------------------------


def log_credentials(settings: Settings) -> None:
    """Log a warning for each credential that has terms of its own, and for a provider that has none."""
    for setting in settings.providers:
        check = _check_provider(setting)
        if not check.ok:
            meaning = (
                "agents use their own login, if they have one"
                if settings.classic
                else "its jobs end as failed, outcome unauthorized"
            )
            structlog.get_logger("steadyhand").warning(
                "credential.missing",
                provider=setting.name,
                meaning=f"{check.detail}: {meaning}",
                remedy=check.remedy,
            )
        if setting.credential == "oauth":
            structlog.get_logger("steadyhand").warning(
                "credential.subscription",
                provider=setting.name,
                meaning=f"a personal subscription's token: read {CONSUMER_TERMS_URL} before others use this service",
            )


def check_providers(settings: Settings) -> list[DoctorCheck]:
    """Return a check for each provider, with its address and credential."""
    return [_check_provider(setting) for setting in settings.providers]


def _check_provider(setting: ProviderSetting) -> DoctorCheck:
    name = "credential" if setting.name == "default" else f"provider {setting.name}"
    url = create_provider(setting).url
    if setting.credential == "oauth":
        detail = f"a personal subscription's token: read {CONSUMER_TERMS_URL} before others use this service"
        return DoctorCheck(name, True, detail)
    if setting.secret:
        word = "a token" if setting.kind in ("bedrock", "vertex") else "an API key"
        kind = f"{word} is set" if setting.kind == "anthropic" else f"{word} for {setting.kind} is set"
        return DoctorCheck(name, True, kind if setting.base_url is None else f"{kind}, for {url}")
    if setting.kind in ("openai", "gemini") and setting.base_url is None:
        return DoctorCheck(name, False, "no api_key_file", f"set one in [providers.{setting.name}]")
    if setting.kind == "anthropic" and setting.base_url is None:
        return DoctorCheck(
            name,
            False,
            "neither ANTHROPIC_API_KEY nor CLAUDE_CODE_OAUTH_TOKEN is set"
            if setting.name == "default"
            else "no api_key_file and no oauth_token_file",
            "export ANTHROPIC_API_KEY=... (or ANTHROPIC_API_KEY_FILE) before the start"
            if setting.name == "default"
            else f"set one in [providers.{setting.name}]",
        )
    return DoctorCheck(name, True, f"none, and the model is at {url}")
