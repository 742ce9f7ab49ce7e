"""The ledger port: calls of a model, their tokens and their cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol

CalendarPeriod = Literal["day", "month"]


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
