"""Ports of loopback for servers that are started by a test, and maybe again, in processes of their own."""

import socket
from types import TracebackType
from typing import Self


class ReservedPort:
    """A port that nobody else gets before it is closed, also while its server is away.

    A socket is bound to it and never listens. The server has to set `SO_REUSEADDR`, as most do: it then listens beside
    that socket, while the kernel does not choose the port for anybody.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def is_served(self) -> bool:
        """Return True if a server listens."""
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.number)) == 0

    def close(self) -> None:
        """Leave the port to others, once its server has ended for good."""
        self._socket.close()
