"""Budgets: accounts in memory, loaded from the ledger and checked before every call of a model.

An account has a settled amount and the reservations of calls in flight. A call is admitted if with it both stay below
all limits of the job. It is also admitted on an account with nothing in flight and something left, so the overshoot is
at most that one call. Else it waits for its turn. The settled amount is the gateway's own count and does not depend on
a report of the agent.

If several nodes spend the same budgets, each admits calls within its share of them (`budget_shares`). The account of a
job is that of one node alone.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from steadyhand.gateway.money.budget_shares import BudgetShares
from steadyhand.money import format_dollars
from steadyhand.ports import (
    BudgetLimit,
    BudgetPeriod,
    BudgetScope,
    CalendarPeriod,
    Ledger,
    UsageGroup,
    UsageQuery,
    period_bounds,
)
from steadyhand.ports.cluster_limits import BudgetLeases, SharedBudget

WAIT_SECONDS = 600.0
"""How long a call may wait for others to settle; as long as an answer may take."""
MAX_WAITING = 10_000
NEAR_SHARE = 0.8
"""The share of a budget at which it is told that it is nearly spent."""

_BalanceKey = tuple[BudgetScope, str, BudgetPeriod]
_PERIODS: tuple[CalendarPeriod, ...] = ("day", "month")
_SEED_QUERIES: tuple[tuple[BudgetScope, UsageGroup], ...] = (("agent", "agent"), ("key", "api_key"))


class BudgetExhausted(Exception):
    """A limit is reached: nothing more may be spent on that account."""

    def __init__(self, limit: BudgetLimit) -> None:
        super().__init__(exhausted_message(limit))
        self.limit = limit
        self.text = exhausted_message(limit)


class BudgetQueueFull(Exception):
    """Too many calls wait for a budget, or one has waited too long; the agent must repeat it."""


def exhausted_message(limit: BudgetLimit) -> str:
    """Return a sentence that names the exhausted budget."""
    owner = {
        "job": "this job",
        "agent": f"the agent {limit.name}",
        "key": "this key",
        "service": "this service",
    }[limit.scope]
    period = "" if limit.period == "job" else f" for this {limit.period}"
    return f"The budget of {owner}{period} ({format_dollars(limit.limit_micros, min_places=2)} USD) is spent."


def period_start(period: BudgetPeriod, now: datetime) -> datetime:
    """Return the start of the day or month of a moment, in UTC; a job's account has no start."""
    if period == "job":
        return datetime.min.replace(tzinfo=UTC)
    return period_bounds(period, now)[0]


@dataclass(frozen=True, slots=True)
class BudgetAccount:
    """The owner of calls. `limits` returns the current limits of the job."""

    job_id: str
    agent: str
    api_key_id: str
    limits: Callable[[], Sequence[BudgetLimit]] = tuple

    def balance_keys(self) -> list[_BalanceKey]:
        """Return the keys of all its accounts, limited or not: a limit may be set later."""
        shared: list[tuple[BudgetScope, str]] = [
            ("agent", self.agent),
            ("key", self.api_key_id),
            ("service", ""),
        ]
        return [("job", self.job_id, "job"), *((*each, period) for each in shared for period in _PERIODS)]


@dataclass(eq=False, slots=True)
class _Balance:
    period_start: datetime
    settled: int = 0
    reserved: int = 0
    in_flight: int = 0

    def fits(self, reserve: int, limit: int) -> bool:
        return self.in_flight == 0 or self.settled + self.reserved + reserve < limit


@dataclass(frozen=True, slots=True)
class NearLimit:
    """A limit of which the settled amount has just reached a share."""

    limit: BudgetLimit
    settled_micros: int


