"""Procrastinate as the engine: it wakes a node and hands it a run, once.

All else is ours (`places`). A run is a new engine job each time, since the end of an engine job compares no worker. The
engine's task ends when the node has taken over the run, so an outage cannot lose its end, and its worker can be started
anew while agents work. Nothing is tried again, and no heartbeat of the engine decides anything.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from procrastinate import App, PsycopgConnector
from procrastinate.connector import Notify
from procrastinate.exceptions import ConnectorException
from procrastinate.schema import SchemaManager
from psycopg import AsyncConnection, Error, OperationalError
from psycopg.rows import DictRow
from psycopg_pool import AsyncConnectionPool

from steadyhand.queue.procrastinate.cancelling import cancel_until_done

TASK = "steadyhand_run"

POOL_TIMEOUT_SECONDS = 2.0
"""The time that the engine's statements wait for a connection. In an outage its worker ends and is started anew."""

OPEN_SECONDS = 10.0
"""The time to open a worker's pool."""

HEARTBEAT_SECONDS = 30.0
"""The engine's own heartbeat, which decides nothing."""

STALLED_SECONDS = 86_400.0
"""Each worker that starts deletes the rows of others with an older heartbeat, also of those that work."""

POLL_SECONDS = 60.0
"""The time after which the engine looks for runs by itself. A run that is not taken is announced again much earlier."""

GRACEFUL_SECONDS = 2.0
"""The time that a worker which stops waits for runs that are being taken over."""

RESTART_SECONDS = 1.0
"""The time between the end of a worker and the next one."""

_DELETE_LEFT = "DELETE FROM procrastinate_jobs WHERE queue_name = %s AND status = 'doing'"

Connection = AsyncConnection[DictRow]
RunJob = Callable[[str, int], Awaitable[None]]
"""Called with the job id and the number of a run that the engine hands over."""
ListenTo = Callable[[str, Callable[[str | None], None]], None]
"""Calls back for each notification on a channel, and with None after a gap."""

_INSERTED = json.dumps({"type": "job_inserted", "job_id": 0})
"""The notification of the engine for a new job; nothing of it but its type is read."""


_LOGGER_OF_TASKS = "procrastinate.utils"
"""The engine's logger of the errors that end its tasks, such as an outage of the database."""


def _drop_traceback(record: logging.LogRecord) -> bool:
    """Leave out the traceback of an outage: it is expected, and the message has the error."""
    record.exc_info = record.exc_text = None
    return True


def queue_of(node: str) -> str:
    """Return the engine's queue of a node: its name is a part of a channel's, which is short."""
    return f"node_{hashlib.sha256(node.encode()).hexdigest()[:20]}"


def _channel_of(node: str) -> str:
    """Return the channel on which the engine announces a node's runs."""
    return f"procrastinate_queue_v1#{queue_of(node)}"


async def install(connection: Connection) -> None:
    """Create the engine's tables unless they are there. The caller holds a lock."""
    cursor = await connection.execute("SELECT to_regclass('procrastinate_jobs') AS it")
    row = await cursor.fetchone()
    if row is None or row["it"] is None:
        await connection.execute(SchemaManager.get_schema())


async def _commit_each(connection: AsyncConnection) -> None:
    """Let each of the engine's statements commit by itself; else each is three."""
    await connection.set_autocommit(True)


class _Connector(PsycopgConnector):
    """The engine's way to the database. It hears by the connection of this process that listens, and has none for it.

    One of its own would be looked at ten times a second.
    """

    def __init__(self, heard: asyncio.Event, **options: Any) -> None:
        super().__init__(**options)
        self._heard = heard

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        """Report each notification to the engine; it has one channel, that of its node."""
        (channel,) = channels
        while True:
            await self._heard.wait()
            self._heard.clear()
            await on_notification(channel=channel, payload=_INSERTED)


