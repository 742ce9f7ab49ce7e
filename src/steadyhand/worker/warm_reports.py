"""Reports of the waiting processes: how many there are, how many there should be, and why there are fewer."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from steadyhand.job import Job
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.warm_demand import AgentDemand, SlotKey
from steadyhand.worker.warm_records import WarmRecords, WarmShortage
from steadyhand.worker.warm_slot import SLOT_BYTES, WarmCounts, WarmSlot


class WarmReports:
    """Reports of the processes of one pool."""

    def __init__(
        self,
        deps: WorkerDeps,
        demand: Mapping[str, AgentDemand],
        records: WarmRecords,
        key_of: Callable[[Job], SlotKey | None],
        *,
        is_short_of_memory: Callable[[], bool],
    ) -> None:
        self._deps = deps
        self._demand = demand
        self._records = records
        self._key_of = key_of
        self._is_short_of_memory = is_short_of_memory

    def summary(self, waiting: Sequence[WarmSlot], counts: WarmCounts) -> Mapping[str, Any]:
        """Return the counts of all agents together; `shortage` is there if fewer processes wait than configured."""
        now = time.monotonic()
        oldest = max((now - slot.began for slot in waiting), default=0.0)
        shortage = next((each for each in map(self._shortage, self._demand) if each is not None), None)
        return {
            "configured": sum(self._configured(name, now) for name in self._demand),
            "waiting": len(waiting),
            "oldest_seconds": round(oldest, 1),
            **asdict(counts),
            **({} if shortage is None else {"shortage": shortage.value}),
        }

    def of_agents(self, waiting: Sequence[WarmSlot]) -> Mapping[str, Mapping[str, Any]]:
        """Return the report of each agent that asks for processes."""
        now = time.monotonic()
        free = Counter(slot.key.agent for slot in waiting if slot.owner is None)
        kept = Counter(slot.key.agent for slot in waiting if slot.owner is not None)
        return {
            name: {
                "configured": self._configured(name, now),
                "waiting": free[name],
                "kept": kept[name],
                **self._records.report(name, self._shortage(name)),
            }
            for name in self._demand
        }

    def _configured(self, name: str, now: float) -> int:
        """Return how many processes of an agent are asked for, by its setting or by its jobs so far."""
        size, demand = self._deps.catalog.agent(name).warm, self._demand[name]
        if size != "auto":
            return size
        base = self._key_of(demand.plain_job)
        return 0 if base is None else sum(demand.plan(base, size, now).values())

    def _shortage(self, name: str) -> WarmShortage | None:
        """Return the reason why fewer processes of an agent wait than are asked for; None if none is known."""
        if self._is_short_of_memory():
            return WarmShortage.MEMORY
        if self._key_of(self._demand[name].plain_job) is None:
            return WarmShortage.IN_PLACE
        now = time.monotonic()
        needed = SLOT_BYTES * sum(self._configured(each, now) for each in self._demand)
        if needed > self._deps.config.warm_memory:
            return WarmShortage.WARM_MEMORY
        return self._records.shortage_of(name)
