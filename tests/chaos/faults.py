"""The faults of a chaos run: nodes are killed or frozen and come back, the database is restarted."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from steadyhand.testing.cluster import Cluster
from steadyhand.testing.postgres import Postgres


@dataclass(frozen=True, slots=True)
class Plan:
    """When a fault comes, and which."""

    faults: int
    pause_seconds: float
    freeze_seconds: float
    restarts_of_postgres: int
    same_node: bool = False
    """One node has all faults."""


class Faults:
    """Carries out the faults of a seed, one after the other."""

    def __init__(self, cluster: Cluster, postgres: Postgres, plan: Plan, seed: int) -> None:
        self._cluster = cluster
        self._postgres = postgres
        self._plan = plan
        self._random = random.Random(seed)  # noqa: S311  # it has to be the same again
        self.log: list[str] = []

    def run(self, is_over: Callable[[], bool]) -> None:
        """Carry them out, and leave all nodes running. `is_over` ends it early."""
        for name, fault in self._plan_faults():
            if is_over():
                return
            time.sleep(self._plan.pause_seconds)
            self.log.append(name)
            fault()

    def _plan_faults(self) -> Iterator[tuple[str, Callable[[], None]]]:
        names = sorted(self._cluster.nodes)
        restarts = set(
            self._random.sample(
                range(1, self._plan.faults), min(self._plan.restarts_of_postgres, self._plan.faults - 1)
            )
        )
        same = self._random.choice(names)
        for number in range(self._plan.faults):
            if number in restarts:
                yield "restart of postgres", self._restart_postgres
                continue
            node = same if self._plan.same_node else self._random.choice(names)
            if self._random.random() < 0.5:
                yield f"kill {node}", lambda node=node: self._kill(node)  # type: ignore[misc]  # bound at once
            else:
                yield f"freeze {node}", lambda node=node: self._freeze(node)  # type: ignore[misc]  # bound at once

    def _kill(self, node: str) -> None:
        service = self._cluster[node]
        service.kill()
        time.sleep(self._random.uniform(0.0, self._plan.freeze_seconds))
        service.restart()

    def _freeze(self, node: str) -> None:
        process = self._cluster[node].process
        process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(self._plan.freeze_seconds)
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)

    def _restart_postgres(self) -> None:
        self._postgres.restart(self._random.choice((signal.SIGINT, signal.SIGQUIT)))
