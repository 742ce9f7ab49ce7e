"""Forecasts from what was: quantiles of past jobs, the rate of spending, the end of a budget. Pure."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Generic, TypeVar

LEAST_JOBS = 5
"""With fewer jobs there is no forecast."""
BURN_DAYS = 7
"""The days before this one whose spending makes the rate."""
_LEAST_BURN = timedelta(hours=1)
"""A shorter time of spending counts as this one: a first call makes no rate of thousands a day."""
_DAY_SECONDS = 86_400

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class Quantiles(Generic[N]):
    """Half of the values are at most `p50`, nine tenths at most `p90`; `jobs` is their number."""

    p50: N
    p90: N
    jobs: int


@dataclass(frozen=True, slots=True)
class BurnRate:
    """An amount in micro-dollars and the seconds in which it was spent, since a time."""

    micros: int
    seconds: float
    since: datetime

    @property
    def micros_per_day(self) -> int:
        """The amount of a day at this rate."""
        return round(self.micros * _DAY_SECONDS / self.seconds)


def quantiles(values: Iterable[N]) -> Quantiles[N] | None:
    """Return quantiles that are values themselves (nearest rank); None for fewer values than `LEAST_JOBS`."""
    ordered = sorted(values)
    if len(ordered) < LEAST_JOBS:
        return None
    p50, p90 = (ordered[math.ceil(len(ordered) * share / 100) - 1] for share in (50, 90))
    return Quantiles(p50, p90, len(ordered))


def burn_rate(micros_by_day: Mapping[date, int], now: datetime) -> BurnRate | None:
    """Return the rate since the first day with spending, at most `BURN_DAYS` before this one; None without any.

    Days are those of UTC; this one counts as far as it has gone.
    """
    today = now.astimezone(UTC).date()
    first = today - timedelta(days=BURN_DAYS)
    spent = {day: micros for day, micros in micros_by_day.items() if first <= day <= today and micros > 0}
    if not spent:
        return None
    since = datetime.combine(min(spent), time(), UTC)
    return BurnRate(sum(spent.values()), max(now - since, _LEAST_BURN).total_seconds(), since)


def runs_out_at(
    limit_micros: int, spent_micros: int, burn: BurnRate | None, now: datetime, resets_at: datetime
) -> datetime | None:
    """Return the time at which a budget is spent at this rate.

    Return None if it lasts until `resets_at`, if there is no rate, and if it is spent already.
    """
    remaining = limit_micros - spent_micros
    if burn is None or remaining <= 0:
        return None
    seconds = remaining * burn.seconds / burn.micros
    return now + timedelta(seconds=seconds) if seconds < (resets_at - now).total_seconds() else None
