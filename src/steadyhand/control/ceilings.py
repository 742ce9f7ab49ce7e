"""The ceilings of a request for work: those of the service, of the agent and of the caller's key. Pure.

A value that a request names must not be above a ceiling. A default is lowered to the nearest ceiling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from steadyhand.agents import Agent, Limits
from steadyhand.control.requests import LARGEST_BUDGET_MICROS, LARGEST_TIMEOUT_SECONDS
from steadyhand.errors import Forbidden, InvalidRequest
from steadyhand.job import JobWarning
from steadyhand.job_warnings import WarningCode
from steadyhand.money import format_dollars
from steadyhand.ports import KeyLimits

_NumberT = TypeVar("_NumberT", int, float)


@dataclass(frozen=True, slots=True)
class Ceiling(Generic[_NumberT]):
    """The ceilings of one figure, each with its owner; None is no ceiling."""

    field: str
    """The field of a request for work."""
    classic_field: str
    """The field of `/execute`."""
    setting: str
    largest: _NumberT
    owners: Sequence[tuple[str, _NumberT | None]]

    @property
    def nearest(self) -> tuple[str, _NumberT] | None:
        """Return the smallest ceiling with its owner, or None."""
        return min(
            ((owner, value) for owner, value in self.owners if value is not None),
            key=lambda each: each[1],
            default=None,
        )

    def check(self, value: _NumberT) -> _NumberT:
        """Return a value that a request names, or raise `InvalidRequest` (`limit_exceeded`)."""
        nearest = self.nearest
        if nearest is None or value <= nearest[1]:
            return value
        owner, ceiling = nearest
        raise InvalidRequest.at(
            f"/{self.field}", f"is above the limit of {self._text(ceiling)}{owner}", code="limit_exceeded"
        )

    def lower(self, value: _NumberT) -> _NumberT:
        """Return a default, or the nearest ceiling if that is below it."""
        nearest = self.nearest
        return value if nearest is None else min(value, nearest[1])

    def require(self, agent: str, warnings: list[JobWarning], *, may_be_unlimited: bool) -> _NumberT:
        """Return the nearest ceiling. Without one, add a warning and return the largest value.

        Raise `InvalidRequest`, which names the settings, unless a job `may_be_unlimited`.
        """
        nearest = self.nearest
        if nearest is not None:
            return nearest[1]
        missing = f"limits.{self.setting} is not set"
        if not may_be_unlimited:
            raise InvalidRequest.at(
                f"/{self.classic_field}",
                f"null means the nearest limit, and {missing}, "
                f"nor is agents.{agent}.{self.setting} or the key's {self.setting}",
            )
        warnings.append(JobWarning(WarningCode.NO_LIMIT, f"{self.classic_field} is null and {missing}."))
        return self.largest

    def _text(self, value: float) -> str:
        return format_dollars(int(value), min_places=0) if self.field == "budget_usd" else f"{value:g}"


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The ceilings that hold for one agent and one key."""

    limits: Limits
    agent: Agent
    key: KeyLimits

    @property
    def budget(self) -> Ceiling[int]:
        """Return the ceilings of the budget, in micro-dollars."""
        return Ceiling(
            "budget_usd",
            "max_budget_usd",
            "max_budget_usd",
            LARGEST_BUDGET_MICROS,
            self._owners(
                self.limits.max_budget_micros, self.agent.max_budget_micros, self.key.max_budget_micros
            ),
        )

    @property
    def timeout(self) -> Ceiling[float]:
        """Return the ceilings of the time limit, in seconds."""
        return Ceiling(
            "timeout_seconds",
            "timeout_seconds",
            "max_timeout_seconds",
            LARGEST_TIMEOUT_SECONDS,
            self._owners(
                self.limits.max_timeout_seconds, self.agent.max_timeout_seconds, self.key.max_timeout_seconds
            ),
        )

    def _owners(
        self, service: _NumberT | None, agent: _NumberT | None, key: _NumberT | None
    ) -> Sequence[tuple[str, _NumberT | None]]:
        return (("", service), (f" of the agent {self.agent.name!r}", agent), (" of this key", key))

    @property
    def models(self) -> tuple[str, ...] | None:
        """Return the models that a job may name, in the order of the agent's list; None is any."""
        if self.agent.models is None or self.key.models is None:
            return self.agent.models if self.key.models is None else self.key.models
        return tuple(model for model in self.agent.models if model in self.key.models)

    def check_model(self, model: str) -> None:
        """Raise `Forbidden` (`model_not_allowed`) for a model that a request may not name."""
        for owner, models in (
            (f"The agent {self.agent.name!r}", self.agent.models),
            ("This key", self.key.models),
        ):
            if models is not None and model not in models:
                raise Forbidden(
                    f"{owner} may not use the model {model!r}; it may use {', '.join(models)}.",
                    code="model_not_allowed",
                )

    def default_model(self, *defaults: str | None) -> str | None:
        """Return the first default that is allowed, else the first allowed model; None is the agent's own choice.

        Raise `Forbidden` (`model_not_allowed`) if no model is allowed.
        """
        allowed = self.models
        if allowed is None:
            return next((model for model in defaults if model), None)
        if not allowed:
            raise Forbidden(
                f"This key may use none of the models of the agent {self.agent.name!r}.",
                code="model_not_allowed",
            )
        return next((model for model in defaults if model in allowed), allowed[0])
