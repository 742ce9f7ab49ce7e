"""The gateway port: the budgets of jobs, and the access of a run to the network."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

from steadyhand.agents import Agent
from steadyhand.job import Job
from steadyhand.ports.held_runs import OrphanedRun
from steadyhand.ports.ledger import CalendarPeriod, ModelCall, UsageTotal
from steadyhand.ports.runner import Emit, ModelAccess, OnListening
from steadyhand.ports.workspace import Checkout

BudgetScope = Literal["job", "agent", "key", "service"]
BudgetPeriod = Literal["job", CalendarPeriod]
"""How long a budget lasts: the job's life, or a day or a month in UTC."""


@dataclass(frozen=True, slots=True)
class BudgetLimit:
    """One limit on spending: its owner, its period and its amount."""

    scope: BudgetScope
    name: str
    """The job's id, the agent's name, the key's id; empty for the service."""
    period: BudgetPeriod
    limit_micros: int


GetBudgetLimits = Callable[[Job, Agent], Sequence[BudgetLimit]]
"""Returns the current limits of a job."""

GetSharedLimits = Callable[[str, Agent], Sequence[BudgetLimit]]
"""Returns the current limits that the jobs of a key, by its id, and of an agent share."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """A run of a job with access to the gateway, its checkout and its agent."""

    job: Job
    agent: Agent
    checkout: Checkout


class RunAccess(Protocol):
    """A run that the gateway lets out, from its start to its end."""

    @property
    def model_access(self) -> ModelAccess:
        """Return the agent's access to the model, with a credential that is worthless outside."""
        ...

    @property
    def secrets(self) -> Collection[str]:
        """Return the parts of the access that are secret while the run lasts."""
        ...

    @property
    def on_listening(self) -> OnListening | None:
        """Return the callback for the listening sockets of a sandboxed run's network, or None."""
        ...

    @property
    def rate_limited_until(self) -> datetime | None:
        """Return the time until which the model's rate limit has rejected this run, or None."""
        ...

    @property
    def credential_rejected_until(self) -> datetime | None:
        """Return the time until which the run's credential rests if that has rejected this run, or None.

        It is also None for the run that found out that the model's service rejects the credential.
        """
        ...

    @property
    def exhausted_budget(self) -> str | None:
        """Return a sentence that names the budget that has rejected this run, or None."""
        ...

    @property
    def last_status(self) -> int | None:
        """Return the status of the last answer to the run, the gateway's own included; None without a whole one."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """Return the facts by which a later service opens the same access again, for `OrphanedRun.facts`."""
        ...

    @property
    def listener(self) -> int:
        """Return the descriptor of the socket on which the gateway listens for the run."""
        ...

    async def until_calls_fail(self) -> None:
        """Wait until the calls of the run keep failing, or one was refused for good. It may not come to that."""
        ...

    async def final_usage(self) -> UsageTotal:
        """Return the usage of this run's calls, once they have ended and are stored, or a few seconds have passed.

        It is incomplete if some have not ended by then. Call it when no process of the run is alive.
        """
        ...


class HeldAccess(Protocol):
    """The access of a process that waits for jobs. Between its runs it reaches neither a model nor a host."""

    @property
    def model_access(self) -> ModelAccess:
        """Return the agent's access to the model, the same for all runs of the process."""
        ...

    @property
    def listener(self) -> int:
        """Return the descriptor of the socket on which the gateway listens for the process."""
        ...

    @property
    def can_rehearse(self) -> bool:
        """Return True if the gateway can answer a call of the model by itself."""
        ...

    def rehearsing(self) -> AbstractContextManager[None]:
        """Answer the calls of the process for the length of the block. No provider sees them, and no ledger."""
        ...

    def on_listening(self, descriptors: Sequence[int]) -> None:
        """Keep the sockets that listen in the network of the process."""
        ...

    def open_run(self, context: RunContext, emit: Emit) -> AbstractAsyncContextManager[RunAccess]:
        """Open access for a run of the process, as `Gateway.open_run` does. A call is billed to the run that began it.

        It ends with the block, as all connections of the process do.
        """
        ...


class Egress(Protocol):
    """The way of a sandboxed process to the hosts of a list."""

    def open_egress(self, egress: Sequence[str], emit: Emit) -> AbstractAsyncContextManager[OnListening]:
        """Let a small command out that does not speak to the model, such as a workspace's setup.

        Return a callback for the sockets that listen in its network. Raise `ConfigError` for a list that means nothing.
        """
        ...


class Gateway(Egress, Protocol):
    """The only way out of a sealed run: to the model, and to the hosts that its agent may reach."""

    def serving(self) -> AbstractAsyncContextManager[None]:
        """Listen for every slot for the length of the block. Raises `ConfigError` if that fails.

        At its start, calls that an earlier process left open are settled, and the spending so far is loaded.
        """
        ...

    def open_run(
        self, context: RunContext, emit: Emit, orphan: OrphanedRun | None = None
    ) -> AbstractAsyncContextManager[RunAccess]:
        """Open access for a run for the length of the block; its connections end with it.

        An `orphan` has its access already, which is opened again. Denied hosts, and each host that it reached, are
        reported to `emit`.
        """
        ...

    def leave_runs(self) -> None:
        """Accept no more connections: those of runs that outlive the service wait for the next one."""
        ...

    def hold_access(self, agent: Agent, place: Checkout) -> AbstractAsyncContextManager[HeldAccess]:
        """Keep the access of a process that waits for jobs, with the user and the slot of `place`."""
        ...

    def count_unmetered_call(self, call: ModelCall) -> None:
        """Count a call that went past the gateway, and is in the ledger, against the budgets that jobs share."""
        ...

    def rate_limited_until(self, agent: Agent) -> datetime | None:
        """Return the time until which the credential of an agent is blocked, or None."""
        ...

    def credential_rejected_until(self, agent: Agent) -> datetime | None:
        """Return the end of the rest of an agent's rejected credential, which may have passed; None if it is good."""
        ...

    def rejected_providers(self) -> Sequence[str]:
        """Return the names of the providers whose credential the model's service rejects."""
        ...

    def blocked_providers(self) -> Mapping[str, bool]:
        """Return each provider by its name, with True while a rate limit blocks its credential."""
        ...

    def may_start(self, agent: Agent, active: Iterable[Agent]) -> bool:
        """Return True if a job of this agent may start beside the `active` ones.

        It may not while its credential is blocked or rests. A rejected credential is tried by one job at a time.
        """
        ...

    def on_credential_change(self, callback: Callable[[], None]) -> None:
        """Register a callback, run on the event loop's thread, for each change of a block or of a rejection."""
        ...
