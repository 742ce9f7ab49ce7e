"""Who may still spend how much: accounts in memory, seeded from the ledger, asked before every call of a model.

An account has what is settled and what calls in flight have reserved. A call is let through when with it both stay
below all the limits that hold for it; or, on an account with nothing in flight and something left, in any case, so
that the overshoot is at most that one call. Else it waits its turn. What is spent is the gateway's own count and
nobody's word for it.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from steadyhand.job import dollars
from steadyhand.ports import Allowance, BudgetScope, Ledger, Period, Span, UsageBy, UsageQuery, bounds_of

WAIT_SECONDS = 600.0
"""How long a call may wait for others to settle; as long as an answer may take."""
MOST_WAITING = 10_000

_AccountKey = tuple[BudgetScope, str, Period]
_PERIODS: tuple[Span, ...] = ("day", "month")
_SEEDS: tuple[tuple[BudgetScope, UsageBy], ...] = (("agent", "agent"), ("key", "api_key"))


class Exhausted(Exception):
    """A limit is reached: nothing more may be spent on that account."""

    def __init__(self, allowance: Allowance) -> None:
        super().__init__(spent_text(allowance))
        self.allowance = allowance
        self.text = spent_text(allowance)


class Crowded(Exception):
    """So many calls wait for a limit, or one has waited so long, that it has to be asked anew."""


def spent_text(allowance: Allowance) -> str:
    """Say in a sentence which budget is spent."""
    whose = {
        "job": "this job",
        "agent": f"the agent {allowance.name}",
        "key": "this key",
        "service": "this service",
    }[allowance.scope]
    period = "" if allowance.period == "job" else f" for this {allowance.period}"
    return f"The budget of {whose}{period} ({dollars(allowance.limit_micros)} USD) is spent."


def began(period: Period, now: datetime) -> datetime:
    """Give when the day or the month of a moment began, in UTC; a job's account begins with time itself."""
    if period == "job":
        return datetime.min.replace(tzinfo=UTC)
    return bounds_of(period, now)[0]


@dataclass(frozen=True, slots=True)
class Payer:
    """For whom calls are made. `allowances` gives the limits that hold for it at this moment."""

    job_id: str
    agent: str
    api_key_id: str
    allowances: Callable[[], Sequence[Allowance]] = tuple

    def accounts(self) -> list[_AccountKey]:
        """Give every account that it pays from, limited or not: a limit may be set later."""
        shared: list[tuple[BudgetScope, str]] = [
            ("agent", self.agent),
            ("key", self.api_key_id),
            ("service", ""),
        ]
        return [("job", self.job_id, "job"), *((*each, period) for each in shared for period in _PERIODS)]


@dataclass(eq=False, slots=True)
class _Account:
    began: datetime
    settled: int = 0
    reserved: int = 0
    in_flight: int = 0

    def fits(self, reserve: int, limit: int) -> bool:
        return self.in_flight == 0 or self.settled + self.reserved + reserve < limit


class Held:
    """A call that was let through: what it reserves, on every account of its payer, until it is settled."""

    def __init__(self, accounts: Sequence[_Account], reserve: int, changed: Callable[[], None]) -> None:
        self._accounts = accounts
        self._changed = changed
        self._open = True
        self.reserved = reserve
        for account in accounts:
            account.reserved += reserve
            account.in_flight += 1

    def resize(self, reserve: int) -> None:
        """Reserve another amount from here on."""
        for account in self._accounts:
            account.reserved += reserve - self.reserved
        self.reserved = reserve
        self._changed()

    def settle(self, micros: int) -> None:
        """Put what the call cost in place of what it reserved; a second time changes nothing."""
        if not self._open:
            return
        self._open = False
        for account in self._accounts:
            account.reserved -= self.reserved
            account.in_flight -= 1
            account.settled += micros
        self._changed()


