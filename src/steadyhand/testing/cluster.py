"""Several services on one database of Postgres, each a process of its own with a data directory of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

from steadyhand.store.postgres.listener import Listener
from steadyhand.testing.service import STOP_SECONDS, MakeService, Service, wait_until

_LEASE = "steadyhand.queue.procrastinate.lease"
SHORT_LEASE: Mapping[str, float] = {
    f"{_LEASE}.WRITE_SECONDS": 0.5,
    f"{_LEASE}.CUT_OFF_SECONDS": 3.0,
    f"{_LEASE}.AGENT_SECONDS": 3.5,
    f"{_LEASE}.DEAD_SECONDS": 5.0,
}
"""The times of a node's lease for tests that wait for its death: a busy machine must not cause one."""


@contextlib.asynccontextmanager
async def listening(url: str) -> AsyncIterator[Listener]:
    """Run a listener on a database for the queues of a test."""
    listener = Listener(url)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(listener.run(), name="listener")
        try:
            yield listener
        finally:
            task.cancel()


class Cluster:
    """Nodes by their names. `serving` accept jobs and run none, `working` run them; `both` do both.

    `options` are those of `Service`, for each node.
    """

    def __init__(
        self,
        make_service: MakeService,
        url: str,
        *,
        serving: tuple[str, ...] = ("front",),
        working: tuple[str, ...] = ("worker",),
        both: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.url = url
        self.nodes: dict[str, Service] = {}
        options.setdefault("constants", SHORT_LEASE)
        for name in (*serving, *working, *both):
            node_env = {
                "STEADYHAND_DATABASE_URL": url,
                "STEADYHAND_SERVICE__NODE": name,
                **(env or {}),
                **({"STEADYHAND_CONCURRENCY": "0"} if name in serving else {}),
            }
            command = "worker" if name in working else "serve"
            self.nodes[name] = make_service(env=node_env, command=command, **options)

    def __enter__(self) -> Self:
        try:
            for node in self.nodes.values():
                node.start()
        except BaseException:  # also Ctrl-C: those that run must end
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            for text in self.log_tails():
                error.add_note(text)
        self.close()

    def __getitem__(self, name: str) -> Service:
        """Return a node."""
        return self.nodes[name]

    @property
    def front(self) -> Service:
        """The first node, which serves."""
        return next(iter(self.nodes.values()))

    def log_tails(self) -> list[str]:
        """Return for each node whether it runs, and the end of its log."""
        return [f"node {name}: {node.describe_end()}" for name, node in self.nodes.items()]

    def close(self) -> None:
        """End all nodes."""
        for node in self.nodes.values():
            node.close()

    def wait_until_runs(self, job_id: str, node: str, seconds: float = 60.0) -> dict[str, Any]:
        """Return a job once its agent runs on a node."""

        def look() -> dict[str, Any] | None:
            job = self.front.get_job(job_id)
            if job["state"] != "running" or job["runs"][-1]["node"] != node:
                return None
            events = self.front.events(job_id)
            is_running = any(
                event["type"] == "phase"
                and event["data"]["phase"] == "running"
                and event["run"] == job["runs"][-1]["number"]
                for event in events
            )
            return job if is_running else None

        return wait_until(look, seconds)


class SplitService(Service):
    """A service that leaves its jobs to a node that only works, which starts and ends with it."""

    worker: Service

    @classmethod
    def of(cls, front: Service, worker: Service) -> Self:
        """Return a service of two that were not started: one serves, and the other works with its user ids."""
        both = cls.__new__(cls)
        both.__dict__.update(front.__dict__)
        both.worker = worker
        worker.uid_base = both.uid_base
        return both

    def start(self) -> Self:
        """Start both."""
        self.worker.start()
        return super().start()

    def terminate(self, seconds: float = STOP_SECONDS) -> int:
        """Stop both; return the exit code of the node that serves, unless that of the other is worse."""
        codes = self.worker.terminate(seconds), super().terminate(seconds)
        return max(codes, key=abs)

    def kill(self) -> None:
        """Kill both."""
        self.worker.kill()
        super().kill()

    def close(self) -> None:
        """End both."""
        super().close()
        self.worker.close()

    @property
    def log(self) -> str:
        """The logs of both, one after the other."""
        return super().log + self.worker.log

    def live_agent_pids(self) -> list[int]:
        """Return the pids of the agents and their leftovers."""
        worker = self.worker.process
        own = {worker.pid} if worker.poll() is None else set()
        return sorted({*super().live_agent_pids(), *self.worker.live_agent_pids()} - own - {self.process.pid})
