"""The shares of this node in budgets that several nodes spend (`ports.BudgetLeases`).

A node leases a part of a budget and admits calls within it by its own count: no call waits for the database while the
share has room. A share that runs low is extended in the background. Near the limit the spare parts become small, and
each call asks first. A share that nobody uses, or that others wait for, is given back.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from steadyhand.errors import StoreError
from steadyhand.ports import BudgetLimit
from steadyhand.ports.cluster_limits import BudgetLease, BudgetLeases, LeaseRequest, SharedBudget

IDLE_SECONDS = 3.0
"""A share without a call for so long is given back."""

RETRY_SECONDS = 0.5
"""The time after which a call that found no room asks again, if no other node has announced that it gave some back."""

CROWDED_SECONDS = 5.0
"""For how long after another node found no room this one keeps nothing to spare."""

CROWDED_PAUSE_SECONDS = 0.1
SPARE_CALLS = 16
"""The number of calls like the last one that a share is meant to have room for."""

LOW_CALLS = 4
"""A share with room for fewer is extended."""


class Balance(Protocol):
    """The count of this node for one budget, as `budgets` keeps it."""

    settled: int
    reserved: int
    in_flight: int


@dataclass(eq=False, slots=True)
class _Share:
    balance: Balance
    budget: SharedBudget
    limit: int
    used_at: float
    ceiling: int = 0
    """Settled and reserved amounts together may reach this."""
    typical: int = 0
    needed: int = 0
    call: int = 0
    """The number of the call that needs it."""
    retry_at: float = 0.0
    is_shrinking: bool = False
    """True while the database may make it smaller: nothing is admitted."""
    is_low: bool = False
    extend_at: float = 0.0
    is_doubtful: bool = False
    """True if a call that began and ended during a request may be counted twice."""
    is_changed: bool = False
    is_exact: bool = False
    """True if it is for one call alone, which may exceed the limit: what that leaves is not for others."""
    settled_calls: int = 0
    crowded_until: float = 0.0
    announced_at: float = -RETRY_SECONDS
    open_calls: set[str] = field(default_factory=set)
    unstored: dict[str, int] = field(default_factory=dict)
    """The amounts of settled calls of which it is not known that the ledger has them."""
    is_asked: bool = False
    new_calls: set[str] = field(default_factory=set)
    """The open calls that began during a request."""
    new_settled: int = 0
    """The amounts of such calls that also ended during it: the answer may count them or not."""

    @property
    def held(self) -> int:
        return self.balance.reserved + sum(self.unstored.values())

    @property
    def room(self) -> int:
        return max(0, self.ceiling - self.balance.settled - self.balance.reserved)

    @property
    def is_running_low(self) -> bool:
        return self.room < (LOW_CALLS + 1) * self.typical


@dataclass(frozen=True, slots=True)
class _Pending:
    """A request as it was sent, and the counts at that time."""

    share: _Share
    request: LeaseRequest
    settled: int
    settled_calls: int
    unstored: int


class BudgetShares:
    """The shares of a node. `on_change` is called when calls that wait may be admitted."""

    def __init__(
        self,
        leases: BudgetLeases,
        on_change: Callable[[], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leases = leases
        self._on_change = on_change
        self._monotonic = monotonic
        self._shares: dict[SharedBudget, _Share] = {}
        self._wanted = asyncio.Event()
        self._log = structlog.get_logger("steadyhand.gateway")
        leases.on_crowded(self._note_crowded)

    # --- admission ---------------------------------------------------------------------------

    def clear_needs(self) -> None:
        """Forget which calls wait: the caller is about to look at all of them again."""
        for share in self._shares.values():
            share.needed = 0

    def has_room(
        self, balance: Balance, budget: SharedBudget, limit: BudgetLimit, reserve: int, call: int | None
    ) -> bool:
        """Return True if this node may admit a call with this reservation.

        Else ask for a larger share for this `call`, by its number; None asks for nothing.
        """
        now = self._monotonic()
        share = self._shares.get(budget)
        if share is None:
            share = self._shares[budget] = _Share(balance, budget, limit.limit_micros, now)
        share.limit = limit.limit_micros
        used = balance.settled + balance.reserved + reserve
        may_exceed = balance.in_flight == 0
        if (
            not share.is_shrinking
            and used <= share.ceiling
            and (may_exceed or used < limit.limit_micros)
            and self._leases.may_use()
        ):
            share.used_at, share.typical = now, reserve
            if not share.is_low and now >= max(share.extend_at, share.crowded_until) and share.is_running_low:
                share.is_low = True
                self._wanted.set()
            return True
        if call is not None and not share.needed:
            share.needed, share.call, share.used_at = max(1, reserve), call, now
            self._wanted.set()
        return False

    def is_certain(self, budget: SharedBudget) -> bool:
        """Return False if the settled amount of a budget may be less than this node counts."""
        share = self._shares.get(budget)
        return share is None or not share.is_doubtful

    def admit(self, budgets: Iterable[SharedBudget], call_id: str) -> None:
        """Count a call that was admitted."""
        for budget in budgets:
            share = self._shares[budget]
            share.open_calls.add(call_id)
            if share.is_asked:
                share.new_calls.add(call_id)

    def settle(self, budgets: Iterable[SharedBudget], call_id: str, micros: int) -> None:
        """Count a settled call until the ledger has it."""
        for budget in budgets:
            share = self._shares.get(budget)
            if share is not None:
                share.open_calls.discard(call_id)
                share.unstored[call_id] = micros
                if call_id in share.new_calls:
                    share.new_settled += micros
                share.is_changed = True
                share.settled_calls += 1
                if share.is_exact:
                    share.ceiling = min(share.ceiling, share.balance.settled + share.balance.reserved)
                share.used_at = self._monotonic()
                if share.needed:
                    share.retry_at = share.used_at  # there may be room now

    def note_stored(self, budgets: Iterable[SharedBudget], call_id: str) -> None:
        """Note that the ledger has a call."""
        for budget in budgets:
            share = self._shares.get(budget)
            is_known = share is not None and share.unstored.pop(call_id, None) is not None
            if share is not None and is_known and self._monotonic() < share.crowded_until:
                self._wanted.set()

    # --- the database ------------------------------------------------------------------------

    async def run(self) -> None:
        """Ask for shares and give them back, until cancelled."""
        while True:
            await self._wait()
            self._wanted.clear()
            pending = self._collect(self._monotonic())
            if pending:
                await self._send(pending)

    async def _wait(self) -> None:
        """Wait until something is to be asked, for ever if nothing is."""
        due = self._next_due(self._monotonic())
        if due is not None and due <= 0:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(due):
                await self._wanted.wait()
        except TimeoutError:
            pass

    def _next_due(self, now: float) -> float | None:
        """Return the seconds until a share needs something by itself, or None."""
        times = [
            share.retry_at if share.needed else max(share.retry_at, share.used_at + IDLE_SECONDS)
            for share in self._shares.values()
            if share.needed or not share.balance.in_flight
        ]
        times += [
            share.retry_at
            for share in self._shares.values()
            if share.is_low or (share.is_changed and now < share.crowded_until)
        ]
        return max(0.0, min(times) - now) if times else None

    def _collect(self, now: float) -> list[_Pending]:
        pending = []
        # A call gets all shares that it needs, or none: else two calls could each wait for what the other has.
        due = {share.call for share in self._shares.values() if share.needed and now >= share.retry_at}
        for share in self._shares.values():
            if share.needed and share.call in due:
                share.retry_at = now
            elif share.needed:
                continue
            request = self._request(share, now)
            if request is not None:
                unstored = sum(share.unstored.values())
                pending.append(_Pending(share, request, share.balance.settled, share.settled_calls, unstored))
        return pending

    def _request(self, share: _Share, now: float) -> LeaseRequest | None:
        """Return what a share needs now, or None."""
        if now < share.retry_at:
            return None
        is_crowded = now < share.crowded_until
        is_idle = not share.balance.in_flight and now - share.used_at >= IDLE_SECONDS
        held, needed, spare = share.held, share.needed, 0
        if needed:
            spare = 0 if is_crowded else SPARE_CALLS * needed
        elif is_idle or (is_crowded and (share.room or share.is_changed)):
            pass
        elif share.is_low:
            held += share.room  # what it has may be used meanwhile
            spare = SPARE_CALLS * share.typical
        else:
            return None
        share.is_shrinking = needed > 0 or spare == 0
        share.is_asked, share.new_settled = True, 0
        share.new_calls.clear()
        return LeaseRequest(
            share.budget,
            share.limit,
            held,
            needed,
            share.balance.in_flight == 0,
            spare,
            (*share.open_calls, *share.unstored),
            share.call,
        )

    async def _send(self, pending: list[_Pending]) -> None:
        try:
            answers = await self._leases.lease([each.request for each in pending])
        except StoreError as error:
            self._log.warning("budgets.lease_failed", error=error.detail)
            now = self._monotonic()
            for each in pending:
                each.share.retry_at = now + RETRY_SECONDS
                # It may have been changed: only the next answer tells by how much.
                if each.share.is_shrinking:
                    each.share.ceiling = 0
                each.share.is_shrinking = each.share.is_asked = False
            return
        crowded = [each for each, answer in zip(pending, answers, strict=True) if self._note(each, answer)]
        self._on_change()
        if crowded:
            try:
                await self._leases.announce([each.share.budget for each in crowded])
            except StoreError as error:
                self._log.warning("budgets.announce_failed", error=error.detail)

    def _note(self, pending: _Pending, lease: BudgetLease) -> bool:
        """Note the answer to a request; return True if other nodes are to be told of it."""
        share, balance, now = pending.share, pending.share.balance, self._monotonic()
        settled_meanwhile = balance.settled - pending.settled
        balance.settled = lease.settled + pending.unstored + settled_meanwhile
        share.is_doubtful = share.new_settled > 0
        share.ceiling = lease.settled + lease.amount - share.new_settled
        share.is_shrinking = share.is_low = share.is_asked = False
        share.is_exact = lease.amount <= pending.request.held + pending.request.needed
        share.is_changed = settled_meanwhile > 0
        share.retry_at = now if self._leases.may_use() else now + RETRY_SECONDS
        if not pending.request.needed:
            if pending.request.spare == 0 and not share.held and not share.needed:
                self._shares.pop(share.budget, None)
            if now < share.crowded_until:
                share.retry_at = now + CROWDED_PAUSE_SECONDS
                return True
            if pending.request.spare:
                share.extend_at = now + RETRY_SECONDS if share.is_running_low else now
            else:
                share.used_at = now
            return False
        if lease.granted or balance.settled >= share.limit:
            return False
        if share.settled_calls == pending.settled_calls:  # else there may be room by now
            share.retry_at = now + RETRY_SECONDS
        if now - share.announced_at < RETRY_SECONDS:
            return False
        share.announced_at = now
        return True

    def _note_crowded(self, budget: SharedBudget) -> None:
        """Look at a budget again: another node has found no room there, or has given some back."""
        share = self._shares.get(budget)
        if share is not None:
            now = self._monotonic()
            share.crowded_until = now + CROWDED_SECONDS
            if share.needed:
                share.retry_at = now
            self._wanted.set()
