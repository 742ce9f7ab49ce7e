"""The queue of a service: in memory on SQLite, that of many nodes on Postgres."""

import asyncio
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from steadyhand.config.settings import Settings
from steadyhand.errors import ConfigError
from steadyhand.job import Job
from steadyhand.placement import Placement
from steadyhand.ports import KeyWaitingRuns, Queue
from steadyhand.ports.nodes import NodeFigures, NodeInfo
from steadyhand.queue.local import LocalQueue
from steadyhand.runner.process.supervisor_channel import renew_leases
from steadyhand.store import SqlStore, is_postgres_url
from steadyhand.tool_calls import ToolCallBroker

if TYPE_CHECKING:
    from steadyhand.serve.shared_state import SharedState

MAX_REATTACH_SECONDS = 6.0
"""The longest time for which a run outlives a service that shares its database: others end it 12 s after its lease."""


def shares_database(settings: Settings) -> bool:
    """Return True if other nodes may use the database of a service."""
    return is_postgres_url(settings.tables.service.database_url or "")


def require_role(settings: Settings, *, works_only: bool) -> None:
    """Raise `ConfigError` for a node that would have nothing to do."""
    has_slots = settings.tables.service.concurrency > 0
    if not has_slots and works_only:
        raise ConfigError(
            "service.concurrency is 0, and `steadyhand worker` does nothing but work: set it to 1 or more."
        )
    if not has_slots and not shares_database(settings):
        raise ConfigError(
            "service.concurrency is 0, and no other node runs the jobs of this service: set it to 1 or more, or set "
            "database_url to a database of Postgres on which other nodes work."
        )
    if works_only and not shares_database(settings):
        raise ConfigError(
            "`steadyhand worker` takes the jobs that other nodes accept: set database_url to their database of "
            "Postgres. On one machine `steadyhand serve` does both."
        )


def create_queue(
    settings: Settings,
    store: SqlStore,
    shared: "SharedState | None",
    *,
    can_start: Callable[[Job], bool],
    running_limit: Callable[[str], int | None],
    queued_limit: Callable[[str], int | None],
    directory_of: Callable[[Job], str | None],
    placement_of: Callable[[Job], Placement],
    info: NodeInfo,
    get_figures: Callable[[], NodeFigures],
    on_accepted: Callable[[Job], None],
    on_lost: Callable[[str, int], Awaitable[None]],
) -> Queue:
    """Return the queue of a service. `on_lost` ends the run of a job whose node died.

    With a `shared` state it is that of many nodes, which hear of each other by it. `queued_limit` is for that one;
    alone, the check of a request is exact.
    """
    table = settings.tables.service
    url = table.database_url or ""
    if shared is None:
        return LocalQueue(
            store,
            capacity=table.concurrency,
            max_queued=table.max_queued,
            max_suspended=table.waiting_runs,
            paused=table.paused,
            can_start=lambda job: placement_of(job).fits(info.name, info.labels) and can_start(job),
            running_limit=running_limit,
            directory_of=directory_of,
            on_accepted=on_accepted,
        )
    from steadyhand.queue.procrastinate.cluster_queue import ProcrastinateQueue  # noqa: PLC0415  # it needs an extra

    return ProcrastinateQueue(
        url,
        store,
        node=table.node,
        capacity=table.concurrency,
        max_queued=table.max_queued,
        listen_to=shared.listener.on,
        max_suspended=table.waiting_runs,
        paused=table.paused,
        can_start=can_start,
        running_limit=running_limit,
        queued_limit=queued_limit,
        directory_of=directory_of,
        placement_of=placement_of,
        info=info,
        get_figures=get_figures,
        on_accepted=on_accepted,
        on_lost=on_lost,
    )


def count_waiting_runs(queue: Queue, tool_calls: ToolCallBroker) -> Callable[[str], KeyWaitingRuns]:
    """Return a function that counts the runs of a key which wait for results of its tools, on all nodes.

    The time until the first of them goes on is known for those of this node alone.
    """

    def count(key_id: str) -> KeyWaitingRuns:
        here, elsewhere = tool_calls.waiting_runs(key_id), queue.suspended_elsewhere(key_id)
        return here._replace(runs=here.runs + elsewhere)

    return count


def is_cut_off(queue: Queue) -> bool:
    """Return True while other nodes may take this one for dead."""
    return not isinstance(queue, LocalQueue) and bool(getattr(queue, "is_cut_off", False))


@asynccontextmanager
async def queue_opened(queue: Queue) -> AsyncIterator[None]:
    """Join the queue of many nodes for the length of the block, if it is one.

    Then an agent lives only while this process says so: if it is frozen, others run its jobs.
    """
    if isinstance(queue, LocalQueue):
        yield
        return
    from steadyhand.queue.procrastinate.cluster_queue import ProcrastinateQueue  # noqa: PLC0415  # it is loaded by now

    assert isinstance(queue, ProcrastinateQueue)  # noqa: S101  # `create_queue` makes no other
    failure: Exception | None = None
    async with queue.opened(), asyncio.TaskGroup() as group:
        renewal = group.create_task(_renew_agent_leases(), name="agent leases")
        try:
            yield
        except Exception as error:  # noqa: BLE001  # raised below, as it is: the group would wrap it
            failure = error
        finally:
            renewal.cancel()
    if failure is not None:
        raise failure


async def _renew_agent_leases() -> None:
    lease = importlib.import_module("steadyhand.queue.procrastinate.lease")
    while True:
        renew_leases(lease.AGENT_SECONDS)
        await asyncio.sleep(lease.WRITE_SECONDS)
