"""Limits of a key on new work: its agents and workspaces, its rate, its waiting jobs, its budgets.

A key without limits costs one lookup. Rates are counted in this process by a monotonic clock; a restart forgets them.
Where several nodes share a database, `KeyRates` counts them there.
"""

import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from steadyhand.agents import SCRATCH_WORKSPACE
from steadyhand.errors import Forbidden, RetryLater
from steadyhand.money import format_dollars
from steadyhand.ports import (
    NO_LIMITS,
    CalendarPeriod,
    KeyBacklog,
    KeyLimits,
    KeyWaitingRuns,
    Ledger,
    UsageQuery,
    period_bounds,
)
from steadyhand.ports.cluster_limits import KeyRates

_SECOND_NS = 1_000_000_000
_WINDOW_NS = 60 * _SECOND_NS
_MAX_NAMES_SHOWN = 10
_MAX_RETRY_AFTER = 600

GetSpending = Callable[[str, CalendarPeriod], Awaitable[int]]
"""Returns the settled micro-dollars that a key has spent in this day or month."""


def spending_from_ledger(ledger: Ledger, clock: Callable[[], datetime]) -> GetSpending:
    """Return a function that reads the spending of a key from the ledger."""

    async def spent(key_id: str, period: CalendarPeriod) -> int:
        since, until = period_bounds(period, clock())
        rows = await ledger.usage(UsageQuery(since=since, until=until, api_key_id=key_id))
        return sum(row.total.micros for row in rows)

    return spent


@dataclass(frozen=True, slots=True)
class RateCharge:
    """The entry of an admitted request in the rate window of its key."""

    window: deque[int] | None = None
    take_back: Callable[[], None] | None = None

    def undo(self) -> None:
        """Remove the entry, because the request failed or was a repeat."""
        if self.window:
            self.window.pop()
        if self.take_back is not None:
            self.take_back()


_NO_CHARGE = RateCharge()


async def _no_spending(_key_id: str, _period: CalendarPeriod) -> int:
    return 0


def _no_waiting_runs(_key_id: str) -> KeyWaitingRuns:
    return KeyWaitingRuns(0, 0)


