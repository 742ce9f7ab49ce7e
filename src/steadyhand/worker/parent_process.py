"""Processes that were kept for the next turn of a conversation, on nodes that did not get that turn.

The turn goes to the node of such a process, if that has a free slot. If it starts elsewhere, it resumes the session
from its files, and the process ends: its memory is for others.
"""

import asyncio
from contextlib import suppress

import structlog

from steadyhand.errors import SteadyhandError
from steadyhand.job import Job
from steadyhand.ports import CallBody
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.warm_pool import WarmPool

_END_CALL = "live.end"
_CALL_SECONDS = 5.0
_MAX_DUE = 100
"""The processes that wait for their end; of others the node ends them after `live_seconds`."""


class ParentProcesses:
    """Ends the processes of conversations that go on here, on the nodes that have them."""

    def __init__(self, deps: WorkerDeps, pool: WarmPool) -> None:
        self._deps = deps
        self._pool = pool
        self._due: asyncio.Queue[tuple[str, str, int]] = asyncio.Queue(_MAX_DUE)
        self._log = structlog.get_logger("steadyhand.warm")
        deps.node_calls.serve(_END_CALL, self._serve_end)

    def continued_here(self, parent: Job) -> None:
        """Let the process that another node may have kept after a job end soon."""
        node = parent.runs[-1].node if parent.runs else None
        is_kept = self._deps.catalog.agent(parent.agent).live_seconds > 0
        if node is not None and is_kept and self._deps.node_calls.is_elsewhere(node):
            with suppress(asyncio.QueueFull):
                self._due.put_nowait((node, parent.id, parent.run))

    async def run(self) -> None:
        """Send the calls for those that are due, until cancelled."""
        while True:
            node, job_id, run = await self._due.get()
            try:
                await self._deps.node_calls.call(node, _END_CALL, {"job": job_id, "run": run}, _CALL_SECONDS)
            except SteadyhandError as error:  # that node is dead, and its processes with it
                self._log.debug("live.not_ended", node=node, job=job_id, reason=error.detail)

    async def _serve_end(self, body: CallBody) -> CallBody:
        return {"ended": self._pool.end_live(body["job"], body["run"])}