class Reservation:
    """An admitted call: its reservation on every account, until it is settled.

    `marks` are the amounts of the shared limits that are told of when they are reached, by their account. `shared` are
    the budgets that other nodes spend as well.
    """

    def __init__(
        self,
        balances: Sequence[_Balance],
        reserve: int,
        on_change: Callable[[], None],
        marks: Sequence[tuple[_Balance, BudgetLimit, int]] = (),
        *,
        call_id: str = "",
        shares: BudgetShares | None = None,
        shared: Sequence[SharedBudget] = (),
    ) -> None:
        self._marks = marks
        self._call_id = call_id
        self._shares = shares
        self._shared = shared
        if shares is not None:
            shares.admit(shared, call_id)
        self._balances = balances
        self._on_change = on_change
        self._open = True
        self.reserved = reserve
        for account in balances:
            account.reserved += reserve
            account.in_flight += 1

    def resize(self, reserve: int) -> None:
        """Reserve another amount from here on."""
        for account in self._balances:
            account.reserved += reserve - self.reserved
        self.reserved = reserve
        self._on_change()

    def settle(self, micros: int) -> Sequence[NearLimit]:
        """Replace the reservation by the cost of the call, and return the limits whose mark it reached.

        The amount of an account only grows within its period, so a mark is reached once. A second time changes nothing.
        """
        if not self._open:
            return ()
        self._open = False
        near = [
            NearLimit(limit, account.settled + micros)
            for account, limit, mark in self._marks
            if account.settled < mark <= account.settled + micros
        ]
        for account in self._balances:
            account.reserved -= self.reserved
            account.in_flight -= 1
            account.settled += micros
        if self._shares is not None:
            self._shares.settle(self._shared, self._call_id, micros)
        self._on_change()
        return near

    @property
    def is_shared(self) -> bool:
        """True if other nodes spend one of its budgets as well: then `note_stored` is to be called."""
        return bool(self._shared)

    def note_stored(self) -> None:
        """Note that the ledger has the settled call."""
        if self._shares is not None:
            self._shares.note_stored(self._shared, self._call_id)


