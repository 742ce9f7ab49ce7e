"""The addresses that callbacks may reach: public ones on the usual ports, and those that the operator allows.

A name is resolved and each of its addresses is checked, when it is set and again for each connection. A connection goes
to an address that was checked, so a name that resolves to another address on the next lookup gains nothing.
"""

import asyncio
import functools
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from steadyhand.addresses import (
    DEFAULT_PORTS,
    Address,
    HostRule,
    Target,
    is_public,
    parse_host_rule,
    parse_target,
    without_ipv4_mapping,
)
from steadyhand.errors import CallbackRefused

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""Returns the addresses of a name; raises `OSError` if there are none."""

MAX_URL_LENGTH = 2_048
MAX_ADDRESSES = 16
"""The addresses of one name; a name with more is refused, since each of them is checked."""
RESOLVE_SECONDS = 5.0
_RESOLVER_THREADS = 2
_DEFAULT_PORT_BY_SCHEME = {"http": 80, "https": 443}
_URL = re.compile(r"(https?)://([^/?#@\\]+)((?:/[^?#\\]*)?(?:\?[^#\\]*)?)", re.IGNORECASE)
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")

_LISTED_BY_ADDRESS_ONLY = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "100.100.100.200/32",  # metadata of clouds
        "168.63.129.16/32",
        "169.254.0.0/16",
        "192.0.0.192/32",
        "224.0.0.0/3",
        "::/128",
        "fd00:ec2::/32",
        "fd20:ce::/32",
        "fe80::/10",
        "ff00::/8",
    )
)
"""Addresses that a listed name must not have: only an entry that is the address itself allows one of them."""


@dataclass(frozen=True, slots=True)
class CallbackUrl:
    """The parts of the URL of a callback. `path` has the query; both may hold secrets of the receiver."""

    scheme: str
    target: Target
    path: str

    @property
    def host_header(self) -> str:
        """The value of `Host`."""
        host = f"[{self.target.host}]" if isinstance(self.target.host, ipaddress.IPv6Address) else self.host
        return (
            host if self.target.port == _DEFAULT_PORT_BY_SCHEME[self.scheme] else f"{host}:{self.target.port}"
        )

    @property
    def host(self) -> str:
        """The name or the address, without brackets."""
        return str(self.target.host)

    @property
    def origin(self) -> str:
        """Scheme, host and port: the part of the URL that is no secret."""
        return f"{self.scheme}://{self.host_header}"


def parse_callback_url(url: str) -> CallbackUrl:
    """Parse the URL of a callback. Raise `CallbackRefused` if it is none, or if it has a user or a fragment."""
    if len(url) > MAX_URL_LENGTH:
        raise CallbackRefused(f"is longer than {MAX_URL_LENGTH} characters")
    if _VISIBLE.fullmatch(url) is None:
        raise CallbackRefused("has a space, a control or a character beyond ASCII; encode it")
    match = _URL.fullmatch(url)
    if match is None or _PERCENT.search(match[3]) is not None:
        raise CallbackRefused("is not an http or https URL without a user and a fragment")
    scheme = match[1].lower()
    target = parse_target(match[2], _DEFAULT_PORT_BY_SCHEME[scheme])
    if target is None:
        raise CallbackRefused("has no valid host and port")
    return CallbackUrl(scheme, target, match[3] if match[3].startswith("/") else f"/{match[3]}")


class AddressGuard:
    """Checks the URLs of callbacks. `allow` lists private receivers, as in [callbacks] allow."""

    def __init__(
        self,
        allow: Iterable[str] = (),
        resolve: Resolve | None = None,
        more_ports: frozenset[int] = frozenset(),
    ) -> None:
        """Read the list. Raise `ConfigError` for an entry that names no host. `more_ports` need no entry either."""
        self._ports = DEFAULT_PORTS | more_ports
        self._rules: tuple[HostRule, ...] = tuple(parse_host_rule(each, "callbacks.allow") for each in allow)
        self._resolver_pool: ThreadPoolExecutor | None = None
        self._resolve = resolve or self._resolve_name

    async def check(self, url: str) -> None:
        """Return if a callback may be set to this URL now. Raise `CallbackRefused`; its text names no address."""
        await self.find_addresses(parse_callback_url(url).target)

    async def find_addresses(self, target: Target) -> Sequence[Address]:
        """Return the addresses to connect to. Raise `CallbackRefused` if the target or any of its addresses may not be.

        One address that is not allowed refuses the name: nobody can tell which of them a receiver would use.
        """
        is_listed = self._lists(target)
        if not is_listed and target.port not in self._ports:
            *others, last = map(str, sorted(self._ports))
            raise CallbackRefused(
                f"is on port {target.port}; without an entry in callbacks.allow it has to be "
                f"{', '.join(others)} or {last}"
            )
        if not isinstance(target.host, str):
            addresses: Sequence[Address] = [without_ipv4_mapping(target.host)]
        else:
            addresses = [without_ipv4_mapping(each) for each in await self._look_up(target.host, target.port)]
        for address in addresses:
            if not self._allows(address, target, is_listed=is_listed):
                raise CallbackRefused("leads to an address that is not public; callbacks.allow can list it")
        return addresses

    def close(self) -> None:
        """End the threads that resolve names; a lookup that hangs is left behind."""
        if self._resolver_pool is not None:
            self._resolver_pool.shutdown(wait=False, cancel_futures=True)

    def _lists(self, target: Target) -> bool:
        return any(rule.matches(target) for rule in self._rules)

    def _allows(self, address: Address, target: Target, *, is_listed: bool) -> bool:
        if is_public(address) or self._lists(Target(address, target.port)):
            return True
        return is_listed and not any(
            address.version == network.version and address in network for network in _LISTED_BY_ADDRESS_ONLY
        )

    async def _look_up(self, name: str, port: int) -> Sequence[Address]:
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                addresses = list(dict.fromkeys(await self._resolve(name, port)))
        except (OSError, UnicodeError, ValueError, TimeoutError) as error:
            raise CallbackRefused("has a host whose name cannot be resolved") from error
        if not addresses:
            raise CallbackRefused("has a host whose name cannot be resolved")
        if len(addresses) > MAX_ADDRESSES:
            raise CallbackRefused(f"has a host with more than {MAX_ADDRESSES} addresses")
        return addresses

    async def _resolve_name(self, name: str, port: int) -> list[Address]:
        if self._resolver_pool is None:
            self._resolver_pool = ThreadPoolExecutor(
                _RESOLVER_THREADS, thread_name_prefix="resolve callbacks"
            )
        lookup = functools.partial(socket.getaddrinfo, name, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._resolver_pool, lookup)
        return [ipaddress.ip_address(str(each[4][0])) for each in found]
