"""The faults of a chaos run: nodes are killed or frozen and come back, the database and the object store are away."""

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from tests.chaos.deadline import Deadline

from steadyhand.testing.cluster import Cluster
from steadyhand.testing.object_server import ObjectServer
from steadyhand.testing.postgres import Postgres
from steadyhand.testing.service import Service

_FIRST_FAULTS = 20
"""The database is restarted, and the object store goes away, among so many: the later ones may not be reached."""
_TURN_SECONDS = 0.1
_RESTART_SECONDS = 60.0
_RESTART_PAUSE_SECONDS = 1.0
_NO_DATABASE = ("The database cannot be opened", "the database cannot be reached")


@dataclass(frozen=True, slots=True)
class Plan:
    """When a fault comes, and which."""

    faults: int
    pause_seconds: float
    """The time before each fault: after the end of the one before, or after its begin if they overlap."""
    freeze_seconds: float
    restarts_of_postgres: int
    same_node: bool = False
    """One node has all faults."""
    overlaps: bool = False
    """A node is hit although another one is not back yet."""
    object_outage_seconds: float = 0.0
    """How long the object store is away, once; the nodes are hit meanwhile."""
    least_hits: int = 0
    """With fewer hits of nodes the run has shown too little."""


@dataclass(frozen=True, slots=True)
class Kill:
    """The times of day between which a node was killed."""

    began: float
    ended: float


class Faults:
    """Carries out the faults of a seed."""

    def __init__(
        self,
        cluster: Cluster,
        postgres: Postgres,
        plan: Plan,
        seed: int,
        objects: ObjectServer | None = None,
    ) -> None:
        self._cluster = cluster
        self._postgres = postgres
        self._objects = objects
        self._plan = plan
        self._random = random.Random(seed)  # noqa: S311  # it has to be the same again
        self._outage_at = random.Random(-seed).randrange(1, min(plan.faults, _FIRST_FAULTS) - 1)  # noqa: S311  # the same
        self._away = {name: threading.Lock() for name in cluster.nodes}
        self.log: list[str] = []
        self.kills: list[Kill] = []

    def run(self, is_over: Callable[[], bool], deadline: Deadline) -> None:
        """Carry them out, and leave all running. `is_over` ends it early."""
        with ThreadPoolExecutor(len(self._cluster.nodes) + 2) as pool:
            running = []
            for number, (node, fault) in enumerate(self._plan_faults()):
                if is_over():
                    break
                deadline.pause(self._plan.pause_seconds)
                if number == self._outage_at and self._objects is not None:
                    running.append(pool.submit(self._take_objects_away, self._objects, deadline))
                if node is None:
                    fault("")
                elif self._plan.overlaps:
                    running.append(pool.submit(self._hit, self._enter(node), fault))
                else:
                    self._hit(self._enter(node), fault)
            for each in running:
                each.result()

    def find_missing(self) -> list[str]:
        """Return which faults of the plan did not come."""
        plan, hits = self._plan, sum(each.startswith(("kill", "freeze")) for each in self.log)
        missing = [] if hits >= plan.least_hits else [f"nodes were hit only {hits} times"]
        if plan.least_hits and self.log.count("restart of postgres") < plan.restarts_of_postgres:
            missing.append("Postgres was not restarted as often as it should be")
        if self._objects is not None and "outage of the object store" not in self.log:
            missing.append("the object store was never away")
        return missing

    def _plan_faults(self) -> Iterator[tuple[str | None, Callable[[str], None]]]:
        """Yield a node and what it meets; no node for the database."""
        names = sorted(self._cluster.nodes)
        early = min(self._plan.faults, _FIRST_FAULTS)
        restarts = set(self._random.sample(range(1, early), min(self._plan.restarts_of_postgres, early - 1)))
        same = self._random.choice(names)
        for number in range(self._plan.faults):
            if number in restarts:
                yield (
                    None,
                    partial(self._restart_postgres, self._random.choice((signal.SIGINT, signal.SIGQUIT))),
                )
                continue
            node = same if self._plan.same_node else self._random.choice(names)
            if self._random.random() < 0.5:
                away = self._random.uniform(0.0, self._plan.freeze_seconds)
                yield node, lambda name, away=away: self._kill(name, away)  # type: ignore[misc]  # bound at once
            else:
                yield node, self._freeze

    def _enter(self, node: str) -> str:
        """Return the node, or the next one if it is away; until it is left, it is not hit again."""
        names = sorted(self._cluster.nodes)
        at = names.index(node)
        while True:
            for name in (*names[at:], *names[:at]):
                if self._away[name].acquire(blocking=False):
                    return name
            time.sleep(_TURN_SECONDS)

    def _hit(self, node: str, fault: Callable[[str], None]) -> None:
        try:
            fault(node)
        finally:
            self._away[node].release()

    def _kill(self, node: str, away_seconds: float) -> None:
        self.log.append(f"kill {node}")
        service = self._cluster[node]
        began = time.time()
        service.kill()
        self.kills.append(Kill(began, time.time()))
        time.sleep(away_seconds)
        _restart(service)

    def _freeze(self, node: str) -> None:
        self.log.append(f"freeze {node}")
        process = self._cluster[node].process
        process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(self._plan.freeze_seconds)
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)

    def _restart_postgres(self, signal_number: signal.Signals, _: str) -> None:
        self.log.append("restart of postgres")
        self._postgres.restart(signal_number)

    def _take_objects_away(self, objects: ObjectServer, deadline: Deadline) -> None:
        self.log.append("outage of the object store")
        objects.stop()
        deadline.pause(self._plan.object_outage_seconds)
        objects.start()


def _restart(service: Service) -> None:
    """Start a node as a service manager does: one that finds no database ends, and is started again."""
    give_up_at = time.monotonic() + _RESTART_SECONDS
    while True:
        try:
            service.restart()
        except RuntimeError as error:
            if not any(text in str(error) for text in _NO_DATABASE) or time.monotonic() > give_up_at:
                raise
            time.sleep(_RESTART_PAUSE_SECONDS)
        else:
            return
