"""A way to the hosts of a list for a command that no gateway stands behind, such as the install of a package."""

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from steadyhand.addresses import Address, HostRule
from steadyhand.events import EgressRefused, EventBody, TextDelta
from steadyhand.gateway.egress.connect_proxy import ConnectProxy, ProxyTimeouts
from steadyhand.gateway.egress.rules import EgressRules
from steadyhand.gateway.run_events import RunEvents
from steadyhand.gateway.run_sockets import serve_run_sockets
from steadyhand.ports import Emit, OnListening

_MAX_REFUSED = 8


class ListedHosts:
    """Lets a process out to the hosts of a list, whose addresses may be private; implements `ports.Egress`."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        """The first hosts that were asked for and are not on the list."""

    @asynccontextmanager
    async def open_egress(self, egress: Sequence[str], emit: Emit) -> AsyncIterator[OnListening]:
        """See `ports.Egress.open_egress`."""

        async def note(event: EventBody | TextDelta) -> None:
            if isinstance(event, EgressRefused) and len(self.refused) < _MAX_REFUSED:
                self.refused.append(event.host)
            await emit(event)

        rules = EgressRules.parse(egress).rules
        rules += tuple([each for rule in rules for each in await _address_rules(rule)])
        proxy = ConnectProxy(EgressRules(rules), RunEvents(note), _resolve, ProxyTimeouts())
        async with serve_run_sockets([proxy.serve]) as listening:
            yield listening


async def _address_rules(rule: HostRule) -> list[HostRule]:
    """Return rules for the addresses of a name: who configured it chose them, private ones as well."""
    if not isinstance(rule.host, str):
        return []
    try:
        async with asyncio.timeout(ProxyTimeouts().connect):
            addresses = await _resolve(rule.host, rule.port or 443)
    except (OSError, UnicodeError, TimeoutError):
        return []  # the client is told by the proxy
    return [HostRule(address, subdomains=False, port=rule.port) for address in addresses]


async def _resolve(name: str, port: int) -> list[Address]:
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(address[4][0])) for address in found]
