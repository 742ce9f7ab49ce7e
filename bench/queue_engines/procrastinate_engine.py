"""Procrastinate with the settings that an agent's run needs, and the reaper that it leaves to its user."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
import psycopg_pool
from procrastinate import App, JobContext, PsycopgConnector
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Status

from bench.queue_engines.engine import Settings, Work

_TASK = "work"
_SHORT_TIMEOUT = 2.0


class _Client:
    def __init__(self, app: App, url: str) -> None:
        self._app = app
        self._url = url

    async def enqueue(self, seconds: float) -> int:
        return await self._app.configure_task(_TASK).defer_async(seconds=seconds)

    async def enqueue_in_transaction(self, *, commits: bool) -> int:
        async with await psycopg.AsyncConnection.connect(self._url) as connection:
            job_id = await self._app.configure_task(_TASK, connection=connection).defer_async(seconds=0)
            await (connection.commit() if commits else connection.rollback())
        return job_id

    async def cancel(self, job_id: int) -> None:
        await self._app.job_manager.cancel_job_by_id_async(job_id, abort=True)


class ProcrastinateEngine:
    """`Engine`."""

    packages = ("procrastinate", "psycopg")
    states_query = """
        SELECT id, CASE status WHEN 'todo' THEN 'waiting' WHEN 'doing' THEN 'running' WHEN 'succeeded' THEN 'done'
            WHEN 'failed' THEN 'failed' ELSE 'cancelled' END
        FROM procrastinate_jobs"""

    async def install(self, url: str) -> None:
        app = App(connector=PsycopgConnector(conninfo=url, min_size=1, max_size=2))
        async with app.open_async():
            await app.schema_manager.apply_schema_async()

    @asynccontextmanager
    async def connect(self, url: str) -> AsyncIterator[_Client]:
        app = App(connector=PsycopgConnector(conninfo=url, min_size=1, max_size=2, timeout=_SHORT_TIMEOUT))
        async with app.open_async():
            yield _Client(app, url)

    async def run_worker(self, url: str, settings: Settings, work: Work) -> None:
        connector = PsycopgConnector(
            conninfo=url,
            min_size=1,
            max_size=4,
            timeout=settings.pool_timeout,
            configure=_commit_each,
        )
        app = App(connector=connector)

        @app.task(name=_TASK, pass_context=True)
        async def run(context: JobContext, seconds: float) -> None:
            assert context.job.id is not None
            await work(context.job.id, seconds)

        async with app.open_async():
            reaping = asyncio.create_task(_reap(app, settings))
            try:
                await app.run_worker_async(
                    concurrency=settings.concurrency,
                    update_heartbeat_interval=settings.heartbeat,
                    stalled_worker_timeout=settings.dead_after,
                    fetch_job_polling_interval=settings.idle_poll,
                    shutdown_graceful_timeout=settings.graceful,
                )
            finally:
                reaping.cancel()
                with suppress(asyncio.CancelledError):
                    await reaping


async def _commit_each(connection: psycopg.AsyncConnection) -> None:
    """Let each statement commit by itself; else each is three."""
    await connection.set_autocommit(True)


async def _reap(app: App, settings: Settings) -> None:
    """Fail the jobs of dead workers. Nothing else ever ends them.

    A statement waits in the pool while the database is away and then succeeds, so an error is not the only sign: a
    round that comes late counts as one, too. It is late also in a process that was frozen.
    """
    last_round = time.monotonic()
    holds_until = 0.0
    while True:
        await asyncio.sleep(settings.look_every)
        try:
            dead: list[Any] = list(
                await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=settings.dead_after)
            )
        except (ConnectorException, psycopg_pool.PoolTimeout):
            holds_until = time.monotonic() + settings.dead_after
            continue
        now = time.monotonic()
        if now - last_round > settings.dead_after / 2:
            holds_until = now + settings.dead_after
        last_round = now
        if settings.hold_off and now < holds_until:
            continue
        for job in dead:
            with suppress(
                ConnectorException, psycopg_pool.PoolTimeout
            ):  # it ended meanwhile, or the next round
                await app.job_manager.finish_job_by_id_async(job.id, Status.FAILED, delete_job=False)


ENGINE = ProcrastinateEngine()
