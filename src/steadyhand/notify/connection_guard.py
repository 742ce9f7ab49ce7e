"""Checks each connection of a process: names are resolved by the address guard, and no other address is reached.

For a process that does nothing else: an audit hook sees each connection that Python opens, and it stays for good.
"""

import asyncio
import functools
import ipaddress
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from steadyhand.addresses import Address, Target, parse_host
from steadyhand.callbacks.address_guard import AddressGuard
from steadyhand.errors import CallbackRefused

_FORBIDDEN_EVENTS = frozenset(
    {
        "socket.sendmsg",
        "socket.sendto",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.system",
        "subprocess.Popen",
    }
)
_INTERNET = (socket.AF_INET, socket.AF_INET6)


class ConnectionGuard:
    """Lets a process connect to the addresses of the names that `guard` has checked, and to none else."""

    def __init__(self, resolve: Callable[..., list[Any]] = socket.getaddrinfo) -> None:
        self._resolve = resolve
        self._guard: AddressGuard | None = None
        self._allowed: set[tuple[Address, int]] = set()
        self.refusal: str | None = None
        """The reason of the last refusal, fit for people."""

    def use(self, allow: Sequence[str], ports: Sequence[int]) -> None:
        """Check by this list from now on, and forget the addresses of before."""
        self._guard = AddressGuard(allow, self._look_up, more_ports=frozenset(ports))
        self._allowed.clear()
        self.refusal = None

    def install(self) -> None:
        """Guard the process from now on, for good."""
        socket.getaddrinfo = self._get_address_info
        sys.addaudithook(self._audit)

    async def _look_up(self, name: str, port: int) -> list[Address]:
        lookup = functools.partial(self._resolve, name, port, type=socket.SOCK_STREAM)
        return [ipaddress.ip_address(str(each[4][0])) for each in lookup()]

    def _get_address_info(
        self,
        host: Any,
        port: Any,
        family: int = 0,
        type: int = 0,  # noqa: A002  # the names of the function that it replaces
        *more: int,
        **named: int,
    ) -> list[Any]:
        proto = more[0] if more else named.get("proto", 0)
        found = []
        for address in self._check(host, port):
            if family in (0, socket.AF_INET if address.version == 4 else socket.AF_INET6):  # noqa: PLR2004  # IPv4
                self._allowed.add((address, int(port)))
                found += self._resolve(str(address), port, 0, type, proto, socket.AI_NUMERICHOST)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        return found

    def _check(self, host: Any, port: Any) -> Sequence[Address]:
        text = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host or "")
        name = parse_host(f"[{text}]" if ":" in text else text)
        if name is None or self._guard is None or not str(port).isdecimal():
            self.refusal = "has no valid host"
            raise socket.gaierror(socket.EAI_NONAME, self.refusal)
        try:
            return asyncio.run(self._guard.find_addresses(Target(name, int(port))))
        except CallbackRefused as error:
            self.refusal = error.detail
            raise socket.gaierror(socket.EAI_NONAME, error.detail) from error

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect":
            connection, address = arguments
            if connection.family not in _INTERNET or not self._is_allowed(address):
                self.refusal = self.refusal or "leads to an address that was not checked"
                raise PermissionError("The address was not checked.")
        elif event in _FORBIDDEN_EVENTS:
            raise PermissionError(f"{event} is not allowed here.")

    def _is_allowed(self, address: Any) -> bool:
        try:
            return (ipaddress.ip_address(address[0]), address[1]) in self._allowed
        except (ValueError, TypeError, IndexError):
            return False
