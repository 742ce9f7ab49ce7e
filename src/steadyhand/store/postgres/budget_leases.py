"""`ports.BudgetLeases` on Postgres.

The lock of a budget orders the requests of all nodes. Under it, what is settled comes from the sums of usage, which a
call changes in the transaction that stores it, and the shares of the others from `budget_leases`. A share counts while
its node is alive. The open calls of runs that no living node has count as their reservations.
"""

import contextlib
import json
from collections.abc import Callable, Collection, Sequence
from datetime import date, datetime
from typing import Any, Final

from steadyhand.errors import StoreError
from steadyhand.ports.cluster_limits import BudgetLease, LeaseRequest, SharedBudget
from steadyhand.ports.ledger import period_bounds
from steadyhand.store.postgres.limits_connection import IS_ALIVE, LimitsConnection
from steadyhand.store.usage_sums import narrowest_level

CHANNEL: Final = "steadyhand_budgets"
_EPOCH = date(1970, 1, 1)
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 15)) IS NULL"
_SPARE_PARTS = 4
"""A node takes at most this part of what is left to spare, so that others find some."""
_MOST_MICROS = 2**61
"""The statement adds up four of them at most."""
_NAME_COLUMNS = {"key": "api_key_id", "agent": "agent", "service": None, "job": None}


class PostgresBudgetLeases:
    """The shares of one node."""

    def __init__(
        self,
        connection: LimitsConnection,
        node: str,
        *,
        dead_seconds: float,
        may_use: Callable[[], bool] = lambda: True,
    ) -> None:
        """Keep the parameters. `may_use` returns False while others may take the node for dead."""
        self._connection = connection
        self._node = node
        self._is_alive = IS_ALIVE.format(dead=repr(float(dead_seconds)))
        self._may_use = may_use
        self._callbacks: list[Callable[[SharedBudget], None]] = []

    async def clear(self) -> None:
        """Remove the shares that an earlier process of this node had."""
        await self._connection.run(["DELETE FROM budget_leases WHERE node = %s"], (self._node,))

    async def close(self) -> None:
        """Remove the shares of this node, if the database answers: else they end with its lease."""
        with contextlib.suppress(StoreError):
            await self.clear()

    async def lease(self, requests: Sequence[LeaseRequest]) -> Sequence[BudgetLease]:
        """Change the node's shares, all in one transaction. Raise `StoreError` if the database does not answer."""
        in_order = sorted(requests, key=lambda request: budget_id(request.budget))
        # In one order on all nodes, so that none waits for another in a ring.
        statements = [_LOCK] * len(in_order)
        values: list[Any] = [budget_id(request.budget) for request in in_order]
        statement, parameters = self._statement(in_order)
        rows = (await self._connection.run([*statements, statement], [*values, *parameters]))[-1]
        leases = {
            in_order[number].budget: BudgetLease(int(settled), int(amount), bool(granted))
            for number, settled, amount, granted in rows
        }
        return [leases[request.budget] for request in requests]

    def _statement(self, requests: Sequence[LeaseRequest]) -> tuple[str, list[Any]]:
        """Return the statement that decides requests, and its values."""
        asked, found = [], []
        asked_values: list[Any] = []
        found_values: list[Any] = []
        for number, request in enumerate(requests):
            asked.append("(%s, %s, %s::bigint, %s::bigint, %s::bigint, %s, %s::bigint, %s)")
            asked_values += [
                number, budget_id(request.budget), request.limit, request.held, request.needed,
                request.may_exceed and request.needed > 0, request.spare, request.group,
            ]  # fmt: skip
            text, parameters = self._amounts(number, request)
            found.append(text)
            found_values += parameters
        statement = f"""
            WITH asked (number, budget, most, held, needed, may_exceed, spare, call) AS (VALUES {", ".join(asked)}),
            found AS ({" UNION ALL ".join(found)}),
            me AS (SELECT EXISTS (SELECT 1 FROM queue_nodes WHERE node = %s AND {self._is_alive}) AS is_alive),
            judged AS (SELECT asked.*, settled, is_alive, most - settled - others - held AS free
                FROM asked JOIN found USING (number), me),
            refused AS (SELECT DISTINCT call FROM judged WHERE needed > 0
                AND NOT (is_alive AND (free > needed OR (free > 0 AND may_exceed)))),
            decided AS (SELECT number, budget, settled, CASE
                WHEN NOT is_alive OR (needed > 0 AND call IN (SELECT call FROM refused)) THEN held
                WHEN free > needed THEN held + needed + least(spare, (free - needed - 1) / {_SPARE_PARTS})
                WHEN may_exceed THEN held + needed
                ELSE held END AS amount,
                needed = 0 OR call NOT IN (SELECT call FROM refused) AS is_granted FROM judged),
            kept AS (INSERT INTO budget_leases (budget, node, micros)
                SELECT budget, %s, amount FROM decided WHERE amount > 0
                ON CONFLICT (budget, node) DO UPDATE SET micros = excluded.micros),
            gone AS (DELETE FROM budget_leases USING decided
                WHERE budget_leases.budget = decided.budget AND node = %s AND amount <= 0)
            SELECT number, settled, amount, is_granted FROM decided"""  # noqa: S608  # our own words
        return statement, [*asked_values, *found_values, self._node, self._node, self._node]

    def _amounts(self, number: int, request: LeaseRequest) -> tuple[str, list[Any]]:
        """Return the query of what is settled and what others may still settle, and its values."""
        identifier, own = budget_id(request.budget), list(request.calls)
        settled, settled_values = _settled_sum(request.budget)
        calls, calls_values = _calls_condition(request.budget)
        query = f"""SELECT {number:d} AS number,
            least({settled} - (SELECT coalesce(sum(micros), 0) FROM calls WHERE id = ANY(%s) AND settled = 1),
                {_MOST_MICROS})::bigint AS settled,
            least((SELECT coalesce(sum(lease.micros), 0) FROM budget_leases AS lease
                JOIN queue_nodes AS holder ON holder.node = lease.node
                WHERE lease.budget = %s AND lease.node <> %s AND {self._is_alive})
            + (SELECT coalesce(sum(reserved_micros), 0) FROM calls
                WHERE settled = 0 AND {calls} AND id <> ALL(%s) AND NOT EXISTS (
                    SELECT 1 FROM queue_places AS place JOIN queue_nodes ON queue_nodes.node = place.node
                    WHERE place.job_id = calls.job_id AND place.state IN ('running', 'suspended')
                        AND {self._is_alive})), {_MOST_MICROS})::bigint AS others"""  # noqa: S608  # our own words
        return query, [*settled_values, own, identifier, self._node, *calls_values, own]

    def may_use(self) -> bool:
        """Return False while others may take this node for dead."""
        return self._may_use()

    def on_crowded(self, callback: Callable[[SharedBudget], None]) -> None:
        """Register a callback for a budget of which another node wants more, or has given some back."""
        self._callbacks.append(callback)

    async def announce(self, budgets: Collection[SharedBudget]) -> None:
        """Ask the other nodes to look at these budgets again."""
        text = json.dumps({"node": self._node, "budgets": [budget_id(each) for each in budgets]})
        await self._connection.run(["SELECT pg_notify(%s, %s)"], (CHANNEL, text))

    def hear(self, payload: str | None) -> None:
        """Receive a notification; one that was missed only costs time: each node asks again by itself."""
        if payload is None:
            return
        heard = json.loads(payload)
        if heard["node"] == self._node:
            return
        for identifier in heard["budgets"]:
            scope, period, start, name = identifier.split(":", 3)
            budget = SharedBudget(scope, name, period, datetime.fromisoformat(f"{start}T00:00:00+00:00"))
            for callback in self._callbacks:
                callback(budget)