class Admission:
    """Checks requests for work against the limits of their keys. It belongs to one event loop.

    `get_limits` and `get_backlog` are called for each request; `monotonic_ns` is a monotonic clock in nanoseconds.
    `max_waiting_runs` is the number of a key's runs that may wait for results of its tools. `rates` are those of all
    nodes; None counts in this process.
    """

    def __init__(
        self,
        *,
        get_limits: Callable[[str], KeyLimits],
        get_backlog: Callable[[str], KeyBacklog],
        get_spending: GetSpending = _no_spending,
        get_waiting_runs: Callable[[str], KeyWaitingRuns] = _no_waiting_runs,
        max_waiting_runs: int = 16,
        clock: Callable[[], datetime],
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        rates: KeyRates | None = None,
    ) -> None:
        self._rates = rates
        self._get_limits = get_limits
        self._get_backlog = get_backlog
        self._get_spending = get_spending
        self._get_waiting_runs = get_waiting_runs
        self._max_waiting_runs = max_waiting_runs
        self._clock = clock
        self._monotonic_ns = monotonic_ns
        self._windows: dict[str, deque[int]] = {}

    def limits_of(self, key_id: str) -> KeyLimits:
        """Return the limits of a key; `NO_LIMITS` itself if it has none."""
        return self._get_limits(key_id)

    def check_allowed(self, key_id: str, agent: str, workspace: str | None) -> None:
        """Raise `Forbidden` (`agent_not_allowed`, `workspace_not_allowed`); no workspace is the scratch one."""
        limits = self._get_limits(key_id)
        if limits is NO_LIMITS:
            return
        if limits.agents is not None and agent not in limits.agents:
            raise Forbidden(
                f"This key may not use the agent {agent!r}; it may use {_join_names(limits.agents)}.",
                code="agent_not_allowed",
            )
        if limits.workspaces is not None and (workspace or SCRATCH_WORKSPACE) not in limits.workspaces:
            raise Forbidden(
                f"This key may not use this workspace; it may use {_join_names(limits.workspaces)}.",
                code="workspace_not_allowed",
            )

    def check_waiting_runs(self, key_id: str) -> None:
        """Raise `RetryLater` (`too_many_jobs`) if a key may not submit a job with tools, whose run may wait as well."""
        waiting = self._get_waiting_runs(key_id)
        if waiting.runs >= self._max_waiting_runs:
            retry_after = max(1, min(_MAX_RETRY_AFTER, waiting.retry_after))
            raise RetryLater(
                f"{_pluralize(waiting.runs, 'run')} of this key wait for results of its tools. Send results, or try "
                f"again in {retry_after} s.",
                code="too_many_jobs",
                retry_after=retry_after,
            )

    async def charge(self, key_id: str) -> RateCharge:
        """Count one request for work, or raise `RetryLater` (`budget_exhausted`, `too_many_jobs`, `rate_limited`).

        Without `rates` it does not await after it has counted, so the queue does not change between this check and the
        admission. With several nodes the queue checks again as it stores the job.
        """
        limits = self._get_limits(key_id)
        if limits is NO_LIMITS:
            return _NO_CHARGE
        await self._check_budgets(key_id, limits)
        self._check_queued(key_id, limits)
        if limits.per_minute is None:
            return _NO_CHARGE
        if self._rates is None:
            return self._charge_rate(key_id, limits.per_minute)
        retry_after = await self._rates.charge(key_id, limits.per_minute)
        if retry_after is not None:
            raise _rate_limited(limits.per_minute, retry_after)
        return RateCharge(take_back=partial(self._rates.undo, key_id))

    async def _check_budgets(self, key_id: str, limits: KeyLimits) -> None:
        periods: tuple[tuple[CalendarPeriod, int | None], ...] = (
            # Last: if both are spent, the caller waits for the end of the longer one.
            ("month", limits.month_micros),
            ("day", limits.day_micros),
        )
        for period, limit_micros in periods:
            if limit_micros is None:
                continue
            spent = await self._get_spending(key_id, period)
            if spent >= limit_micros:
                now = self._clock()
                resets_at = period_bounds(period, now)[1]
                raise RetryLater(
                    f"This key's budget of {format_dollars(limit_micros, min_places=2)} USD a {period} is spent "
                    f"({format_dollars(spent, min_places=2)} USD). "
                    f"It resets at {resets_at:%Y-%m-%dT%H:%M:%SZ}.",
                    code="budget_exhausted",
                    retry_after=math.ceil((resets_at - now).total_seconds()),
                )

    def _check_queued(self, key_id: str, limits: KeyLimits) -> None:
        if limits.queued is None:
            return
        backlog = self._get_backlog(key_id)
        if backlog.waiting + 1 - backlog.startable > limits.queued:
            raise queued_refusal(limits.queued, backlog.retry_after)

    def _charge_rate(self, key_id: str, limit: int) -> RateCharge:
        window = self._windows.setdefault(key_id, deque())
        now = self._monotonic_ns()
        while window and now - window[0] >= _WINDOW_NS:
            window.popleft()
        if len(window) >= limit:
            retry_after = max(1, -((now - window[-limit] - _WINDOW_NS) // _SECOND_NS))
            raise _rate_limited(limit, retry_after)
        window.append(now)
        return RateCharge(window)


def queued_refusal(limit: int, retry_after: int) -> RetryLater:
    """Return the refusal of a job of a key that has as many waiting ones as it may."""
    return RetryLater(
        f"This key may have {_pluralize(limit, 'job')} waiting. Try again in {retry_after} s.",
        code="too_many_jobs",
        retry_after=retry_after,
    )


def _rate_limited(limit: int, retry_after: int) -> RetryLater:
    return RetryLater(
        f"This key may request work {_pluralize(limit, 'time')} a minute. Try again in {retry_after} s.",
        code="rate_limited",
        retry_after=retry_after,
    )


def _pluralize(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _join_names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_NAMES_SHOWN])
    return f"{shown} and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else shown
