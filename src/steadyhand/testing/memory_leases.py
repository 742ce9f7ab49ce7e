"""Budget leases in memory, for tests of what uses them; they pass the contract of the real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from steadyhand.ports import ModelCall
from steadyhand.ports.cluster_limits import BudgetLease, LeaseRequest, SharedBudget
from steadyhand.ports.ledger import period_bounds
from steadyhand.testing.memory_ledger import MemoryLedger


class MemoryBudgets:
    """The budgets that some nodes share: their ledger, their shares, and the nodes that live."""

    def __init__(self, ledger: MemoryLedger) -> None:
        self.ledger = ledger
        self.shares: dict[tuple[SharedBudget, str], int] = {}
        self.nodes: dict[str, MemoryBudgetLeases] = {}
        self.jobs: dict[str, str] = {}
        """The node that runs a job."""

    def settled(self, budget: SharedBudget, without: Collection[str] = ()) -> int:
        """Return what all nodes have settled."""
        return sum(
            call.micros
            for call in self.ledger.settled_calls
            if call.id not in without and _is_of(call, budget)
        )

    def promised(self, budget: SharedBudget, node: str, own_calls: Collection[str]) -> int:
        """Return the shares of other living nodes, and the open calls of runs that no living node has."""
        others = sum(
            amount
            for (each, owner), amount in self.shares.items()
            if each == budget and owner != node and owner in self.nodes
        )
        return others + sum(
            call.reserved_micros
            for call in self.ledger.calls.values()
            if not call.settled
            and call.id not in own_calls
            and _is_of(call, budget)
            and self.jobs.get(call.job_id) not in self.nodes
        )


class MemoryBudgetLeases:
    """`ports.BudgetLeases` of one node. `delay` is awaited in each request, as the way to a database."""

    def __init__(self, shared: MemoryBudgets, node: str) -> None:
        self._shared = shared
        self._node = node
        self._callbacks: list[Callable[[SharedBudget], None]] = []
        self.requests = 0
        self.is_cut_off = False
        shared.nodes[node] = self

    def die(self) -> None:
        """Leave the living nodes, for the others."""
        self._shared.nodes.pop(self._node, None)

    async def lease(self, requests: Sequence[LeaseRequest]) -> Sequence[BudgetLease]:
        """Change the node's shares."""
        self.requests += 1
        await asyncio.sleep(0)
        refused = {request.group for request in requests if request.needed and not self._has_room(request)}
        leases = [self._decide(request, request.group in refused) for request in requests]
        await asyncio.sleep(0)
        return leases

    def _free(self, request: LeaseRequest) -> int:
        free = request.limit - self._shared.settled(request.budget, request.calls) - request.held
        return free - self._shared.promised(request.budget, self._node, request.calls)

    def _has_room(self, request: LeaseRequest) -> bool:
        free = self._free(request)
        is_alive = self._node in self._shared.nodes
        return is_alive and (free > request.needed or (free > 0 and request.may_exceed))

    def _decide(self, request: LeaseRequest, is_refused: bool) -> BudgetLease:  # noqa: FBT001
        free, amount = self._free(request), request.held
        is_refused = is_refused and request.needed > 0
        if self._has_room(request) and not is_refused:
            amount += request.needed + max(0, min(request.spare, (free - request.needed - 1) // 4))
        self._shared.shares[request.budget, self._node] = amount
        settled = self._shared.settled(request.budget, request.calls)
        return BudgetLease(settled, amount, not is_refused)

    def may_use(self) -> bool:
        """Return False while others may take this node for dead."""
        return not self.is_cut_off

    def on_crowded(self, callback: Callable[[SharedBudget], None]) -> None:
        """Register a callback."""
        self._callbacks.append(callback)

    async def announce(self, budgets: Collection[SharedBudget]) -> None:
        """Announce budgets to the other nodes."""
        for node, leases in self._shared.nodes.items():
            if node != self._node:
                for callback in leases._callbacks:  # noqa: SLF001  # of its own kind
                    for budget in budgets:
                        callback(budget)


def _is_of(call: ModelCall, budget: SharedBudget) -> bool:
    since, until = period_bounds(budget.period, budget.start)
    name = {"key": call.api_key_id, "agent": call.agent}.get(budget.scope, budget.name)
    return name == budget.name and since <= call.at < until
