"""A node in a process of its own, to be killed: it claims one job, prints that, and holds it."""

import asyncio
import sys
from collections.abc import Callable, Sequence

import sqlalchemy
import structlog

from steadyhand.events import EventDraft
from steadyhand.job import Job
from steadyhand.ports import AddResult, IdempotencyKey
from steadyhand.ports.schedules import TickClaim
from steadyhand.queue.procrastinate.cluster_queue import ProcrastinateQueue
from steadyhand.queue.procrastinate.keeper import LeaseTiming
from steadyhand.testing.cluster import listening
from steadyhand.testing.contracts.samples import make_job


class NoStore:
    """The store of a node that only takes jobs: it makes up what is in them."""

    def add(
        self,
        job: Job,
        drafts: Sequence[EventDraft],
        idempotency: IdempotencyKey | None = None,
        *,
        claim: TickClaim | None = None,
    ) -> asyncio.Future[AddResult]:
        raise NotImplementedError

    def store_with_jobs(self, insert: Callable[[sqlalchemy.Connection, Sequence[Job]], None]) -> None:
        pass

    def check_changes(self, check: Callable[[bool, sqlalchemy.Connection, Job, Job], None]) -> None:
        pass

    async def get(self, job_id: str) -> Job | None:
        return make_job(id=job_id)

    async def get_replayed(self, api_key_id: str, idempotency: IdempotencyKey) -> Job | None:
        raise NotImplementedError


structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


async def main(url: str, node: str) -> None:
    timing = LeaseTiming(write=0.3, cut_off=2.5, dead=4.0)
    async with listening(url) as listener:
        queue = ProcrastinateQueue(
            url, NoStore(), node=node, capacity=1, max_queued=10, listen_to=listener.on, timing=timing
        )
        await hold_one(queue)


async def hold_one(queue: ProcrastinateQueue) -> None:
    async with queue.opened():
        claim = await queue.claim()
        print(claim.job.id, flush=True)  # noqa: T201  # the test reads it
        await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
