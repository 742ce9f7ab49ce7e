"""`ports.Nodes` for one node: its state is in memory, and only that it is drained is stored."""

from collections.abc import Callable, Sequence
from datetime import datetime

from steadyhand.errors import NotFound
from steadyhand.ports.nodes import Drained, DrainedNodes, NodeCounts, NodeFigures, NodeInfo, NodeState


class LocalNodes:
    """`ports.Nodes`. `set_drained` lets the queue claim jobs, or none; `get_figures` returns the node's state now."""

    def __init__(
        self,
        info: NodeInfo,
        stored: DrainedNodes,
        *,
        set_drained: Callable[[bool], None],
        get_figures: Callable[[], NodeFigures],
        clock: Callable[[], datetime],
    ) -> None:
        self._info = info
        self._stored = stored
        self._set_drained = set_drained
        self._get_figures = get_figures
        self._clock = clock
        self._started_at = clock()
        self._drained: Drained | None = None

    def counts(self) -> NodeCounts:
        """Return this node alone."""
        is_drained = self._drained is not None
        return NodeCounts(int(not is_drained), 0, int(is_drained), is_drained)

    async def load(self) -> None:
        """Go on as the last process of this node: one that was drained claims nothing. Call it before jobs start."""
        self._note(await self._stored.begin(self._info.name))

    def _note(self, drained: Drained | None) -> NodeState:
        if (drained is None) != (self._drained is None):
            self._set_drained(drained is not None)
        self._drained = drained
        return self._state()

    def _state(self) -> NodeState:
        return NodeState(self._info, self._get_figures(), self._drained, 0.0, self._started_at)

    async def list_nodes(self) -> Sequence[NodeState]:
        """Return this node."""
        return [self._state()]

    async def drain(self, name: str, *, until_restart: bool, by: str) -> NodeState:
        """Let the node claim no jobs, and return it."""
        self._check(name)
        drained = Drained(self._clock(), until_restart)
        return self._note(await self._stored.write_drained(name, drained, by))

    async def undrain(self, name: str) -> NodeState:
        """Let the node claim jobs again, and return it."""
        self._check(name)
        return self._note(await self._stored.write_drained(name, None, ""))

    def _check(self, name: str) -> None:
        if name != self._info.name:
            raise NotFound("There is no node of this name.", code="node_not_found")
