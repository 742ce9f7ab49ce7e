"""The demand for waiting processes of one agent, learned from the jobs that come. Pure."""

from collections import deque
from collections.abc import Iterator
from typing import Literal, NamedTuple

from steadyhand.job import Job

MAX_KEYS = 64
"""The keys of one agent that are remembered; the one not seen for longest goes first."""
HISTORY_SECONDS = 2 * 3600.0
WINDOW_SECONDS = 5.0
"""About the time of a refill: jobs that come within it need a process each."""
_MAX_ARRIVALS = 1_000
_MIN_ARRIVALS = 2
"""A key is learned when it comes again."""


class SlotKey(NamedTuple):
    """The properties of a job that its slot must have."""

    agent: str
    process: str
    details: str
    workspace: str

    def fits(self, other: "SlotKey", *, exactly: bool) -> bool:
        """Return True if a job with the key `other` can have a slot of this one."""
        return self == other if exactly else self._replace(details=other.details) == other


class _Arrivals:
    def __init__(self, template: Job) -> None:
        self.template = template
        self.times: deque[float] = deque(maxlen=_MAX_ARRIVALS)

    def forget(self, now: float) -> None:
        while self.times and now - self.times[0] > HISTORY_SECONDS:
            self.times.popleft()

    def largest_burst(self) -> int:
        first, largest = 0, 0
        for last, time in enumerate(self.times):
            while time - self.times[first] > WINDOW_SECONDS:
                first += 1
            largest = max(largest, last - first + 1)
        return largest


class AgentDemand:
    """The arrivals of one agent's jobs by key, newest key last. Times are of a monotonic clock."""

    def __init__(self, plain_job: Job) -> None:
        """Create the demand of an agent; `plain_job` is the job that is expected before any has come."""
        self.plain_job = plain_job
        self._arrivals: dict[SlotKey, _Arrivals] = {}

    def record(self, key: SlotKey, template: Job, now: float) -> None:
        """Record the arrival of a job. `template` is the job without what belongs to its caller alone."""
        arrivals = self._arrivals.pop(key, None) or _Arrivals(template)
        self._arrivals[key] = arrivals
        arrivals.times.append(now)
        if len(self._arrivals) > MAX_KEYS:
            del self._arrivals[next(iter(self._arrivals))]

    def template(self, key: SlotKey) -> Job:
        """Return a job with this key."""
        arrivals = self._arrivals.get(key)
        return self.plain_job if arrivals is None else arrivals.template

    def plan(self, base: SlotKey, size: int | Literal["auto"], now: float) -> dict[tuple[SlotKey, bool], int]:
        """Return how many processes are to wait for each key, initialised (True) or only started (False).

        `base` is the key of `plain_job`. With a fixed size the first is for the plain job, and each further one goes
        to the key with the most arrivals for each of its processes. Keys that came once share a started one.
        """
        for arrivals in self._arrivals.values():
            arrivals.forget(now)
        learned = {
            key: each
            for key, each in self._arrivals.items()
            if len(each.times) >= _MIN_ARRIVALS or key == base
        }
        rare = sum(len(each.times) for key, each in self._arrivals.items() if key not in learned)
        if size == "auto":
            plan = {(key, True): each.largest_burst() for key, each in learned.items() if len(each.times) > 1}
            return plan | ({(base, False): 1} if rare > 1 else {})
        weights: dict[tuple[SlotKey, bool], float] = {(base, True): 1.0}
        for key, each in learned.items():
            weights[key, True] = weights.get((key, True), 0.0) + len(each.times)
        if rare > 1:
            weights[base, False] = rare
        plan = dict.fromkeys(weights, 0)
        for _ in range(size):
            best = max(weights, key=lambda each: weights[each] / (plan[each] + 1))
            plan[best] += 1
        return {key: count for key, count in plan.items() if count}

    def known_keys(self) -> Iterator[SlotKey]:
        """Iterate over the keys that came, the one not seen for longest first."""
        return iter(self._arrivals)
