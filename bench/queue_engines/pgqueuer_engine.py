"""PgQueuer with its asyncpg pool, which wakes at once; its psycopg driver holds its one connection for up to 1 s."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
from pgqueuer import AsyncpgDriver, PgQueuer, Queries
from pgqueuer.models import Context, Job
from pgqueuer.types import JobId

from bench.queue_engines.engine import Settings, Work

_ENTRYPOINT = "work"


class _Client:
    def __init__(self, pool: asyncpg.Pool, url: str) -> None:
        self._pool = pool
        self._url = url

    async def enqueue(self, seconds: float) -> int:
        (job_id,) = await Queries.from_asyncpg_pool(self._pool).enqueue(
            _ENTRYPOINT, json.dumps(seconds).encode()
        )
        return int(job_id)

    async def enqueue_in_transaction(self, *, commits: bool) -> int:
        connection = await asyncpg.connect(self._url)
        try:
            transaction = connection.transaction()
            await transaction.start()
            (job_id,) = await Queries(AsyncpgDriver(connection)).enqueue(_ENTRYPOINT, b"0")
            await (transaction.commit() if commits else transaction.rollback())
        finally:
            await connection.close()
        return int(job_id)

    async def cancel(self, job_id: int) -> None:
        await Queries.from_asyncpg_pool(self._pool).mark_job_as_cancelled([JobId(job_id)])


class PgQueuerEngine:
    """`Engine`."""

    packages = ("pgqueuer", "asyncpg")
    states_query = """
        SELECT id, CASE status WHEN 'queued' THEN 'waiting' WHEN 'picked' THEN 'running' ELSE 'failed' END
        FROM pgqueuer
        UNION ALL
        SELECT job_id, CASE status WHEN 'successful' THEN 'done' WHEN 'exception' THEN 'failed' ELSE 'cancelled' END
        FROM pgqueuer_log WHERE status IN ('successful', 'exception', 'canceled', 'deleted')"""

    async def install(self, url: str) -> None:
        connection = await asyncpg.connect(url)
        try:
            await Queries.from_asyncpg_connection(connection).install()
        finally:
            await connection.close()

    @asynccontextmanager
    async def connect(self, url: str) -> AsyncIterator[_Client]:
        async with asyncpg.create_pool(url, min_size=1, max_size=2, timeout=2) as pool:
            yield _Client(pool, url)

    async def run_worker(self, url: str, settings: Settings, work: Work) -> None:
        async with asyncpg.create_pool(url, min_size=2, max_size=4) as pool:
            engine = PgQueuer.from_asyncpg_pool(pool)

            @engine.entrypoint(_ENTRYPOINT)
            async def run(job: Job, context: Context) -> None:
                with context.cancellation:
                    await work(int(job.id), json.loads(job.payload or b"0"))

            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, engine.shutdown.set)
            await engine.run(
                batch_size=1,
                max_concurrent_tasks=settings.concurrency,
                dequeue_timeout=timedelta(seconds=settings.idle_poll),
                heartbeat_timeout=timedelta(seconds=settings.dead_after),
            )


ENGINE = PgQueuerEngine()
