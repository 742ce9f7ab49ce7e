"""Nodes that call each other over a database of Postgres, in one process."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from steadyhand.ports import CallBody
from steadyhand.queue.procrastinate.cancelling import cancel_until_done
from steadyhand.store.postgres.listener import Listener
from steadyhand.store.postgres.postgres_calls import PostgresNodeCalls


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
        listener = Listener(self.url)
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

    async def start_ready(self, name: str) -> PostgresNodeCalls:
        """Start a node, and return once it calls and is called."""
        calls = self.start(name)

        async def answer(body: CallBody) -> CallBody:
            return body

        calls.serve("ready", answer)
        await calls.call(name, "ready", {}, 60)
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
