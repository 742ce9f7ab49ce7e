"""The plan of the waiting processes: which are to be started next, and which have waited long enough."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from steadyhand.job import Job
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.warm_demand import AgentDemand, SlotKey
from steadyhand.worker.warm_records import WarmRecords
from steadyhand.worker.warm_slot import SLOT_BYTES, WarmSlot

MAX_AGE_SECONDS = 3600.0
"""The age at which a waiting process is replaced."""
KEPT_SECONDS = 60.0
"""How long a process that was reset waits for the next job of its caller."""
MIN_AVAILABLE_BYTES = 256 << 20
"""Below this much memory of the machine no process waits."""


class WarmPlan:
    """Compares the slots that are there with those that there are to be."""

    def __init__(
        self,
        deps: WorkerDeps,
        slots: Sequence[WarmSlot],
        demand: Mapping[str, AgentDemand],
        key_of: Callable[[Job], SlotKey | None],
        *,
        records: WarmRecords,
        available: Callable[[], int | None],
        waiting_runs: Callable[[], Sequence[tuple[float, str]]],
    ) -> None:
        """Keep `slots` and `demand`, which the pool changes.

        `available` returns the memory of the machine, `waiting_runs` when the runs that wait for results of their
        clients' tools began to wait, and their keys: their processes share the memory with those that stay.
        """
        self._waiting_runs = waiting_runs
        self._deps = deps
        self._slots = slots
        self._demand = demand
        self._key_of = key_of
        self._available = available
        self._records = records
        self._taken_numbers = {orphan.place for orphan in deps.orphans}
        """Those of runs that an earlier service left in processes that had waited."""

    def is_short_of_memory(self) -> bool:
        """Return True if the machine has no memory for processes that wait."""
        available = self._available()
        return available is not None and available < MIN_AVAILABLE_BYTES

    def free_number(self) -> int:
        """Return a number for a new slot that no claim of the queue and no other slot has."""
        used = {slot.number for slot in self._slots} | self._taken_numbers
        return next(
            number for number in range(self._deps.config.first_warm_slot, 1 << 30) if number not in used
        )

    # --- what is missing -------------------------------------------------------------------

    def next_wanted(self) -> tuple[SlotKey, bool, Job] | None:
        """Return the key and the kind of the slot to fill next, and a job for it; None if none is to be filled."""
        if any(
            slot.agent is None and slot.stack is None and not slot.released.is_set() for slot in self._slots
        ):
            return None  # one at a time
        now = time.monotonic()
        plan = self._counts(now)
        for slot in self._slots:
            wanted = (slot.key, slot.initialise)
            if not slot.is_claimed and slot.owner is None and plan.get(wanted, 0) > 0:
                plan[wanted] -= 1
        for (key, initialise), count in plan.items():
            if count > 0 and self._records.may_start(key, now):
                return key, initialise, self._demand[key.agent].template(key)
        return None

    def _counts(self, now: float) -> dict[tuple[SlotKey, bool], int]:
        """Return how many slots of each key and kind there are to be."""
        room = self._deps.config.warm_memory // SLOT_BYTES
        plan: dict[tuple[SlotKey, bool], int] = {}
        for name, demand in self._demand.items():
            agent = self._deps.catalog.agent(name)
            base = self._key_of(demand.plain_job)
            if base is None:
                continue
            for wanted, count in demand.plan(base, agent.warm, now).items():
                plan[wanted] = min(count, room)
                room -= plan[wanted]
        return plan

    # --- what is too much ------------------------------------------------------------------

    def unwanted(self) -> Sequence[WarmSlot]:
        """Return the slots that are too old, that nobody asks for any more, or that the memory has no room for."""
        now = time.monotonic()
        unclaimed = [slot for slot in self._slots if not slot.is_claimed and not slot.released.is_set()]
        if self.is_short_of_memory():
            return unclaimed
        over = [slot for slot in unclaimed if now - slot.began > MAX_AGE_SECONDS or self._is_over(slot, now)]
        left = [slot for slot in unclaimed if slot not in over]
        over += self._beyond_room(left)[0]
        plan = self._counts(now)
        for slot in left:
            if slot.owner is not None:
                continue
            wanted = (slot.key, slot.initialise)
            if plan.get(wanted, 0) > 0:
                plan[wanted] -= 1
            elif slot.is_ready:
                over.append(slot)
        return over

    def _is_over(self, slot: WarmSlot, now: float) -> bool:
        """Return True if a kept process has waited long enough for its conversation or its caller."""
        live_seconds = self._deps.catalog.agent(slot.key.agent).live_seconds
        limit = KEPT_SECONDS if slot.live_job is None else live_seconds
        return slot.owner is not None and now - slot.kept_at > limit

    def surplus_runs(self) -> int:
        """Return how many of the runs that wait for their clients have to end for the memory, the oldest first."""
        unclaimed = [slot for slot in self._slots if not slot.is_claimed and not slot.released.is_set()]
        if self.is_short_of_memory():
            return 0 if unclaimed else 1  # one after the other: each may be enough
        return self._beyond_room(unclaimed)[1]

    def _beyond_room(self, unclaimed: Sequence[WarmSlot]) -> tuple[Sequence[WarmSlot], int]:
        """Return the kept processes, and the number of waiting runs, that the memory has no room for, or their key.

        Of both together, the one that was not used for longest goes first. Runs may always take as much memory as
        `max_waiting_runs` grants them.
        """
        live: list[tuple[float, str, WarmSlot | None]] = [
            (slot.kept_at, slot.owner[0], slot) for slot in unclaimed if slot.owner is not None
        ]
        kept = len(live)
        room = max(0, self._deps.config.warm_memory // SLOT_BYTES - (len(unclaimed) - kept))
        live += [(since, key_id, None) for since, key_id in self._waiting_runs()]
        total, limit = len(live), max(room, self._deps.config.max_waiting_runs)
        of_key = Counter(key_id for _, key_id, _ in live)
        slots, runs = [], 0
        for _, key_id, slot in sorted(live, key=lambda each: each[0]):
            if slot is not None:
                if not (kept > room or total > limit or of_key[key_id] > self._deps.config.max_kept_per_key):
                    continue
                slots.append(slot)
                kept -= 1
            elif total > limit:
                runs += 1
            else:
                continue
            total -= 1
            of_key[key_id] -= 1
        return slots, runs
