"""Whether a key may ask for more work now: its agents and workspaces, its rate, its jobs that wait, its budgets.

A key without limits costs one look. Rates are counted in this process by a monotonic clock; a restart forgets them.
"""

import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from steadyhand.agents import SCRATCH
from steadyhand.errors import Forbidden, TryLater
from steadyhand.job import dollars
from steadyhand.ports import NO_LIMITS, Backlog, KeyLimits, Ledger, Span, UsageQuery, bounds_of

_SECOND = 1_000_000_000
_WINDOW = 60 * _SECOND
_SHOWN_NAMES = 10

SpentOf = Callable[[str, Span], Awaitable[int]]
"""Gives the settled micro-dollars that a key has spent in this day or month."""


def spent_by(ledger: Ledger, clock: Callable[[], datetime]) -> SpentOf:
    """Read what keys have spent from the ledger."""

    async def spent(key_id: str, period: Span) -> int:
        since, until = bounds_of(period, clock())
        rows = await ledger.usage(UsageQuery(since=since, until=until, api_key_id=key_id))
        return sum(row.spent.micros for row in rows)

    return spent


@dataclass(frozen=True, slots=True)
class Charge:
    """What an admitted request took of its key's rate."""

    window: deque[int] | None = None

    def undo(self) -> None:
        """Give it back: the request came to nothing, or was a repeat."""
        if self.window:
            self.window.pop()


_FREE = Charge()


async def _nothing(_key_id: str, _period: Span) -> int:
    return 0


class Admission:
    """Judges requests for work by the limits of their keys. It belongs to one event loop.

    `limits_of` and `backlog_of` are asked anew each time; `ticks` is a monotonic clock in nanoseconds.
    """

    def __init__(
        self,
        *,
        limits_of: Callable[[str], KeyLimits],
        backlog_of: Callable[[str], Backlog],
        spent_of: SpentOf = _nothing,
        clock: Callable[[], datetime],
        ticks: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._limits_of = limits_of
        self._backlog_of = backlog_of
        self._spent_of = spent_of
        self._clock = clock
        self._ticks = ticks
        self._windows: dict[str, deque[int]] = {}

    def permit(self, key_id: str, agent: str, workspace: str | None) -> None:
        """Raise `Forbidden` (`agent_not_allowed`, `workspace_not_allowed`); no workspace is the scratch one."""
        limits = self._limits_of(key_id)
        if limits is NO_LIMITS:
            return
        if limits.agents is not None and agent not in limits.agents:
            raise Forbidden(
                f"This key may not use the agent {agent!r}; it may use {_names(limits.agents)}.",
                code="agent_not_allowed",
            )
        if limits.workspaces is not None and (workspace or SCRATCH) not in limits.workspaces:
            raise Forbidden(
                f"This key may not use this workspace; it may use {_names(limits.workspaces)}.",
                code="workspace_not_allowed",
            )

    async def charge(self, key_id: str) -> Charge:
        """Count one request for work, or raise `TryLater` (`budget_exhausted`, `too_many_jobs`, `rate_limited`).

        It does not let go of the event loop after it has counted: what is admitted next finds the queue as judged.
        """
        limits = self._limits_of(key_id)
        if limits is NO_LIMITS:
            return _FREE
        await self._within_budgets(key_id, limits)
        self._within_queue(key_id, limits)
        return _FREE if limits.per_minute is None else self._within_rate(key_id, limits.per_minute)

    async def _within_budgets(self, key_id: str, limits: KeyLimits) -> None:
        periods: tuple[tuple[Span, int | None], ...] = (
            ("month", limits.month_micros),  # who has spent both comes back after the longer one
            ("day", limits.day_micros),
        )
        for period, most in periods:
            if most is None:
                continue
            spent = await self._spent_of(key_id, period)
            if spent >= most:
                now = self._clock()
                again = bounds_of(period, now)[1]
                raise TryLater(
                    f"This key's budget of {dollars(most)} USD a {period} is spent ({dollars(spent)} USD). "
                    f"It begins anew at {again:%Y-%m-%dT%H:%M:%SZ}.",
                    code="budget_exhausted",
                    retry_after=math.ceil((again - now).total_seconds()),
                )

    def _within_queue(self, key_id: str, limits: KeyLimits) -> None:
        if limits.queued is None:
            return
        backlog = self._backlog_of(key_id)
        if backlog.waiting + 1 - backlog.startable > limits.queued:
            raise TryLater(
                f"This key may have {_counted(limits.queued, 'job')} waiting. "
                f"Try again in {backlog.retry_after} s.",
                code="too_many_jobs",
                retry_after=backlog.retry_after,
            )

    def _within_rate(self, key_id: str, most: int) -> Charge:
        window = self._windows.setdefault(key_id, deque())
        now = self._ticks()
        while window and now - window[0] >= _WINDOW:
            window.popleft()
        if len(window) >= most:
            seconds = max(1, -((now - window[-most] - _WINDOW) // _SECOND))
            raise TryLater(
                f"This key may ask for work {_counted(most, 'time')} a minute. Try again in {seconds} s.",
                code="rate_limited",
                retry_after=seconds,
            )
        window.append(now)
        return Charge(window)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN_NAMES])
    return f"{shown} and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else shown
