"""The bounds of connections, and the table of the open ones."""

import resource
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from socket import socket
from typing import TYPE_CHECKING

from steadyhand.api.transport.body import READ_SECONDS

if TYPE_CHECKING:
    from steadyhand.serve.http_server import ServiceProtocol

SPARE_CONNECTIONS = 32
"""Connections above the bounds: on them the probes are answered and every other request is refused."""
_MAX_CONNECTIONS = 2_048


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The bounds of connections: in all and per address, and in seconds and bytes for the parts of each."""

    total: int = 1_024
    per_address: int = 512
    head_seconds: float = 10.0
    head_bytes: int = 64 * 1024
    body_seconds: float = READ_SECONDS + 5
    drain_seconds: float = 10.0
    drain_bytes: int = 64 * 1024 * 1024
    write_seconds: float = 120.0
    """The longest time in which a client may read nothing of a response."""


def connection_limits(total: int | None, per_address: int | None) -> ConnectionLimits:
    """Return the limits; by default half of the files that may be open, and half of that per address."""
    if total is None:
        total = max(16, min(_MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
    return ConnectionLimits(total=total, per_address=per_address or max(8, total // 2))


class ConnectionTable:
    """The open connections, the oldest first."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.pass_on: Callable[[socket], None] | None = None
        """Called with each connection that has no request: another service answers what comes next. None keeps it."""
        self._connections: dict[ServiceProtocol, str] = {}
        self._count_by_address: Counter[str] = Counter()

    def add(self, connection: "ServiceProtocol", address: str) -> None:
        """Add a connection. At a bound, close the oldest one without a request, or restrict the new one to probes."""
        limits = self.limits
        if self._count_by_address[address] >= limits.per_address:
            has_room = self._close_oldest(address)
        elif len(self._connections) >= limits.total:
            has_room = self._close_oldest(None)
        else:
            has_room = True
        if not has_room:
            connection.is_refused = True
            refused = [each for each in self._connections if each.is_refused]
            if len(refused) >= SPARE_CONNECTIONS:
                (refused[0] if refused[0].is_evictable else connection).abort()
                if connection.is_aborted:
                    return
        self._connections[connection] = address
        self._count_by_address[address] += 1

    def discard(self, connection: "ServiceProtocol") -> None:
        """Remove a closed connection."""
        address = self._connections.pop(connection, None)
        if address is None:
            return
        self._count_by_address[address] -= 1
        if not self._count_by_address[address]:
            del self._count_by_address[address]

    def _close_oldest(self, address: str | None) -> bool:
        """Close the oldest connection without a request, if possible one that never had any; return False if none."""
        oldest = None
        for each, of in self._connections.items():
            if not each.is_evictable or address not in (None, of):
                continue
            if not each.had_request:
                oldest = each
                break
            oldest = oldest or each
        if oldest is None:
            return False
        oldest.abort()
        self.discard(oldest)
        return True

    def close_expired(self, now: float) -> None:
        """Close every connection that is past a deadline."""
        for connection in list(self._connections):
            connection.close_if_expired(now)
