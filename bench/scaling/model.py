"""A discrete-event simulation of nodes on one Postgres.

What it has: machines with cores; the one thread of each node; one lock over the places of all jobs, which a
transaction holds until it has committed; and one lock of Postgres that each commit with a notification holds while it
is flushed to the disk. A node puts all that waits into one transaction, as the service does.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Literal

import simpy

from bench.scaling.costs import Costs

Steps = Generator[simpy.Event, Any, Any]
_SLICE = 0.002
"""The longest time for which a core does one thing."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The nodes and their machines. `shared_cores` is one machine for everything, as in the measured points."""

    workers: int
    slots: int
    serves: int = 1
    shared_cores: int | None = None
    worker_cores: int = 8
    serve_cores: int = 4
    postgres_cores: int = 16


@dataclass(frozen=True, slots=True)
class Load:
    """What the agents do. With a rate of 0 there is always a job that waits."""

    jobs_per_second: float = 0
    run_seconds: float = 0
    """The time that an agent waits for its model and its tools."""
    events_per_second: float = 0
    """The events of one agent."""
    followers: float = 0
    """The followers of one job."""


@dataclass(slots=True)
class Outcome:
    """What the simulated time had."""

    seconds: float
    ended: int = 0
    start_delays: list[float] = field(default_factory=list)
    event_delays: list[float] = field(default_factory=list)
    busy: dict[str, float] = field(default_factory=dict)
    """The share of its time for which something was taken: `postgres`, `turn`, `notify`, `worker`, `serve`."""

    @property
    def jobs_per_second(self) -> float:
        """The rate of jobs that ended."""
        return self.ended / self.seconds


def quantile(figures: Sequence[float], share: float) -> float:
    """Give the figure below which this share of them is; 0 of none."""
    ordered = sorted(figures)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class _Shared:
    """A resource of which the time that it is taken is counted from a moment on."""

    def __init__(self, env: simpy.Environment, capacity: int) -> None:
        self._env = env
        self.capacity = capacity
        self.resource = simpy.Resource(env, capacity)
        self.taken = 0.0

    def use(self, seconds: float) -> Steps:
        with self.resource.request() as request:
            yield request
            yield self._env.timeout(seconds)
        self.taken += seconds

    def compute(self, seconds: float) -> Steps:
        """Use it in slices, so that others come between."""
        left = seconds
        while left > 0:
            yield from self.use(min(left, _SLICE))
            left -= _SLICE


@dataclass(eq=False, slots=True)
class _Job:
    accepted: float
    node: _Node | None = None


@dataclass(eq=False, slots=True)
class _Operation:
    kind: Literal["put", "want", "start", "end"]
    job: _Job | None
    done: simpy.Event


class _Node:
    """A node: its thread, what waits for its next transaction, and the events that it has not written yet."""

    def __init__(self, it: _Simulation, cores: _Shared, slots: int) -> None:
        self._it = it
        self.thread = _Shared(it.env, 1)
        self.cores = cores
        self.slots = slots
        self.wanted = 0
        self.operations: list[_Operation] = []
        self.events: list[float] = []
        self._asked = it.env.event()
        self._written = it.env.event()
        it.env.process(self._turns())
        if slots:
            it.env.process(self._writes())

    def work(self, seconds: float) -> Steps:
        """Use the node's one thread, which needs a core."""
        with self.thread.resource.request() as request:
            yield request
            yield from self.cores.compute(seconds)
        self.thread.taken += seconds

    def ask(self, kind: Literal["put", "want", "start", "end"], job: _Job | None = None) -> simpy.Event:
        """Have something done in the next transaction of this node."""
        operation = _Operation(kind, job, self._it.env.event())
        self.operations.append(operation)
        if not self._asked.triggered:
            self._asked.succeed()
        return operation.done

    def tell(self, count: int) -> None:
        """Have events written."""
        self.events += [self._it.env.now] * count
        if not self._written.triggered:
            self._written.succeed()

    def _turns(self) -> Steps:
        it = self._it
        while True:
            yield self._asked
            self._asked = it.env.event()
            while self.operations:
                with it.turn.resource.request() as request:
                    yield request
                    began = it.env.now
                    operations, self.operations = self.operations, []
                    yield from it.postgres.compute(it.costs.turn)
                    yield from it.notify.use(it.costs.commit)
                    it.apply(self, operations)
                    it.turn.taken += it.env.now - began
                for operation in operations:
                    operation.done.succeed()

    def _writes(self) -> Steps:
        it = self._it
        while True:
            yield self._written
            self._written = it.env.event()
            while self.events:
                told, self.events = self.events, []
                yield from self.work(len(told) * it.costs.event_worker)
                yield from it.postgres.compute(len(told) * it.costs.event_postgres)
                yield from it.notify.use(it.costs.commit)
                if it.load.followers and it.costs.event_follower:
                    it.env.process(self._follow(told))
                else:
                    it.note_events(told)

    def _follow(self, told: list[float]) -> Steps:
        it = self._it
        yield from next(it.serving).work(len(told) * it.load.followers * it.costs.event_follower)
        it.note_events(told)