class ProcrastinateEngine:
    """The engine's side of a node. Its statements on a `connection` are a part of the caller's transaction."""

    def __init__(
        self, url: str, node: str, run_job: RunJob, *, concurrency: int, listen_to: ListenTo
    ) -> None:
        self._url = url
        self._listen_to = listen_to
        self._heard = asyncio.Event()
        self._node = node
        self._concurrency = concurrency
        self._restart = asyncio.Event()
        self._log = structlog.get_logger("steadyhand.queue")
        self._run_job = run_job
        logging.getLogger(_LOGGER_OF_TASKS).addFilter(_drop_traceback)
        self._app = self._create_app()
        """Never opened: it creates jobs on the connections of others."""

    def _create_app(self) -> App:
        app = App(connector=_Connector(self._heard, conninfo=self._url))

        @app.task(name=TASK)
        async def run(job_id: str, run: int) -> None:
            await self._run_job(job_id, run)

        return app

    async def enqueue(self, connection: Connection, node: str, job_id: str, run: int) -> int:
        """Enqueue a run for a node and return the engine's id of it.

        An error of the database is raised as that of any other statement of the transaction, which its caller handles.
        """
        task = self._app.configure_task(TASK, queue=queue_of(node), connection=connection)
        try:
            return await task.defer_async(job_id=job_id, run=run)
        except ConnectorException as error:
            if isinstance(error.__cause__, Error):
                raise error.__cause__ from None
            raise

    async def withdraw(self, connection: Connection, engine_job: int) -> None:
        """Remove a run that no node has taken; one that is taken is left alone."""
        await connection.execute("SELECT procrastinate_cancel_job_v1(%s, false, true)", (engine_job,))

    async def nudge(self, connection: Connection, node: str) -> None:
        """Let a node look for runs again: its engine may not have listened yet when they were enqueued."""
        await connection.execute("SELECT pg_notify(%s, %s)", (_channel_of(node), _INSERTED))

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Run a worker until the end of the context."""
        self._listen_to(_channel_of(self._node), lambda _payload: self._heard.set())
        async with asyncio.TaskGroup() as group:
            work = group.create_task(self._work(group))
            try:
                yield
            finally:
                await cancel_until_done([work])

    async def _work(self, group: asyncio.TaskGroup) -> None:
        """Keep a worker running. Each has a pool of its own: one that has failed for a while waits before it tries."""
        while True:
            try:
                async with await AsyncConnection.connect(self._url, connect_timeout=2) as connection:
                    # No worker of this queue runs now: what it could not end in an outage is over.
                    await connection.execute(_DELETE_LEFT, (queue_of(self._node),))
                async with self._opened_pool() as pool:
                    await self._run_until_restart(pool, group)
            except (ConnectorException, OperationalError) as error:
                self._log.warning("queue.engine_failed", error=str(error.__cause__ or error))
            self._log.info("queue.engine_restarts", node=self._node)
            await asyncio.sleep(RESTART_SECONDS)

    async def _run_until_restart(self, pool: AsyncConnectionPool, group: asyncio.TaskGroup) -> None:
        self._restart.clear()
        tasks = [group.create_task(self._run_worker(pool)), group.create_task(self._restart.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_until_done(tasks)

    def restart(self) -> None:
        """Start the worker anew, after an outage: it may have failed, or waits for a connection that is gone."""
        self._restart.set()

    @asynccontextmanager
    async def _opened_pool(self) -> AsyncIterator[AsyncConnectionPool]:
        """Open a pool for a worker. The engine would not close one whose opening is cancelled."""
        pool = AsyncConnectionPool(
            self._url,
            kwargs={"prepare_threshold": None},  # PgBouncer may stand between
            min_size=1,
            max_size=3,
            timeout=POOL_TIMEOUT_SECONDS,
            configure=_commit_each,
            check=AsyncConnectionPool.check_connection,
            open=False,
        )
        try:
            await pool.open(wait=True, timeout=OPEN_SECONDS)
            yield pool
        finally:
            await pool.close(timeout=POOL_TIMEOUT_SECONDS)

    async def _run_worker(self, pool: AsyncConnectionPool) -> None:
        app = self._create_app()
        await app.open_async(pool)
        try:
            await app.run_worker_async(
                queues=[queue_of(self._node)],
                concurrency=self._concurrency,
                fetch_job_polling_interval=POLL_SECONDS,
                abort_job_polling_interval=POLL_SECONDS,
                update_heartbeat_interval=HEARTBEAT_SECONDS,
                stalled_worker_timeout=STALLED_SECONDS,
                shutdown_graceful_timeout=GRACEFUL_SECONDS,
                install_signal_handlers=False,
                delete_jobs="always",
            )
        except (ConnectorException, OperationalError) as error:
            self._log.warning("queue.engine_failed", error=str(error.__cause__ or error))
