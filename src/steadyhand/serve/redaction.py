"""The secrets that redaction removes from all output, and when they are read again."""

from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from steadyhand.agents import Agent
from steadyhand.config.secret_values import read_secrets, secret_values
from steadyhand.config.settings import Settings
from steadyhand.ports import Checkout
from steadyhand.redact import MIN_SECRET, Redactor


def create_redactor(settings: Settings) -> Redactor:
    """Return a redactor with the secrets that exist now."""
    return Redactor(secret_values(settings))


def log_short_secrets(settings: Settings) -> None:
    """Log the names of secrets that are too short for redaction."""
    short_names = [Path(each.name).name for each in read_secrets(settings) if each.is_short]
    if short_names:
        structlog.get_logger("steadyhand.secrets").warning(
            "secrets.short",
            names=short_names,
            wanted=MIN_SECRET,
            detail="These secrets are not removed from the output of agents.",
        )


def with_secret_refresh(
    settings: Settings, redactor: Redactor, environment: Callable[[Agent, Checkout], Mapping[str, str]]
) -> Callable[[Agent, Checkout], Mapping[str, str]]:
    """Return an environment function that first reads the secrets again: their files may have been renewed."""

    def refreshed_environment(agent: Agent, checkout: Checkout) -> Mapping[str, str]:
        redactor.add(secret_values(settings))
        return environment(agent, checkout)

    return refreshed_environment
