"""The port for calls between nodes: a request to one node by its name, and its answer.

A call is for the node that has something in its memory, such as the process of a run. What it changes for good is
stored by its handler, so a caller whose answer got lost looks there.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from steadyhand.errors import NodeGone, SteadyhandError

MAX_CALL_BYTES = 96 * 1024 * 1024
"""The largest body of a call as JSON: that of the largest request, each of its characters escaped."""
MAX_OPEN_CALLS = 256
"""The calls of one node that wait for their answers; further ones are refused."""

CallBody = Mapping[str, Any]
"""A JSON object."""
CallHandler = Callable[[CallBody], Awaitable[CallBody]]
"""Answers calls of one kind, each within a bound of its own: a node need not cut it off when its caller gives up.

A `SteadyhandError` that it raises reaches the caller, without the names of fields.
"""


class NodeCalls(Protocol):
    """Calls from this node, and the handlers of calls to it."""

    @property
    def node(self) -> str:
        """The name of this node."""
        ...

    def is_elsewhere(self, node: str | None) -> bool:
        """Return True if this is the name of another node, which `call` may reach."""
        ...

    def serve(self, kind: str, handler: CallHandler) -> None:
        """Answer calls of a kind by this handler, at most once each."""
        ...

    async def call(self, node: str, kind: str, body: CallBody, timeout_seconds: float) -> CallBody:
        """Call a node and return its answer.

        Raise the error of the handler, and `NodeGone` if the node is dead or does not answer in time. Raise
        `RetryLater` if too many calls are open, and `InvalidRequest` (`body_too_large`) if the body is too large.
        """
        ...

    async def list_others(self) -> Sequence[str]:
        """Return the names of the other nodes that are alive."""
        ...


class LocalNodeCalls:
    """The calls of a node that is alone: each is one to itself, a call of a function. See `NodeCalls`."""

    def __init__(self, node: str = "local") -> None:
        self.node = node
        self._handlers: dict[str, CallHandler] = {}

    def is_elsewhere(self, node: str | None) -> bool:  # noqa: ARG002  # of the port
        """Return False: a run that a node of another name has stored was one of this service before its last start."""
        return False

    def serve(self, kind: str, handler: CallHandler) -> None:
        """See `NodeCalls.serve`."""
        self._handlers[kind] = handler

    async def call(self, node: str, kind: str, body: CallBody, timeout_seconds: float) -> CallBody:
        """See `NodeCalls.call`."""
        if node != self.node:
            raise NodeGone(f"There is no node {node[:64]!r}.")
        handler = self._handlers.get(kind)
        if handler is None:
            raise unknown_kind(kind)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await handler(body)
        except TimeoutError as error:
            raise NodeGone(
                f"The node {node!r} did not answer in {timeout_seconds:g} s.", may_be_done=True
            ) from error

    async def list_others(self) -> Sequence[str]:
        """Return none."""
        return ()


def unknown_kind(kind: str) -> SteadyhandError:
    """Return the error for a kind of calls that a node has no handler of: it runs another version."""
    return SteadyhandError(f"The node does not know calls of the kind {kind[:64]!r}.")
