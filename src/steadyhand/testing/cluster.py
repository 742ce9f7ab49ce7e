"""Several services on one database of Postgres, each a process of its own with a data directory of its own."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from steadyhand.testing.service import MakeService, Service, wait_until

_LEASE = "steadyhand.queue.procrastinate.lease"
SHORT_LEASE: Mapping[str, float] = {
    f"{_LEASE}.WRITE_SECONDS": 0.5,
    f"{_LEASE}.CUT_OFF_SECONDS": 3.0,
    f"{_LEASE}.AGENT_SECONDS": 3.5,
    f"{_LEASE}.DEAD_SECONDS": 5.0,
}
"""The times of a node's lease for tests that wait for its death: a busy machine must not cause one."""


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
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, name: str) -> Service:
        """Return a node."""
        return self.nodes[name]

    @property
    def front(self) -> Service:
        """The first node, which serves."""
        return next(iter(self.nodes.values()))

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
