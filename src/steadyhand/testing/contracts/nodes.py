"""Tests of the nodes of every queue."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from steadyhand.errors import NotFound
from steadyhand.ports.nodes import NodeCounts, NodeInfo, Nodes, NodeState
from steadyhand.testing.contracts.samples import async_test, expect_error

INFO = NodeInfo("one", "serve", "1.2.3", "0011", ("gpu", "zone=a"), 3, "machine-1")


async def only(nodes: Nodes) -> NodeState:
    """Return the only node."""
    (found,) = await nodes.list_nodes()
    return found


class NodesContract:
    """Tests of nodes, which `open` opens: one node, whose state is `INFO`, over a database that stays."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Nodes]:
        """Open the nodes as a start of the node `INFO` does, once it has written a heartbeat."""
        raise NotImplementedError
        yield

    @async_test
    async def test_a_node_tells_of_itself(self) -> None:
        async with self.open() as nodes:
            found = await only(nodes)
            assert found.info == INFO
            assert found.takes_runs
            assert found.drained is None
            assert found.heartbeat_seconds is not None
            assert found.heartbeat_seconds < 10
            assert found.started_at is not None
            assert nodes.counts() == NodeCounts(alive=1)

    @async_test
    async def test_a_drained_node_stays_drained_over_its_restart_until_it_is_undrained(self) -> None:
        async with self.open() as nodes:
            drained = await nodes.drain("one", until_restart=False, by="k_admin")
            assert drained.drained is not None
            assert not drained.takes_runs
            again = await nodes.drain("one", until_restart=False, by="k_other")
            assert again.drained == drained.drained, "a repeat keeps its time"
        async with self.open() as nodes:
            assert (await only(nodes)).drained == drained.drained
            assert nodes.counts() == NodeCounts(0, 0, 1, is_drained=True)
            assert (await nodes.undrain("one")).takes_runs
            assert (await nodes.undrain("one")).drained is None, "a repeat changes nothing"
        async with self.open() as nodes:
            assert (await only(nodes)).takes_runs

    @async_test
    async def test_a_node_that_is_drained_until_its_restart_takes_runs_after_it(self) -> None:
        async with self.open() as nodes:
            drained = (await nodes.drain("one", until_restart=True, by="k_admin")).drained
            assert drained is not None
            assert drained.until_restart
        async with self.open() as nodes:
            assert (await only(nodes)).takes_runs
            lasting = (await nodes.drain("one", until_restart=True, by="k_admin")).drained
            assert lasting is not None
            kept = (await nodes.drain("one", until_restart=False, by="k_admin")).drained
            assert kept is not None
            assert (kept.since, kept.until_restart) == (lasting.since, False)
        async with self.open() as nodes:
            assert (await only(nodes)).drained == kept

    @async_test
    async def test_a_name_that_no_node_has_is_not_found(self) -> None:
        async with self.open() as nodes:
            for attempt in (nodes.drain("two", until_restart=False, by="k_admin"), nodes.undrain("two")):
                assert (await expect_error(NotFound, attempt)).code == "node_not_found"
            assert (await only(nodes)).takes_runs
