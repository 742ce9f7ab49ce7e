"""The gateway port: the budgets of jobs, and the access of a run to the network."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from steadyhand.agents import Agent
from steadyhand.job import Job
from steadyhand.ports.ledger import CalendarPeriod, ModelCall, UsageTotal
from steadyhand.ports.runner import Emit, OnListening
from steadyhand.ports.workspace import Checkout

MODEL_SOCKET_VARIABLE = "ANTHROPIC_UNIX_SOCKET"
"""The variable that tells an agent of its socket to the model; a command without it has no way there."""

BudgetScope = Literal["job", "agent", "key", "service"]
BudgetPeriod = Literal["job", CalendarPeriod]
"""How long a budget lasts: the job's life, or a day or a month in UTC."""


@dataclass(frozen=True, slots=True)
class BudgetLimit:
    """One limit on what may be spent: whose it is, for how long it lasts, and how much that is."""

    scope: BudgetScope
    name: str
    """The job's id, the agent's name, the key's id; empty for the service."""
    period: BudgetPeriod
    limit_micros: int


GetBudgetLimits = Callable[[Job, Agent], Sequence[BudgetLimit]]
"""Gives the limits that hold for a job as they are now."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """Who is let out: a run of a job, where it is, and as which agent."""

    job: Job
    agent: Agent
    checkout: Checkout


class RunAccess(Protocol):
    """A run that the gateway lets out, from its start to its end."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Give what the agent is told to reach the model, a credential that is worth nothing outside among it."""
        ...

    @property
    def secrets(self) -> Collection[str]:
        """Give what of that is worth something here for as long as the run lasts: nobody else is to see it."""
        ...

    @property
    def on_listening(self) -> OnListening | None:
        """Give what takes the listening sockets of a sealed run's network; null without one."""
        ...

    @property
    def rate_limited_until(self) -> datetime | None:
        """Give until when the model's rate limit has turned this run away; null when it has not."""
        ...

    @property
    def exhausted_budget(self) -> str | None:
        """Say in a sentence which budget has turned this run away; null when none has."""
        ...

    async def final_usage(self) -> UsageTotal:
        """Give what this run's calls came to, once they have ended and are kept, or a few seconds have passed.

        Incomplete when some have not ended by then. Call it when nothing of the run is alive.
        """
        ...


class Gateway(Protocol):
    """The only way out of a sealed run: to the model, and to the hosts that its agent may reach."""

    def serving(self) -> AbstractAsyncContextManager[None]:
        """Listen for every slot for the length of the block. Raises `ConfigError` when it cannot.

        Calls that an earlier life left open are settled, and what was spent so far is known, when it begins.
        """
        ...

    def open_run(self, context: RunContext, emit: Emit) -> AbstractAsyncContextManager[RunAccess]:
        """Let a run out for the length of the block; its connections end with it.

        What it was refused, and each host that it reached, is told to `emit`.
        """
        ...

    def count_unmetered_call(self, call: ModelCall) -> None:
        """Count a call that went past the gateway, and is in the ledger, against the budgets that jobs share."""
        ...

    def rate_limited_until(self, agent: Agent) -> datetime | None:
        """Give until when the rate limit of an agent's credential turns everybody away; null when it does not."""
        ...

    def on_rate_limit_change(self, callback: Callable[[], None]) -> None:
        """Call this, on the event loop's thread, whenever a wall has risen, moved back or fallen."""
        ...

    def open_egress(self, egress: Sequence[str], emit: Emit) -> AbstractAsyncContextManager[OnListening]:
        """Do the same for a small command that does not speak to the model, such as a workspace's setup."""
        ...
