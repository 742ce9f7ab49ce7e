"""Rules for the hosts that an agent may reach. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from steadyhand.addresses import (
    Address,
    HostRule,
    Target,
    is_public,
    parse_host_rule,
    without_ipv4_mapping,
)

HOST_NETWORK = "host"
"""The entry that shares the host's network: nothing goes through the gateway's proxy then."""


@dataclass(frozen=True, slots=True)
class EgressRules:
    """The hosts that one agent may reach."""

    rules: tuple[HostRule, ...] = ()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> "EgressRules":
        """Read a list of an agent's profile. Raises `ConfigError` for an entry that names no host."""
        return cls(tuple(parse_host_rule(entry, "egress") for entry in entries if entry != HOST_NETWORK))

    def allows(self, target: Target) -> bool:
        """Return True if the list has this host."""
        return any(rule.matches(target) for rule in self.rules)

    def near_miss(self, target: Target) -> str:
        """Return a sentence, with a space before it, if the list has only the names below this one; else no text."""
        for rule in self.rules:
            if rule.subdomains and rule.host == target.host:
                return (
                    f" The entry *.{rule.host} covers the names below {rule.host}; list {rule.host} as well."
                )
        return ""

    def allows_address(self, address: Address, port: int) -> bool:
        """Return True if a name may resolve to this address: it is public, or the list has the address itself."""
        return is_public(address) or self.allows(Target(without_ipv4_mapping(address), port))
