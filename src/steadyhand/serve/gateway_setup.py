"""Wires the gateway: the providers of the settings, the prices, and the limits on what may be spent."""

from collections.abc import Callable, Sequence
from datetime import datetime

import structlog

from steadyhand.agents import Agent
from steadyhand.config.providers import TERMS, ProviderSetting
from steadyhand.config.settings import Settings, micros
from steadyhand.errors import ConfigError
from steadyhand.gateway import Accounts, Credential, ModelGateway, Prices, Provider, Waits, budget_of
from steadyhand.job import Job
from steadyhand.ports import NO_LIMITS, Allowance, AllowancesOf, Check, KeyLimits, Ledger
from steadyhand.sandbox.sandbox import SOCKET

LimitsOf = Callable[[str], KeyLimits]
"""Gives what the key with this id may ask for, as it is now."""


def _no_limits(_key_id: str) -> KeyLimits:
    return NO_LIMITS


def gateway_of(
    settings: Settings,
    ledger: Ledger,
    limits_of: LimitsOf = _no_limits,
    *,
    sealed: bool,
    clock: Callable[[], datetime],
) -> ModelGateway | None:
    """Wire the way to the models; null where agents go by themselves: in the classic profile at level `none`.

    Raises `ConfigError` for a provider or a price that cannot be, and for a limit that nobody would hold.
    """
    if settings.classic and not sealed:
        _require_no_wall(settings)
        return None
    gateway = settings.tables.gateway
    return ModelGateway(
        settings.data_dir,
        slots=settings.tables.service.concurrency,
        socket_inside=str(SOCKET) if sealed else None,
        accounts=Accounts(ledger, Prices.load(settings.tables.prices), allowances_of(settings, limits_of)),
        providers=[provider_of(each) for each in settings.providers],
        clock=clock,
        waits=Waits(gateway.max_wait_seconds, gateway.max_waits_seconds),
    )


def _require_no_wall(settings: Settings) -> None:
    """Raise `ConfigError` for a limit that only the gateway could hold: one that is not held is worse than none."""
    tables = settings.tables
    asked = [] if tables.limits.service_per_day_usd is None else ["limits.service_per_day_usd"]
    asked += [
        f"agents.{name}.budget_per_day_usd"
        for name, agent in tables.agents.items()
        if agent.budget_per_day_usd is not None
    ]
    if asked:
        raise ConfigError(
            f"{', '.join(asked)}: nobody holds this in the classic profile at level none, whose agents go past the "
            "gateway. Take it out, or set STEADYHAND_ISOLATION=bwrap."
        )


def provider_of(setting: ProviderSetting) -> Provider:
    """Give a provider as the gateway knows it."""
    credential = None
    if setting.credential is not None and setting.secret is not None:
        credential = Credential(setting.credential, setting.secret, setting.header, setting.file)
    return Provider(setting.name, setting.kind, setting.base_url, credential, setting.region, setting.project)


def allowances_of(settings: Settings, limits_of: LimitsOf) -> AllowancesOf:
    """Say which limits hold for a job: its own, its agent's day, its key's day and month, the service's day."""
    per_day = settings.tables.limits.service_per_day_usd
    service = None if per_day is None else Allowance("service", "", "day", micros(per_day))

    def allowances(job: Job, agent: Agent) -> Sequence[Allowance]:
        found = list(budget_of(job, agent))
        if agent.day_micros is not None:
            found.append(Allowance("agent", agent.name, "day", agent.day_micros))
        limits = limits_of(job.api_key_id)
        if limits.day_micros is not None:
            found.append(Allowance("key", job.api_key_id, "day", limits.day_micros))
        if limits.month_micros is not None:
            found.append(Allowance("key", job.api_key_id, "month", limits.month_micros))
        return found if service is None else [*found, service]

    return allowances


# --- what to say -------------------------------------------------------------------------------


def announce(settings: Settings) -> None:
    """Say in the log what whoever runs the service should know of its credentials."""
    for setting in settings.providers:
        if setting.credential == "oauth":
            structlog.get_logger("steadyhand").warning(
                "credential.subscription",
                provider=setting.name,
                meaning=f"a personal subscription's token: read {TERMS} before others use this service",
            )


def checks(settings: Settings) -> list[Check]:
    """Say for each provider where it is and what its credential is."""
    return [_check(setting) for setting in settings.providers]


def _check(setting: ProviderSetting) -> Check:
    name = "credential" if setting.name == "default" else f"provider {setting.name}"
    where = provider_of(setting).url
    if setting.credential == "oauth":
        detail = f"a personal subscription's token: read {TERMS} before others use this service"
        return Check(name, True, detail)
    if setting.secret:
        kind = "an API key is set" if setting.kind == "anthropic" else f"a token for {setting.kind} is set"
        return Check(name, True, kind if setting.base_url is None else f"{kind}, for {where}")
    if setting.kind == "anthropic" and setting.base_url is None:
        return Check(
            name,
            False,
            "neither ANTHROPIC_API_KEY nor CLAUDE_CODE_OAUTH_TOKEN is set"
            if setting.name == "default"
            else "no api_key_file and no oauth_token_file",
            "export ANTHROPIC_API_KEY=... (or ANTHROPIC_API_KEY_FILE) before the start"
            if setting.name == "default"
            else f"set one in [providers.{setting.name}]",
        )
    return Check(name, True, f"none, and the model is at {where}")