@dataclass(eq=False, slots=True)
class _Waiter:
    payer: Payer
    reserve: int
    answer: asyncio.Future[Held] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Budgets:
    """The accounts of a node. It belongs to one event loop; between two awaits nothing changes under a verb."""

    def __init__(
        self,
        ledger: Ledger,
        clock: Callable[[], datetime],
        *,
        wait_seconds: float = WAIT_SECONDS,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._wait_seconds = wait_seconds
        self._most_waiting = most_waiting
        self._accounts: dict[_AccountKey, _Account] = {}
        self._waiting: list[_Waiter] = []

    # --- what is known -----------------------------------------------------------------------

    async def seed(self) -> None:
        """Take in what was spent in this day and month. Call it at the start, when nothing is in flight."""
        for period in _PERIODS:
            since = began(period, self._clock())
            for scope, by in _SEEDS:
                for row in await self._ledger.usage(UsageQuery(by=(by,), since=since)):
                    self._account((scope, row.of[by], period)).settled = row.spent.micros
            (total,) = await self._ledger.usage(UsageQuery(since=since))
            self._account(("service", "", period)).settled = total.spent.micros

    async def open_job(self, job_id: str, since_run: int = 1) -> None:
        """Take in what a job's runs from this one on have spent. Call it before a run of it makes calls."""
        (row,) = await self._ledger.usage(UsageQuery(job_id=job_id, since_run=since_run))
        self._account(("job", job_id, "job")).settled = row.spent.micros

    def close_job(self, job_id: str) -> None:
        """Forget a job's account: its run has ended and its calls are in the ledger."""
        self._accounts.pop(("job", job_id, "job"), None)

    def count(self, payer: Payer, micros: int) -> None:
        """Count what was spent without being asked for here; a job's own account reads it when it is opened."""
        for key in payer.accounts():
            if key[0] != "job":
                self._account(key).settled += micros
        self._review()

    def spent(self, allowance: Allowance) -> int:
        """Give what is settled against a limit in its present period, in micro-dollars."""
        return self._account((allowance.scope, allowance.name, allowance.period)).settled

    def _account(self, key: _AccountKey) -> _Account:
        start = began(key[2], self._clock())
        account = self._accounts.get(key)
        if (
            account is None or account.began < start
        ):  # calls in flight settle on the account that let them through
            account = self._accounts[key] = _Account(start)
        return account

    # --- admission ---------------------------------------------------------------------------

    async def admit(self, payer: Payer, reserve: int) -> Held:
        """Let a call through, waiting for its turn if need be. Raises `Exhausted`, `Crowded`."""
        if len(self._waiting) >= self._most_waiting:
            raise Crowded
        waiter = _Waiter(payer, reserve)
        self._waiting.append(waiter)
        self._review()
        if waiter.answer.done():
            return waiter.answer.result()
        try:
            async with asyncio.timeout(self._wait_seconds):
                return await asyncio.shield(waiter.answer)
        except TimeoutError as error:
            self._give_up(waiter)
            raise Crowded from error
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise

    def _give_up(self, waiter: _Waiter) -> None:
        with suppress(ValueError):
            self._waiting.remove(waiter)
        if not waiter.answer.cancel() and waiter.answer.exception() is None:
            waiter.answer.result().settle(0)  # it was let through just as it went away
        self._review()

    def _review(self) -> None:
        """Judge all that wait, in the order in which they came; nobody overtakes on an account that is full."""
        full: set[_Account] = set()
        self._waiting = [waiter for waiter in self._waiting if not self._judge(waiter, full)]

    def _judge(self, waiter: _Waiter, full: set[_Account]) -> bool:
        limits = [(self._account((a.scope, a.name, a.period)), a) for a in waiter.payer.allowances()]
        for account, allowance in limits:
            if account.settled >= allowance.limit_micros:
                waiter.answer.set_exception(Exhausted(allowance))
                return True
        narrow = {account for account, allowance in limits if _is_narrow(account, waiter, allowance)}
        if narrow or any(account in full for account, _ in limits):
            full |= narrow
            return False
        waiter.answer.set_result(Held(self._all_of(waiter.payer, limits), waiter.reserve, self._review))
        return True

    def _all_of(self, payer: Payer, limits: Iterable[tuple[_Account, Allowance]]) -> list[_Account]:
        own = [self._account(key) for key in payer.accounts()]
        return own + [account for account, _ in limits if account not in own]


def _is_narrow(account: _Account, waiter: _Waiter, allowance: Allowance) -> bool:
    return not account.fits(waiter.reserve, allowance.limit_micros)
