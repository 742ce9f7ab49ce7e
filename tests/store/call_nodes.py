"""Nodes that call each other over a database of Postgres, in one process."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from psycopg import AsyncConnection, OperationalError, sql

from steadyhand.queue.procrastinate.cancelling import cancel_until_done
from steadyhand.store.postgres.postgres_calls import PostgresNodeCalls


class CallListener:
    """Listens on one connection, and again on another one after an outage."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._callbacks: dict[str, Callable[[str | None], None]] = {}

    def on(self, channel: str, callback: Callable[[str | None], None]) -> None:
        self._callbacks[channel] = callback

    async def run(self) -> None:
        while True:
            with suppress(OperationalError):
                async with await AsyncConnection.connect(self._url, autocommit=True) as connection:
                    for channel, callback in self._callbacks.items():
                        await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                        callback(None)
                    async for notification in connection.notifies():
                        self._callbacks[notification.channel](notification.payload)
            await asyncio.sleep(0.1)


@dataclass(slots=True)
class CallNodes:
    """The nodes of a database, and the names of those that are alive."""

    url: str
    group: asyncio.TaskGroup
    alive: set[str] = field(default_factory=set)
    tasks: dict[str, list[asyncio.Task[None]]] = field(default_factory=dict)

    async def list_alive(self) -> Sequence[str]:
        return sorted(self.alive)

    def start(self, name: str, *, seconds: float = 10.0) -> PostgresNodeCalls:
        """Start a node; without notifications it looks for calls each `seconds`."""
        listener = CallListener(self.url)
        calls = PostgresNodeCalls(
            self.url,
            name,
            listener,
            list_alive=self.list_alive,
            poll_seconds=seconds,
            recheck_seconds=0.3,
            dead_seconds=0.3,
        )
        self.alive.add(name)
        self.tasks[name] = [self.group.create_task(each.run(), name=name) for each in (listener, calls)]
        return calls

    async def stop(self, name: str) -> None:
        """Stop a node."""
        await cancel_until_done(self.tasks.pop(name))
        self.alive.discard(name)


@asynccontextmanager
async def call_nodes(url: str) -> AsyncIterator[CallNodes]:
    """Yield a cluster without nodes; those that are started in the block end with it."""
    async with asyncio.TaskGroup() as group:
        nodes = CallNodes(url, group)
        try:
            yield nodes
        finally:
            for name in list(nodes.tasks):
                await nodes.stop(name)
