"""The calls between the nodes of a service: of a function on one node, by Postgres on many."""

from typing import TYPE_CHECKING

from steadyhand.config.settings import Settings
from steadyhand.ports import LocalNodeCalls, NodeCalls

if TYPE_CHECKING:
    from steadyhand.serve.shared_state import SharedState


def create_node_calls(settings: Settings, shared: "SharedState | None") -> NodeCalls:
    """Return the calls of this node; those over a database run with the tasks of `shared`."""
    node, url = settings.tables.service.node, settings.tables.service.database_url
    if shared is None or url is None:
        return LocalNodeCalls(node)
    from steadyhand.store.postgres.postgres_calls import PostgresNodeCalls  # noqa: PLC0415  # its driver is an extra

    calls = PostgresNodeCalls(url, node, shared.listener)
    shared.tasks.append(("node calls", calls.run))
    return calls
