"""A run that may outlive its service, and one that did.

A run is held while its supervisor keeps it when the service dies. It is orphaned from then until a service takes it up.
"""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from steadyhand.job import ToolOutput


@dataclass(frozen=True, slots=True)
class HoldSpec:
    """The order to hold a run. `folder` is new; it is the service's alone and holds the run's record and output.

    `seconds` is how long the run waits for the next service. `listener` is the descriptor of the socket on which the
    gateway listens for the run. `facts` are kept in the record, for the service that takes the run up.
    """

    folder: Path
    job_id: str
    run: int
    seconds: float
    listener: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(slots=True)
class OrphanedRun:
    """A held run whose service has died. If the agent has ended since, `exit` says how, and the rest is None.

    The descriptors belong to whoever has the run; `close` closes those that are left.
    """

    folder: Path
    job_id: str
    run: int
    facts: Mapping[str, Any]
    pid: int
    """The supervisor's pid, and its start time in clock ticks since boot."""
    started: int
    exit: Mapping[str, Any] | None = None
    connection: socket.socket | None = None
    """The channel to the supervisor."""
    pipes: tuple[int, int, int] | None = None
    """The service's ends of the agent's stdin, stdout and stderr."""
    input_open: bool = False
    containment: str = ""
    groups: tuple[str, ...] = ()
    gateway_listener: socket.socket | None = None
    """The socket on which the gateway listened for the run."""
    sandbox_listeners: tuple[int, ...] = ()
    """The sockets that listen in the network of the run's sandbox."""

    @property
    def sandboxed(self) -> bool:
        """True if the run is in a sandbox."""
        return self.facts.get("sandboxed") is True

    @property
    def place(self) -> int:
        """The slot of its checkout: its own, or the number of the process that had waited for it."""
        return int(self.facts.get("place", self.facts.get("slot", 0)))

    def take_pipes(self) -> tuple[int, int, int] | None:
        """Return the pipes, which the caller closes."""
        pipes, self.pipes = self.pipes, None
        return pipes

    def take_connection(self) -> socket.socket | None:
        """Return the channel, which the caller closes."""
        connection, self.connection = self.connection, None
        return connection

    def take_sandbox_listeners(self) -> Sequence[int]:
        """Return the sockets of the sandbox, which the caller closes."""
        listeners, self.sandbox_listeners = self.sandbox_listeners, ()
        return listeners

    def take_gateway_listener(self) -> socket.socket | None:
        """Return the gateway's socket, which the caller closes."""
        listener, self.gateway_listener = self.gateway_listener, None
        return listener

    def close(self) -> None:
        """Close the descriptors that nobody has taken. The supervisor then waits for another service."""
        for each in (self.take_connection(), self.take_gateway_listener()):
            if each is not None:
                each.close()
        for descriptor in (*(self.take_pipes() or ()), *self.take_sandbox_listeners()):
            os.close(descriptor)


class HeldRuns(Protocol):
    """The held runs of a data directory."""

    @property
    def seconds(self) -> float:
        """Return how long a run waits for the next service."""
        ...

    def idle_spec(self, listener: int | None) -> HoldSpec:
        """Return the order for a process that waits for its run; `WarmAgent.run` then holds that."""
        ...

    def folder_of(self, job_id: str, run: int) -> Path:
        """Return the folder for the record and the output of a run."""
        ...

    async def end(self, orphan: OrphanedRun) -> None:
        """End an orphaned run, which nobody has taken up, and remove its files."""
        ...

    async def save_results(self, job_id: str, run: int, results: Mapping[str, ToolOutput]) -> None:
        """Keep the results of the client's tools for a later service, until the agent has them; nothing if not held."""
        ...

    async def read_results(self, job_id: str, run: int) -> Mapping[str, ToolOutput]:
        """Return the results that were kept, by the ids of their calls."""
        ...

    async def remove(self, job_id: str, run: int) -> None:
        """Remove the files of a run whose end is stored."""
        ...
