"""The state that this node tells of itself, and the nodes that its callers see."""

import os
import socket
from collections.abc import Callable
from datetime import datetime

from steadyhand import __version__
from steadyhand.config.settings import Settings
from steadyhand.ports import Queue
from steadyhand.ports.nodes import DrainedNodes, NodeFigures, NodeInfo, NodeRole, Nodes
from steadyhand.queue.local import LocalQueue
from steadyhand.queue.local_nodes import LocalNodes
from steadyhand.store.schema import NEWEST_REVISION
from steadyhand.worker import Worker


def node_info(settings: Settings, role: NodeRole = "serve") -> NodeInfo:
    """Return the part of this node's state that stays while it runs."""
    table = settings.tables.service
    return NodeInfo(
        table.node,
        role,
        __version__,
        NEWEST_REVISION,
        table.labels,
        table.concurrency,
        socket.gethostname()[:128],
    )


def read_figures(queue: Queue, worker: Worker) -> NodeFigures:
    """Return the figures of this node now; all of them are in memory."""
    warm = worker.warm_processes() or {}
    return NodeFigures(
        running=len(queue.active_jobs()),
        waiting=queue.load().suspended,
        load=read_load(),
        warm=int(warm.get("waiting", 0)),
    )


def read_load() -> float:
    """Return the machine's load of the last minute, divided by its cores; 0 where the system does not tell it."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except OSError:
        return 0.0


def create_nodes(
    info: NodeInfo,
    queue: Queue,
    drained: DrainedNodes,
    worker: Worker,
    clock: Callable[[], datetime],
) -> Nodes:
    """Return the nodes that work on the database of a queue. The worker of this one knows if it is drained."""
    nodes: Nodes
    if isinstance(queue, LocalQueue):
        nodes = LocalNodes(
            info,
            drained,
            set_drained=lambda drained: queue.set_drained(drained=drained),
            get_figures=lambda: read_figures(queue, worker),
            clock=clock,
        )
    else:
        nodes = queue.nodes  # type: ignore[attr-defined]  # the queue of many nodes, which is loaded only if it is used
    worker.watch_drained(lambda: nodes.counts().is_drained)
    return nodes
