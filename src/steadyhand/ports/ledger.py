"""The ledger port: calls of a model, their tokens and their cost."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol

CalendarPeriod = Literal["day", "month"]


def period_bounds(period: CalendarPeriod, now: datetime) -> tuple[datetime, datetime]:
    """Return the start of the day or month of a moment, and the start of the next one, in UTC."""
    day_start = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return day_start, day_start + timedelta(days=1)
    month_start = day_start.replace(day=1)
    return month_start, (month_start + timedelta(days=32)).replace(day=1)


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """The token counts of an answer by the model's service. `input` has neither cache reads nor cache writes."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0

    def plus(self, other: "TokenCounts") -> "TokenCounts":
        """Return the sum."""
        return TokenCounts(
            *(getattr(self, field.name) + getattr(other, field.name) for field in fields(self))
        )


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One call of a model in the ledger. Amounts are micro-dollars.

    It is stored when it begins, with its reserved amount, and again when it is `settled`. `complete` is False if the
    amount may be too low (the answer was cut, or could not be read); `priced` is False if the price of the model is
    not known and the highest known one was used. `status` is the HTTP status of the answer, None without an answer.
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
    workspace: str = ""
    """The workspace of the job, a URL without its credential; empty without one, or if it is not known."""


@dataclass(frozen=True, slots=True)
class UsageTotal:
    """The total of some calls."""

    calls: int = 0
    tokens: TokenCounts = field(default_factory=TokenCounts)
    micros: int = 0
    priced: bool = True
    complete: bool = True

    def plus(self, other: "UsageTotal") -> "UsageTotal":
        """Return the sum."""
        return UsageTotal(
            self.calls + other.calls,
            self.tokens.plus(other.tokens),
            self.micros + other.micros,
            self.priced and other.priced,
            self.complete and other.complete,
        )


UsageGroup = Literal["api_key", "agent", "model", "provider", "workspace", "day"]


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """A query for totals: groups, and filters that None leaves open. `since` is inclusive, `until` is not."""

    by: tuple[UsageGroup, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    api_key_id: str | None = None
    agent: str | None = None
    model: str | None = None
    workspace: str | None = None
    job_id: str | None = None
    since_run: int | None = None
    """Only calls of runs with this number or a later one."""
    limit: int | None = None
    """The most rows."""
    after: tuple[str, ...] = ()
    """Only groups after the one with these values, in the order of the groups."""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One group of a query: `group` has the values of `UsageQuery.by`; a day is `YYYY-MM-DD` in UTC."""

    group: Mapping[str, str]
    total: UsageTotal


class Ledger(Protocol):
    """Every call of a model, durable once a method returns. Methods raise `StoreError`."""

    async def save_call(self, call: ModelCall) -> None:
        """Store a call, after an outage if need be; one with the same id is replaced. A call outlives its job."""
        ...

    def hasten(self) -> None:
        """Store at once the calls that may wait for others to share a commit: somebody waits for them."""
        ...

    async def settle_open_calls(self) -> int:
        """Settle calls that a stop left open, at their reserved amount and as incomplete; return their count.

        If several services share the ledger, those of other services stay open.
        """
        ...

    async def settle_calls_of_run(self, job_id: str, run: int) -> int:
        """Settle the open calls of a run in the same way, whose service is gone; return their count."""
        ...

    async def settle_repeated_calls(self, runs: Collection[tuple[str, int]]) -> int:
        """Settle the open calls of runs, by job and number, whose agents make them again; return their count.

        They cost nothing and are incomplete: the call that is made again has the cost.
        """
        ...

    async def list_calls(self, job_id: str, limit: int) -> Sequence[ModelCall]:
        """Return the newest calls of a job, at most `limit`, the oldest of them first; also those that go on."""
        ...

    async def usage(self, query: UsageQuery) -> Sequence[UsageRow]:
        """Return totals of settled calls, a row for each group in the order of the groups; one row without `by`.

        Raise `QueryTooSlow` only if the query has a `limit`.
        """
        ...
