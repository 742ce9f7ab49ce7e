"""Limits that several nodes share: budgets, the rates of keys, and the state of credentials.

A service that is alone has none of these: its own counts are exact, and it passes None.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from steadyhand.ports.gateway import BudgetScope
from steadyhand.ports.ledger import CalendarPeriod


class SharedBudget(NamedTuple):
    """A budget that several nodes spend: its owner and the day or month, which begins at `start` in UTC."""

    scope: BudgetScope
    name: str
    period: CalendarPeriod
    start: datetime


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """A request of a node for a share of a budget. Amounts are micro-dollars.

    `held` is what it has reserved, or settled without knowing that the ledger has it; `calls` are the ids of these
    calls. `needed` is the reservation of a call that waits, 0 without one. With `may_exceed` nothing is in flight on
    the node: the call may exceed the limit if anything is left. Of the requests of one `group`, which are those of one
    call, all are granted or none.
    """

    budget: SharedBudget
    limit: int
    held: int
    needed: int = 0
    may_exceed: bool = False
    spare: int = 0
    """The most that it would like beyond that, for its next calls."""
    calls: Collection[str] = ()
    group: int = 0


@dataclass(frozen=True, slots=True)
class BudgetLease:
    """The share of a budget that a node has from now on.

    `settled` is what all nodes have settled in the ledger, without the calls that the request named. The node may
    reserve and settle up to `amount` beyond it. `granted` is False if that, or another one of the group, does not cover
    what is needed.
    """

    settled: int
    amount: int
    granted: bool


class BudgetLeases(Protocol):
    """The shares that nodes have of common budgets. What is settled and all shares together stay below a limit.

    A share exceeds it only by one call, and only while anything is left: so the nodes together exceed a budget by at
    most one call, as one node does. The shares of a dead node are free; its open calls count until they are settled.
    """

    async def lease(self, requests: Sequence[LeaseRequest]) -> Sequence[BudgetLease]:
        """Change the node's shares, all in one transaction. Raise `StoreError` if the database does not answer."""
        ...

    def may_use(self) -> bool:
        """Return False while others may take this node for dead: then its shares are not its own."""
        ...

    def on_crowded(self, callback: Callable[[SharedBudget], None]) -> None:
        """Register a callback for a budget of which another node wants more than is free, or has given some back."""
        ...

    async def announce(self, budgets: Collection[SharedBudget]) -> None:
        """Ask the other nodes to look at these budgets again."""
        ...


class KeyRates(Protocol):
    """The requests for work of each key in the last minute, of all nodes."""

    async def charge(self, key_id: str, limit: int) -> int | None:
        """Count a request and return None, or the seconds until there is room if the minute has `limit` of them."""
        ...

    def undo(self, key_id: str) -> None:
        """Undo the newest request of a key that this node has counted, soon."""
        ...


@dataclass(frozen=True, slots=True)
class CredentialState:
    """The state of a credential that all nodes know. `id` is a digest of its address and secret."""

    id: str
    blocked_until: datetime | None = None
    """The end of a rate limit."""
    rejected_until: datetime | None = None
    """The end of the rest after a rejection; it may have passed."""
    rest: timedelta = field(default_factory=timedelta)
    """The length of that rest."""


class CredentialStates(Protocol):
    """The credentials that a provider limits or rejects, for all nodes."""

    async def list_states(self) -> Sequence[CredentialState]:
        """Return the credentials that are blocked or rejected."""
        ...

    def on_change(self, callback: Callable[[], None]) -> None:
        """Register a callback for a change by another node, or for a time in which one may have been missed."""
        ...

    async def save_block(self, credential_id: str, until: datetime) -> None:
        """Store the block of a credential; the later end counts."""
        ...

    async def save_rejection(self, credential_id: str, until: datetime, rest: timedelta) -> None:
        """Store the rest of a rejected credential. It ends the try of this node."""
        ...

    async def remove_rejection(self, credential_id: str) -> None:
        """Remove a rejection: the credential was accepted or replaced."""
        ...

    async def claim_try(self, credential_id: str, run_id: str) -> bool:
        """Return True if this run is the one that tries a credential after its rest; it may ask again."""
        ...

    async def release_try(self, credential_id: str, run_id: str) -> None:
        """Let another run try the credential."""
        ...
