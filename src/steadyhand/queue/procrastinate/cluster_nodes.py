"""`ports.Nodes` for the nodes of one Postgres."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial

from psycopg import Error

from steadyhand.clock import utc_now
from steadyhand.errors import NotFound, StoreUnavailable
from steadyhand.ports.nodes import Drained, NodeCounts, NodeFigures, NodeInfo, NodeState
from steadyhand.queue.procrastinate.node_rows import drain, read_nodes, undrain
from steadyhand.queue.procrastinate.places import PlacesTransaction
from steadyhand.queue.procrastinate.turns import connect

_SECONDS = 5.0
"""The time for a read or a change. In an outage of the database the queue's transactions wait without a bound."""
FRESH_SECONDS = 1.0
"""The time for which a list is returned again without a question to the database."""

SubmitTurn = Callable[[Callable[[PlacesTransaction], Awaitable[bool]]], Awaitable[bool]]


class ClusterNodes:
    """`ports.Nodes`. `submit` runs an operation in a transaction of the queue."""

    def __init__(
        self,
        url: str,
        submit: SubmitTurn,
        get_counts: Callable[[], NodeCounts] = NodeCounts,
        *,
        clock: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._submit = submit
        self._get_counts = get_counts
        self._clock = clock
        self._monotonic = monotonic
        self._lock = asyncio.Lock()
        self._found: Sequence[NodeState] = ()
        self._read_at: float | None = None

    def counts(self) -> NodeCounts:
        """Return how many nodes there are, as the last heartbeat found them."""
        return self._get_counts()

    async def load(self) -> None:
        """Return: the database knows which nodes are drained."""

    async def list_nodes(self) -> Sequence[NodeState]:
        """Return the nodes by name, as they were at most a second ago."""
        async with self._lock:
            now = self._monotonic()
            if self._read_at is None or now - self._read_at > FRESH_SECONDS:
                self._found = await self._read()
                self._read_at = now
            return self._found

    async def _read(self) -> Sequence[NodeState]:
        try:
            async with asyncio.timeout(_SECONDS):
                async with await connect(self._url, autocommit=True) as connection:
                    return await read_nodes(connection)
        except (Error, TimeoutError) as error:
            raise StoreUnavailable("The nodes cannot be read: the database cannot be reached.") from error

    async def drain(self, name: str, *, until_restart: bool, by: str) -> NodeState:
        """Let a node take no new runs, and return it."""
        drained = Drained(self._clock(), until_restart)
        return await self._change(name, partial(drain, name, drained, by))

    async def undrain(self, name: str) -> NodeState:
        """Let a node take new runs again, and return it."""
        return await self._change(name, partial(undrain, name))

    async def _change(
        self, name: str, operation: Callable[[PlacesTransaction], Awaitable[bool]]
    ) -> NodeState:
        is_given_up = False

        async def change(turn: PlacesTransaction) -> bool:
            return not is_given_up and await operation(turn)

        try:
            async with asyncio.timeout(_SECONDS):
                is_known = await self._submit(change)
        except TimeoutError as error:
            is_given_up = True
            raise StoreUnavailable("The node cannot be changed: the database cannot be reached.") from error
        if not is_known:
            raise NotFound("There is no node of this name.", code="node_not_found")
        self._read_at = None
        found = next((each for each in await self.list_nodes() if each.info.name == name), None)
        return found or NodeState(
            NodeInfo(name), NodeFigures(), None, None
        )  # it was away, and now it is forgotten