def budget_id(budget: SharedBudget) -> str:
    """Return the text by which the database knows a budget in its period."""
    return f"{budget.scope}:{budget.period}:{budget.start.date().isoformat()}:{budget.name}"


def _settled_sum(budget: SharedBudget) -> tuple[str, list[Any]]:
    """Return the expression of the settled micro-dollars of a budget, and its values."""
    column = _NAME_COLUMNS[budget.scope]
    level = narrowest_level(() if column is None else (column,), budget.period)
    condition = f"level = {level:d} AND start = {(budget.start.date() - _EPOCH).days:d} AND api_key_id = %s"
    values = [budget.name if budget.scope == "key" else ""]
    if budget.scope == "agent":
        condition += " AND agent = %s"
        values.append(budget.name)
    return f"(SELECT coalesce(sum(micros), 0) FROM usage_sums WHERE {condition})", values  # noqa: S608


def _calls_condition(budget: SharedBudget) -> tuple[str, list[Any]]:
    """Return the condition of the calls of a budget, and its values."""
    first, end = ((moment.date() - _EPOCH).days for moment in period_bounds(budget.period, budget.start))
    condition = f"day >= {first:d} AND day < {end:d}"
    column = _NAME_COLUMNS[budget.scope]
    return (condition, []) if column is None else (f"{condition} AND {column} = %s", [budget.name])
