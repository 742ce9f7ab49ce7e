"""Budgets that several nodes spend: how long a call waits for its share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.rows import Row
from bench.worlds import made_in
from steadyhand.gateway.money import budget_shares
from steadyhand.gateway.money.budgets import BudgetAccount, Budgets
from steadyhand.ports import BudgetLimit, ModelCall
from steadyhand.queue.procrastinate.places import SCHEMA
from steadyhand.store import open_store
from steadyhand.store.postgres.budget_leases import PostgresBudgetLeases
from steadyhand.store.postgres.limits_connection import LimitsConnection
from steadyhand.testing.postgres import Postgres

CALLS = 300
_LIMIT = BudgetLimit("key", "k_one", "day", 1_000_000_000)


def measure_budgets(world: Path, pairs: int) -> Row:
    """Measure the wait of a call for a budget that two nodes spend: by shares, and by a question before each call."""
    ours: list[float] = []
    theirs: list[float] = []
    asked: list[int] = []
    with Postgres(made_in(world, "postgres"), is_durable=True) as server:
        for _ in range(pairs):
            for found, calls in ((ours, budget_shares.SPARE_CALLS), (theirs, 0)):
                url = server.url(server.create_database())
                seconds, requests = asyncio.run(_admission_seconds(url, calls))
                found.append(1000 * seconds / CALLS)
                asked.append(requests)
    notes = [f"{asked[0]} requests to the database for {CALLS} calls, and {asked[1]} with one before each"]
    what = f"the wait of each of {CALLS} calls, by a share; beside the same that asks before each call"
    return Row("budget-shares", what, "ms", ours, theirs, "at most", 0.3, notes)


async def _admission_seconds(url: str, spare_calls: int) -> tuple[float, int]:
    """Return the seconds that calls waited together, and the requests to the database."""
    before = budget_shares.SPARE_CALLS, budget_shares.LOW_CALLS
    budget_shares.SPARE_CALLS = spare_calls
    if not spare_calls:
        budget_shares.LOW_CALLS = -1  # nothing is asked for in the background either
    try:
        async with AsyncExitStack() as stack:
            store = await open_store(url)
            stack.push_async_callback(store.close)
            connection = LimitsConnection(url)
            stack.push_async_callback(connection.close)
            await connection.run([SCHEMA.rstrip().rstrip(";")])
            await connection.install()
            await connection.run(
                [
                    "INSERT INTO queue_nodes (node, capacity, lease_at) VALUES ('one', 1, now() + interval '1 hour')"
                ]
            )
            leases = _CountingLeases(connection, "one", dead_seconds=12)
            budgets = Budgets(store, lambda: datetime.now(UTC), leases=leases)
            async with asyncio.TaskGroup() as group:
                running = group.create_task(budgets.run())
                waited = 0.0
                for number in range(CALLS):
                    began = time.perf_counter()
                    held = await budgets.admit(
                        BudgetAccount("j", "claude", "k_one", lambda: [_LIMIT]), 100, f"{number}"
                    )
                    waited += time.perf_counter() - began
                    held.settle(100)
                    await store.save_call(_call(number))
                    held.note_stored()
                running.cancel()
            return waited, leases.requests
    finally:
        budget_shares.SPARE_CALLS, budget_shares.LOW_CALLS = before


class _CountingLeases(PostgresBudgetLeases):
    requests = 0

    async def lease(self, requests: Sequence[Any]) -> Sequence[Any]:
        """Count a request, and send it."""
        self.requests += 1
        return await super().lease(requests)


def _call(number: int) -> ModelCall:
    return ModelCall(
        f"{number}",
        "j",
        1,
        "k_one",
        "claude",
        "default",
        "claude-haiku-4-5",
        datetime.now(UTC),
        settled=True,
        micros=100,
    )