@dataclass(eq=False, slots=True)
class _Waiter:
    account: BudgetAccount
    reserve: int
    number: int
    call_id: str
    admitted: asyncio.Future[Reservation] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Budgets:
    """The accounts of a node. It belongs to one event loop; between two awaits nothing changes under a verb."""

    def __init__(
        self,
        ledger: Ledger,
        clock: Callable[[], datetime],
        *,
        wait_seconds: float = WAIT_SECONDS,
        max_waiting: int = MAX_WAITING,
        near_share: float = NEAR_SHARE,
        leases: BudgetLeases | None = None,
    ) -> None:
        """Keep the bounds. A shared limit is told of when `near_share` of it is settled.

        With `leases` other nodes spend the budgets of days and months as well; `run` has to run then.
        """
        self._near_percent = round(near_share * 100)
        self._ledger = ledger
        self._clock = clock
        self._wait_seconds = wait_seconds
        self._max_waiting = max_waiting
        self._balances: dict[_BalanceKey, _Balance] = {}
        self._waiting: list[_Waiter] = []
        self._calls = 0
        self._shares = None if leases is None else BudgetShares(leases, self._admit_waiting)

    async def run(self) -> None:
        """Keep the shares in budgets that other nodes spend as well, until cancelled."""
        if self._shares is not None:
            await self._shares.run()

    # --- what is known -----------------------------------------------------------------------

    async def seed(self) -> None:
        """Load the spending of this day and month. Call it at the start, when nothing is in flight."""
        for period in _PERIODS:
            since = period_start(period, self._clock())
            for scope, by in _SEED_QUERIES:
                for row in await self._ledger.usage(UsageQuery(by=(by,), since=since)):
                    self._balance((scope, row.group[by], period)).settled = row.total.micros
            (total,) = await self._ledger.usage(UsageQuery(since=since))
            self._balance(("service", "", period)).settled = total.total.micros

    async def load_job(self, job_id: str, since_run: int = 1) -> None:
        """Load the spending of a job's runs from this one on. Call it before a run makes calls."""
        (row,) = await self._ledger.usage(UsageQuery(job_id=job_id, since_run=since_run))
        self._balance(("job", job_id, "job")).settled = row.total.micros

    def forget_job(self, job_id: str) -> None:
        """Forget a job's account: its run has ended and its calls are in the ledger."""
        self._balances.pop(("job", job_id, "job"), None)

    def record_spend(self, account: BudgetAccount, micros: int) -> None:
        """Count spending that was not reserved here; a job's own account reads it when it is opened."""
        for key in account.balance_keys():
            if key[0] != "job":
                self._balance(key).settled += micros
        self._admit_waiting()

    def spent(self, limit: BudgetLimit) -> int:
        """Return the settled amount of a limit in its current period, in micro-dollars."""
        return self._balance((limit.scope, limit.name, limit.period)).settled

    def _balance(self, key: _BalanceKey) -> _Balance:
        period_began = period_start(key[2], self._clock())
        balance = self._balances.get(key)
        if (
            balance is None or balance.period_start < period_began
        ):  # calls in flight settle on the account that let them through
            balance = self._balances[key] = _Balance(period_began)
        return balance

    # --- admission ---------------------------------------------------------------------------

    async def admit(self, account: BudgetAccount, reserve: int, call_id: str = "") -> Reservation:
        """Let a call through, waiting for its turn if need be. Raises `Exhausted`, `Crowded`."""
        if len(self._waiting) >= self._max_waiting:
            raise BudgetQueueFull
        self._calls += 1
        waiter = _Waiter(account, reserve, self._calls, call_id)
        self._waiting.append(waiter)
        self._admit_waiting()
        if waiter.admitted.done():
            return waiter.admitted.result()
        try:
            async with asyncio.timeout(self._wait_seconds):
                return await asyncio.shield(waiter.admitted)
        except TimeoutError as error:
            self._remove_waiter(waiter)
            raise BudgetQueueFull from error
        except asyncio.CancelledError:
            self._remove_waiter(waiter)
            raise

    def _remove_waiter(self, waiter: _Waiter) -> None:
        with suppress(ValueError):
            self._waiting.remove(waiter)
        if not waiter.admitted.cancel() and waiter.admitted.exception() is None:
            waiter.admitted.result().settle(0)  # it was let through just as it went away
        self._admit_waiting()

    def _admit_waiting(self) -> None:
        """Check all waiting calls in their order of arrival; none overtakes another on an account that is full."""
        full: set[_Balance] = set()
        if self._shares is not None:
            self._shares.clear_needs()
        self._waiting = [waiter for waiter in self._waiting if not self._try_admit(waiter, full)]

    def _try_admit(self, waiter: _Waiter, full: set[_Balance]) -> bool:
        limits = [
            (self._balance((each.scope, each.name, each.period)), each) for each in waiter.account.limits()
        ]
        for balance, limit in limits:
            if balance.settled >= limit.limit_micros and self._is_certain(balance, limit):
                waiter.admitted.set_exception(BudgetExhausted(limit))
                return True
        is_behind = any(balance in full for balance, _ in limits)
        # All are looked at: a call that lacks room in several shares asks for them at once, if it is the next one.
        without_room = {
            balance
            for balance, limit in limits
            if self._lacks_room(balance, waiter, limit, asks=not is_behind)
        }
        if without_room or is_behind:
            full |= without_room
            return False
        balances = self._balances_for(waiter.account, limits)
        marks = [
            (balance, limit, -(-limit.limit_micros * self._near_percent // 100))
            for balance, limit in limits
            if limit.scope != "job"
        ]
        shared = (
            () if self._shares is None else [shared_budget(*each) for each in limits if is_shared(each[1])]
        )
        waiter.admitted.set_result(
            Reservation(
                balances,
                waiter.reserve,
                self._admit_waiting,
                marks,
                call_id=waiter.call_id,
                shares=self._shares,
                shared=shared,
            )
        )
        return True

    def _lacks_room(self, balance: _Balance, waiter: _Waiter, limit: BudgetLimit, *, asks: bool) -> bool:
        if self._shares is None or not is_shared(limit):
            return not balance.fits(waiter.reserve, limit.limit_micros)
        budget = shared_budget(balance, limit)
        return not self._shares.has_room(
            balance, budget, limit, waiter.reserve, waiter.number if asks else None
        )

    def _is_certain(self, balance: _Balance, limit: BudgetLimit) -> bool:
        if self._shares is None or not is_shared(limit):
            return True
        return self._shares.is_certain(shared_budget(balance, limit))

    def _balances_for(
        self, payer: BudgetAccount, limits: Iterable[tuple[_Balance, BudgetLimit]]
    ) -> list[_Balance]:
        balances = [self._balance(key) for key in payer.balance_keys()]
        return balances + [account for account, _ in limits if account not in balances]


def is_shared(limit: BudgetLimit) -> bool:
    """Return True for a limit that jobs of several nodes may share."""
    return limit.period != "job"


def shared_budget(balance: _Balance, limit: BudgetLimit) -> SharedBudget:
    """Return the budget of a limit in the period of its balance."""
    assert limit.period != "job"  # noqa: S101  # `is_shared`
    return SharedBudget(limit.scope, limit.name, limit.period, balance.period_start)
