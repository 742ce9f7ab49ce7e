"""Several nodes on one database: a store, a feed and a listener each, as the service wires them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from steadyhand.clock import utc_now
from steadyhand.control import Caller
from steadyhand.control.deps import ControlDeps
from steadyhand.control.queries import JobQueries
from steadyhand.event_log import EventFeed, EventLog
from steadyhand.events import EventDraft
from steadyhand.redact import NO_REDACTION
from steadyhand.serve.shared_state import SharedState
from steadyhand.store import SqlStore
from steadyhand.store.postgres.connections import create_postgres_engine, parse_postgres_url
from steadyhand.store.postgres.listener import Listener
from steadyhand.store.readers import CONNECTIONS

CALLER = Caller("k_one", frozenset({"read"}))


SECONDS = 90
WAIT_SECONDS = 30


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario within its bound."""

    async def bounded() -> None:
        async with asyncio.timeout(SECONDS):
            await scenario()

    asyncio.run(bounded())


async def until(is_done: Callable[[], bool]) -> None:
    """Wait for what another task, or another node, does."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not is_done():  # noqa: ASYNC110  # it is another's doing, and bounded
            await asyncio.sleep(0.01)


@dataclass
class _Deps:
    """The part of `ControlDeps` that reads and follows."""

    store: SqlStore
    feed: EventFeed


@dataclass
class Node:
    """One node; its task of the shared state runs."""

    store: SqlStore
    shared: SharedState
    feed: EventFeed = field(default_factory=EventFeed)

    def __post_init__(self) -> None:
        self.log = EventLog(self.store, self.feed, NO_REDACTION)
        self.queries = JobQueries(cast("ControlDeps", _Deps(self.store, self.feed)))
        self.shared.follow_events(self.store, self.feed)

    async def append(self, job_id: str, *drafts: EventDraft) -> None:
        """Store events and publish them, as the worker does."""
        await self.log.append(job_id, drafts)

    async def follow(self, job_id: str, until: int) -> list[int]:
        """Follow a job and return the numbers of its events in the order in which they came."""
        numbers: list[int] = []
        items: Any = self.queries.follow_job(CALLER, job_id)
        async for batch in items:
            numbers += [item.seq for item in batch if hasattr(item, "seq")]
            if numbers and numbers[-1] >= until:
                await items.aclose()
                break
        return numbers


def open_node_store(url: str) -> SqlStore:
    """Return a store on a database that has the schema."""
    parameters = parse_postgres_url(url)
    write = create_postgres_engine(parameters, purpose="writer", connections=1)
    read = create_postgres_engine(parameters, purpose="reader", connections=CONNECTIONS, read_only=True)
    return SqlStore(write, read, clock=utc_now)


@asynccontextmanager
async def running_nodes(
    url: str,
    count: int = 2,
    *,
    listen_url: str | None = None,
    prepare: Callable[[Node], None] = lambda _node: None,
    **options: float,
) -> AsyncIterator[list[Node]]:
    """Run so many nodes on a database; each listens when this begins. `prepare` adds what else a node has."""
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        for _ in range(count):
            store = open_node_store(url)
            stack.push_async_callback(store.close)
            nodes.append(Node(store, SharedState(Listener(listen_url or url, **options))))
            prepare(nodes[-1])
        tasks = [asyncio.create_task(node.shared.run()) for node in nodes]
        try:
            await until(lambda: all(node.shared.listener.is_connected for node in nodes))
            yield nodes
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
