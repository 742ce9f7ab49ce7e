"""Which secrets never go out with what the service tells, and when they are read again."""

from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from steadyhand.agents import Agent
from steadyhand.config.secret_values import secrets_of, values_of
from steadyhand.config.settings import Settings
from steadyhand.ports import Place
from steadyhand.redact import MIN_SECRET, Redactor


def redactor_of(settings: Settings) -> Redactor:
    """Give what takes the live secrets out of what is told."""
    return Redactor(values_of(settings))


def announce(settings: Settings) -> None:
    """Say once which secrets are too short to be looked for."""
    short = [Path(each.name).name for each in secrets_of(settings) if each.is_short]
    if short:
        structlog.get_logger("steadyhand.secrets").warning(
            "secrets.short",
            names=short,
            wanted=MIN_SECRET,
            detail="These are not taken out of what agents say.",
        )


def watched(
    settings: Settings, redactor: Redactor, environment: Callable[[Agent, Place], Mapping[str, str]]
) -> Callable[[Agent, Place], Mapping[str, str]]:
    """Read the secrets again whenever an agent is granted its environment: their files may have been renewed."""

    def granted(agent: Agent, place: Place) -> Mapping[str, str]:
        redactor.add(values_of(settings))
        return environment(agent, place)

    return granted
