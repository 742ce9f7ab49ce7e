"""The runs that a node has claimed, and its slots: they are in the memory of its process alone."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterator

from steadyhand.job import Job
from steadyhand.outcome import StopReason
from steadyhand.ports import Claim, StopSignal
from steadyhand.queue.procrastinate.handed_runs import HandedRun


class ClaimedRuns:
    """Claims of up to `capacity` runs at once; suspended ones keep their slots, of which there are `slots`."""

    def __init__(self, capacity: int, slots: int, clock: Callable[[], float]) -> None:
        self._capacity = capacity
        self._clock = clock
        self._free_slots = list(range(slots))
        self._by_slot: dict[int, HandedRun] = {}
        self.resuming: list[HandedRun] = []
        """The suspended runs that shall go on, in the order in which that was asked."""

    def __iter__(self) -> Iterator[HandedRun]:
        return iter(self._by_slot.values())

    def running(self) -> list[HandedRun]:
        """Return the runs that are not suspended."""
        return [each for each in self._by_slot.values() if not each.suspended]

    @property
    def has_slots(self) -> bool:
        """True if the node runs jobs at all; a node that only serves has no slot."""
        return bool(self._free_slots or self._by_slot)

    @property
    def room(self) -> int:
        """The number of runs that may begin or go on, beside those that run."""
        return self._capacity - len(self.running())

    @property
    def can_claim(self) -> bool:
        """True if there is room for a run and a slot for it."""
        return bool(self._free_slots) and self.room > 0

    def active(self) -> list[HandedRun]:
        """Return the runs that count against the capacity: neither suspended nor about to end."""
        return [each for each in self.running() if not each.ending]

    def count_active(self) -> Counter[str]:
        """Return the number of active runs of each key."""
        return Counter(each.job.api_key_id for each in self.active())

    def suspended_count(self) -> int:
        """Return the number of suspended runs."""
        return sum(each.suspended for each in self._by_slot.values())

    def has_run(self, run: int) -> bool:
        """Return True if the engine's run of this number is claimed."""
        return any(each.run == run for each in self._by_slot.values())

    def find(self, claim: Claim) -> HandedRun | None:
        """Return the run of a claim, or None if it was released."""
        handed = self._by_slot.get(claim.slot)
        return handed if handed is not None and handed.claim is claim else None

    def longest_seconds(self) -> float:
        """Return the time that the oldest run has run so far, in seconds; 0 of none."""
        now = self._clock()
        return max((each.run_seconds(now) for each in self.running()), default=0.0)

    def seconds_of(self, handed: HandedRun) -> float:
        """Return the time that a run has run so far, in seconds."""
        return handed.run_seconds(self._clock())

    def claim(self, handed: HandedRun) -> Claim:
        """Claim a run in the lowest free slot."""
        return self._begin(handed, heapq.heappop(self._free_slots))

    def adopt(self, job: Job, slot: int | None) -> HandedRun | None:
        """Claim a job that runs already, in its slot or in any; None if there is no such free slot."""
        if slot is None:
            slot = min(self._free_slots, default=None)
        if slot is None or slot not in self._free_slots:
            return None
        self._free_slots.remove(slot)
        heapq.heapify(self._free_slots)
        handed = HandedRun(job, 0)
        self._begin(handed, slot)
        return handed

    def _begin(self, handed: HandedRun, slot: int) -> Claim:
        handed.claim = Claim(handed.job, slot, StopSignal())
        handed.running_since = self._clock()
        self._by_slot[slot] = handed
        return handed.claim

    def suspend(self, handed: HandedRun) -> None:
        """Let a run wait until it goes on; one that was to go on does not any more."""
        if handed in self.resuming:
            self.resuming.remove(handed)
        if not handed.suspended:
            handed.seconds_before = self.seconds_of(handed)
            handed.suspended = True

    def ask_to_go_on(self, handed: HandedRun) -> None:
        """Put a suspended run behind those that shall go on; a repeat changes nothing."""
        if handed not in self.resuming:
            self.resuming.append(handed)

    def go_on(self, handed: HandedRun) -> None:
        """Let a run that was asked for go on."""
        self.resuming.remove(handed)
        handed.suspended, handed.running_since = False, self._clock()

    def mark_ending(self, job_id: str) -> None:
        """Count the runs of a job as free; their slots are claimed again only after `drop`."""
        for each in self._by_slot.values():
            each.ending = each.ending or each.job.id == job_id

    def drop(self, handed: HandedRun, slot: int) -> None:
        """Free the slot of a run."""
        del self._by_slot[slot]
        if handed in self.resuming:
            self.resuming.remove(handed)
        heapq.heappush(self._free_slots, slot)

    def stop_all(self, reason: StopReason) -> None:
        """Request every run to stop."""
        for each in self._by_slot.values():
            if each.claim is not None:
                each.claim.stop.request(reason)
