"""What calls of a model cost, who may spend how much, and what the gateway knows of a run that it lets out."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol

from steadyhand.agents import Agent
from steadyhand.job import Job
from steadyhand.ports.runner import Emit, OnListening
from steadyhand.ports.workspace import Checkout

MODEL_SOCKET_VARIABLE = "ANTHROPIC_UNIX_SOCKET"
"""The variable that tells an agent of its socket to the model; a command without it has no way there."""

BudgetScope = Literal["job", "agent", "key", "service"]
CalendarPeriod = Literal["day", "month"]
BudgetPeriod = Literal["job", CalendarPeriod]
"""How long a budget lasts: the job's life, or a day or a month in UTC."""


def period_bounds(period: CalendarPeriod, now: datetime) -> tuple[datetime, datetime]:
    """Give when the day or month of a moment began and when the next begins, in UTC."""
    day_start = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return day_start, day_start + timedelta(days=1)
    month_start = day_start.replace(day=1)
    return month_start, (month_start + timedelta(days=32)).replace(day=1)


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """What a model's service says that an answer took. `input` holds neither cache reads nor cache writes."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0

    def plus(self, other: "TokenCounts") -> "TokenCounts":
        """Give the sum."""
        return TokenCounts(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One call of a model as the ledger has it. Amounts are micro-dollars.

    It is kept when it begins, with what it reserves, and again when it is `settled`. `complete` is false when the
    figure may be too low (the answer was cut, or could not be read); `priced` is false when nobody knows the model's
    price and the dearest known one was taken. `status` is the HTTP status of the answer, null when there was none.
    """

    id: str
    job_id: str
    run: int
    api_key_id: str
    agent: str
    provider: str
    model: str
    at: datetime
    reserved_micros: int = 0
    settled: bool = False
    tokens: TokenCounts = field(default_factory=TokenCounts)
    micros: int = 0
    priced: bool = True
    complete: bool = True
    status: int | None = None
    source: Literal["ledger", "reported"] = "ledger"


@dataclass(frozen=True, slots=True)
class UsageTotal:
    """What some calls came to together."""

    calls: int = 0
    tokens: TokenCounts = field(default_factory=TokenCounts)
    micros: int = 0
    priced: bool = True
    complete: bool = True

    def plus(self, other: "UsageTotal") -> "UsageTotal":
        """Give the sum."""
        return UsageTotal(
            self.calls + other.calls,
            self.tokens.plus(other.tokens),
            self.micros + other.micros,
            self.priced and other.priced,
            self.complete and other.complete,
        )


UsageGroup = Literal["api_key", "agent", "model", "provider", "day"]


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which calls to add up, by what; null is any. `since` is inclusive, `until` is not."""

    by: tuple[UsageGroup, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    api_key_id: str | None = None
    agent: str | None = None
    model: str | None = None
    job_id: str | None = None
    since_run: int | None = None
    """Only calls of runs with this number or a later one."""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One group of a sum: `of` has the values of `UsageQuery.by`; a day is `YYYY-MM-DD` in UTC."""

    group: Mapping[str, str]
    total: UsageTotal


class Ledger(Protocol):
    """Every call of a model, durable once a verb returns. Verbs raise `StoreError`."""

    async def save_call(self, call: ModelCall) -> None:
        """Keep a call; one with the same id is replaced. A call outlives its job."""
        ...

    async def settle_open_calls(self) -> int:
        """Settle what an earlier life left open at what it had reserved, marked as incomplete; give how many."""
        ...

    async def usage(self, query: UsageQuery) -> Sequence[UsageRow]:
        """Add up settled calls, a row for each group, in the order of the groups; one row without `by`."""
        ...


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