class _Simulation:
    def __init__(self, costs: Costs, layout: Layout, load: Load, seed: int) -> None:
        self.env = simpy.Environment()
        self.costs = costs
        self.layout = layout
        self.load = load
        self.random = random.Random(seed)  # noqa: S311  # the same run again for the same seed
        cores = layout.shared_cores
        machine = _Shared(self.env, cores) if cores else None
        self.postgres = machine or _Shared(self.env, layout.postgres_cores)
        self.turn = _Shared(self.env, 1)
        self.notify = _Shared(self.env, 1)
        self.workers = [
            _Node(self, machine or _Shared(self.env, layout.worker_cores), layout.slots)
            for _ in range(layout.workers)
        ]
        self.serves = [
            _Node(self, machine or _Shared(self.env, layout.serve_cores), 0) for _ in range(layout.serves)
        ]
        self.serving = cycle(self.serves)
        self.waiting: deque[_Job] = deque()
        self.outcome = Outcome(0)
        self._counted_from = 0.0

    # --- places ----------------------------------------------------------------------------

    def apply(self, node: _Node, operations: list[_Operation]) -> None:
        """Do what a transaction holds, and choose the jobs that may start."""
        for operation in operations:
            if operation.kind == "put":
                assert operation.job is not None
                self.waiting.append(operation.job)
            elif operation.kind == "want":
                node.wanted += 1
        while self.waiting:
            free = max(self.workers, key=lambda each: each.wanted)
            if not free.wanted:
                return
            free.wanted -= 1
            job = self.waiting.popleft()
            job.node = free
            self.env.process(self._run(job, free))

    # --- a job -----------------------------------------------------------------------------

    def _accept(self) -> Steps:
        job = _Job(self.env.now)
        serve = next(self.serving)
        yield from serve.work(self.costs.accept_serve)
        yield serve.ask("put", job)

    def _run(self, job: _Job, node: _Node) -> Steps:
        costs, load = self.costs, self.load
        yield node.ask("start", job)
        if self._counted_from:
            self.outcome.start_delays.append(self.env.now - job.accepted)
        yield from node.work(costs.run_worker / 2)
        # The turns have their own share of the time of Postgres.
        yield from self.postgres.compute(max(0.0, costs.run_postgres - 3 * costs.turn))
        yield from node.cores.compute(costs.run_agent)
        for _ in range(round(costs.commits)):
            yield from self.notify.use(costs.commit)
        if load.run_seconds:
            yield from self._wait_for_the_model(node)
        yield from node.work(costs.run_worker / 2)
        yield from self._end(node, job)
        if not load.jobs_per_second:
            self.env.process(self._accept())

    def _end(self, node: _Node, job: _Job | None) -> Steps:
        yield node.ask("end", job)
        if self._counted_from:
            self.outcome.ended += 1
        node.ask("want")

    def _wait_for_the_model(self, node: _Node) -> Steps:
        end = self.env.now + self.random.expovariate(1 / self.load.run_seconds)
        while self.load.events_per_second:
            pause = self.random.expovariate(self.load.events_per_second)
            if self.env.now + pause >= end:
                break
            yield self.env.timeout(pause)
            node.tell(1)
        yield self.env.timeout(max(0.0, end - self.env.now))

    def note_events(self, told: list[float]) -> None:
        """Count events that reached their followers."""
        if self._counted_from:
            self.outcome.event_delays += [self.env.now - each for each in told]

    # --- all of it -------------------------------------------------------------------------

    def _arrivals(self) -> Steps:
        while True:
            yield self.env.timeout(self.random.expovariate(self.load.jobs_per_second))
            self.env.process(self._accept())

    def _idle(self) -> Steps:
        """Let the leases of all nodes take their share of Postgres."""
        nodes = len(self.workers) + len(self.serves)
        while self.costs.node_postgres:
            yield self.env.timeout(1)
            yield from self.postgres.compute(nodes * self.costs.node_postgres)

    def _begin(self) -> None:
        """Start in the middle: with as many agents at work as the rate comes to."""
        load, layout = self.load, self.layout
        slots = layout.workers * layout.slots
        at_work = min(slots, round(load.jobs_per_second * load.run_seconds))
        for worker in self.workers:
            worker.wanted = layout.slots
        for number in range(at_work):
            node = self.workers[number % layout.workers]
            node.wanted -= 1
            self.env.process(self._go_on(node))
        if load.jobs_per_second:
            self.env.process(self._arrivals())
        else:
            for _ in range(2 * slots):
                self.env.process(self._accept())
        self.env.process(self._idle())

    def _go_on(self, node: _Node) -> Steps:
        yield from self._wait_for_the_model(node)
        yield from node.work(self.costs.run_worker / 2)
        yield from self._end(node, None)

    def run(self, seconds: float, warm_up: float) -> Outcome:
        self._begin()
        self.env.run(until=warm_up)
        self._counted_from = warm_up
        before = self._taken()
        self.env.run(until=warm_up + seconds)
        self.outcome.seconds = seconds
        self.outcome.busy = {name: (taken - before[name]) / seconds for name, taken in self._taken().items()}
        return self.outcome

    def _taken(self) -> dict[str, float]:
        """Give the time for which each resource was taken, of one of its kind."""
        return {
            "postgres": self.postgres.taken / self.postgres.capacity,
            "turn": self.turn.taken,
            "notify": self.notify.taken,
            "worker": sum(each.thread.taken for each in self.workers) / len(self.workers),
            "serve": sum(each.thread.taken for each in self.serves) / len(self.serves),
        }


def simulate(
    costs: Costs, layout: Layout, load: Load, *, seconds: float = 30, warm_up: float = 5, seed: int = 1
) -> Outcome:
    """Simulate nodes under a load and give what the time after the warm-up had."""
    return _Simulation(costs, layout, load, seed).run(seconds, warm_up)
