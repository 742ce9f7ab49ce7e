"""The pipes between the service and an agent."""

import os
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class AgentPipes:
    """The three pipes between the service and the agent, as (service's end, agent's end)."""

    stdin: tuple[int, int]
    stdout: tuple[int, int]
    stderr: tuple[int, int]
    open: set[int] = field(default_factory=set)

    @classmethod
    def make(cls) -> "AgentPipes":
        agent_stdin, stdin = os.pipe()
        stdout, agent_stdout = os.pipe()
        stderr, agent_stderr = os.pipe()
        descriptors = {agent_stdin, stdin, stdout, agent_stdout, stderr, agent_stderr}
        return cls((stdin, agent_stdin), (stdout, agent_stdout), (stderr, agent_stderr), descriptors)

    @classmethod
    def of(cls, service_ends: tuple[int, int, int]) -> "AgentPipes":
        """Return the pipes of an agent that runs already: there are no ends of its own."""
        stdin, stdout, stderr = service_ends
        return cls((stdin, -1), (stdout, -1), (stderr, -1), set(service_ends))

    def open_file(self, descriptor: int) -> Any:
        """Return a descriptor as a file. The caller closes it."""
        self.release(descriptor)
        return os.fdopen(descriptor, "wb" if descriptor == self.stdin[0] else "rb", buffering=0)

    @property
    def agent_ends(self) -> tuple[int, int, int]:
        """Return the agent's stdin, stdout and stderr."""
        return self.stdin[1], self.stdout[1], self.stderr[1]

    @property
    def service_ends(self) -> tuple[int, int, int]:
        """Return the service's ends of stdin, stdout and stderr."""
        return self.stdin[0], self.stdout[0], self.stderr[0]

    def release(self, descriptor: int) -> int:
        """Return a descriptor, which the caller closes."""
        self.open.discard(descriptor)
        return descriptor

    def close_agent_ends(self) -> None:
        for descriptor in self.agent_ends:
            self._close(descriptor)

    def close(self) -> None:
        for descriptor in tuple(self.open):
            self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        if descriptor in self.open:
            self.open.discard(descriptor)
            os.close(descriptor)
