"""Hosts and their addresses: names, addresses in any spelling, public addresses, and rules of a list. Pure.

A name is matched in its form on the wire: lower case, without a last dot, in ASCII. A look-alike is another name. A
number in disguise (`127.1`, `2130706433`, `0x7f.1`) is an address and never a name.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from steadyhand.errors import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

DEFAULT_PORTS = frozenset({80, 443})

_MAX_NAME_LENGTH = 253
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
_PORT = re.compile(r"[0-9]{1,5}")
_IPV4_BYTES = 4
_BYTE_VALUES = 256

_NON_PUBLIC_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by carriers; a cloud's metadata among it
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's metadata, at an address that looks public
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
        "2001::/23",  # Teredo and others that carry another address inside
        "2001:db8::/32",
        "2002::/16",  # 6to4: any IPv4 address in disguise
        "3fff::/20",
    )
)
_PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")
"""All else of IPv6 is local, multicast, or IPv4 in disguise (NAT64 among it)."""


def is_public(address: Address) -> bool:
    """Return True if an address belongs to the public Internet."""
    address = without_ipv4_mapping(address)
    if isinstance(address, ipaddress.IPv6Address) and (address not in _PUBLIC_IPV6 or address.scope_id):
        return False
    return not any(
        address.version == network.version and address in network for network in _NON_PUBLIC_NETWORKS
    )


def without_ipv4_mapping(address: Address) -> Address:
    """Return the IPv4 address that is written as an IPv6 one (`::ffff:127.0.0.1`), else the address."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a request: a name or an address, and a port."""

    host: str | Address
    port: int

    def __str__(self) -> str:
        """Return the form of a URL; the usual ports are left out."""
        host = f"[{self.host}]" if isinstance(self.host, ipaddress.IPv6Address) else str(self.host)
        return host if self.port in DEFAULT_PORTS else f"{host}:{self.port}"


def parse_target(authority: str, default_port: int | None) -> Target | None:
    """Parse the `host:port` of a request; return None if it is none. Without a port it has the default one, if any."""
    parts = _split_host_port(authority)
    if parts is None:
        return None
    host, port_text = parts
    port = _parse_port(port_text) if port_text is not None else default_port
    parsed = parse_host(host)
    return None if parsed is None or port is None else Target(parsed, port)


def _split_host_port(authority: str) -> tuple[str, str | None] | None:
    """Part host and port; the brackets of an IPv6 address stay."""
    if authority.startswith("["):
        host, bracket, rest = authority.partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return None
        return host + bracket, rest[1:] if rest else None
    host, colon, port = authority.partition(":")
    return host, port if colon else None


def _parse_port(text: str) -> int | None:
    if _PORT.fullmatch(text) is None:
        return None
    port = int(text)
    return port if 0 < port < 1 << 16 else None


def parse_host(text: str) -> str | Address | None:
    """Parse a host: an address in any spelling, or a name in its form on the wire; return None if it is neither."""
    if text.startswith("["):
        return _parse_ipv6(text[1:-1]) if text.endswith("]") else None
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]) is not None:
        return _parse_ipv4(labels)
    if len(name) > _MAX_NAME_LENGTH or any(_LABEL.fullmatch(label) is None for label in labels):
        return None
    return name


def _parse_ipv6(text: str) -> Address | None:
    if "%" in text:
        return None
    try:
        return without_ipv4_mapping(ipaddress.IPv6Address(text))
    except ValueError:
        return None


def _parse_ipv4(labels: Sequence[str]) -> Address | None:
    """Read an IPv4 address as `inet_aton` does: one to four parts, each decimal, octal or hexadecimal."""
    if len(labels) > _IPV4_BYTES or any(_NUMBER.fullmatch(label) is None for label in labels):
        return None
    try:
        parts = [_parse_number(label) for label in labels]
    except ValueError:
        return None
    *leading, last = parts
    if any(part >= _BYTE_VALUES for part in leading) or last >= _BYTE_VALUES ** (
        _IPV4_BYTES + 1 - len(parts)
    ):
        return None
    value = last
    for position, part in enumerate(leading):
        value += part << 8 * (_IPV4_BYTES - 1 - position)
    return ipaddress.IPv4Address(value)


def _parse_number(label: str) -> int:
    if label.startswith("0x"):
        return int(label[2:] or "0", 16)
    return int(label, 8 if len(label) > 1 and label.startswith("0") else 10)


def url_origin(url: str) -> str:
    """Return the scheme, the host and the port of an http URL: the rest may hold a secret."""
    scheme, separator, rest = url.partition("://")
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0].rpartition("@")[2]
    return f"{scheme}://{authority}" if separator else ""


@dataclass(frozen=True, slots=True)
class HostRule:
    """One entry of a list: a name (or all names below it), or an address; `port` None means the usual ports."""

    host: str | Address
    subdomains: bool
    port: int | None

    def matches(self, target: Target) -> bool:
        """Return True if this entry allows the target of a request."""
        if not self._matches_port(target.port):
            return False
        if self.subdomains:
            return isinstance(target.host, str) and target.host.endswith(f".{self.host}")
        return self.host == target.host

    def _matches_port(self, port: int) -> bool:
        return port in DEFAULT_PORTS if self.port is None else port == self.port


def parse_host_rule(entry: str, setting: str) -> HostRule:
    """Parse an entry of the list of a setting. Raise `ConfigError` for an entry that names no host."""
    invalid = ConfigError(
        f"{setting}: {entry!r} names no host; write example.org, *.example.org, 10.0.0.5, [fd00::5] or one of them "
        "with :PORT."
    )
    subdomains = entry.startswith("*.")
    parts = _split_host_port(entry.removeprefix("*."))
    if parts is None:
        raise invalid
    import idna  # noqa: PLC0415  # only a list of hosts needs it

    host, port_text = parts
    port = None if port_text is None else _parse_port(port_text)
    try:
        ascii_host = host if host.isascii() else idna.encode(host, uts46=True).decode("ascii")
    except idna.IDNAError as error:
        raise invalid from error
    parsed = parse_host(ascii_host)
    if (
        parsed is None
        or (port_text is not None and port is None)
        or (subdomains and not isinstance(parsed, str))
    ):
        raise invalid
    return HostRule(parsed, subdomains, port)


def redact_url(url: str | None) -> str | None:
    """Return a repository's URL without the parts that may hold a secret: user, password, query, fragment."""
    if url is None or "://" not in url:
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
