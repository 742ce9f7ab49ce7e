"""Which hosts a list means: names, addresses in any spelling, and what is public."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand.addresses import is_public, parse_target
from steadyhand.errors import ConfigError
from steadyhand.gateway.egress.rules import EgressRules

LIST = EgressRules.parse(
    ["example.org", "*.pages.example", "Bücher.example", "odd.example:8443", "10.1.2.3", "[fd00::5]:22"]
)


def allowed(authority: str, port: int = 443) -> bool:
    target = parse_target(authority, port)
    return target is not None and LIST.allows(target)


@pytest.mark.parametrize(
    "authority",
    [
        "example.org",
        "EXAMPLE.org",
        "example.org.",
        "example.org:443",
        "example.org:80",
        "a.pages.example",
        "a.b.pages.example",
        "xn--bcher-kva.example",
        "odd.example:8443",
        "10.1.2.3",
        "167838211",  # the same address as one number: listed is listed
        "[fd00::5]:22",
    ],
)
def test_what_is_listed_may_be_reached(authority: str) -> None:
    assert allowed(authority)


@pytest.mark.parametrize(
    "authority",
    [
        "",
        ".",
        "org",
        "example.org.evil.test",
        "notexample.org",
        "www.example.org",
        "example.org..",
        ".example.org",
        "pages.example",
        "evilpages.example",
        "bucher.example",
        "xn--bcher-kvb.example",
        "xn--exmple-cua.org",
        "exаmple.org",  # noqa: RUF001  # the look-alike is the point
        "ｅxample.org",  # noqa: RUF001
        "example。org",
        "example.org:8443",
        "odd.example",
        "odd.example:443",
        "example.org:0",
        "example.org:65536",
        "example.org:99999999999",
        "example.org:",
        "example.org:+443",
        "example.org:٤٤٣",
        "user@example.org",
        "example.org@evil.test",
        "example.org%2eevil.test",
        "example.org%00.evil.test",
        "example.org\\.evil.test",
        "example.org evil.test",
        "example.org\n",
        "-example.org",
        "a" * 64 + ".pages.example",
        "a." * 125 + "pages.example",
        "10.1.2.4",
        "[::ffff:10.1.2.4]",
        "[fd00::5]",
        "[fd00::5%eth0]:22",
        "[fd00::5",
        "fd00::5:22",
        "[example.org]",
    ],
)
def test_what_only_looks_like_it_may_not(authority: str) -> None:
    assert not allowed(authority)


@given(st.integers(0, 2**32 - 1))
def test_every_spelling_of_an_address_is_that_address(number: int) -> None:
    address = ipaddress.IPv4Address(number)
    a, b, c, d = address.packed
    spellings = [
        f"{a}.{b}.{c}.{d}",
        f"{number}",
        f"{number:#x}",
        f"0{number:o}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a:#x}.{b}.{(c << 8) + d}",
        f"0{a:o}.{b:#x}.{c}.{d}.",
        f"[::ffff:{a}.{b}.{c}.{d}]",
        f"[::FFFF:{a:x}{b:02x}:{c:x}{d:02x}]",
    ]
    for spelling in spellings:
        target = parse_target(spelling, 80)
        assert target is not None, spelling
        assert target.host == address, spelling


@given(st.text(max_size=40))
def test_no_text_makes_the_reading_of_a_host_fail(text: str) -> None:
    target = parse_target(text, 80)
    assert target is None or str(target).isascii()


@pytest.mark.parametrize(
    "number", ["1.2.3.4.5", "256.1.1.1", "1.2.3.256", "4294967296", "0x100000000", "08.1.1.1", "1..1"]
)
def test_what_is_no_address_is_no_name_either(number: str) -> None:
    assert parse_target(number, 80) is None


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "0.0.0.1", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "192.88.99.1", "198.18.0.1",
        "203.0.113.9", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001::1",
        "2001:db8::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "100::1", "3fff::1", "5f00::1",
    ],
)  # fmt: skip
def test_an_address_of_this_network_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "93.184.216.34", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "2a00::1", "::ffff:1.1.1.1"],
)
def test_an_address_of_the_open_internet_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@given(st.integers(0, 2**32 - 1))
def test_what_python_calls_private_is_never_public(number: int) -> None:
    address = ipaddress.IPv4Address(number)
    assert address.is_global or not is_public(address)


@pytest.mark.parametrize(
    "entry", ["", "*", "*.", "https://example.org", "example.org/path", "a b", "*.10.0.0.1", "x:y", "*x.org"]
)
def test_an_entry_that_names_no_host_stops_the_start(entry: str) -> None:
    with pytest.raises(ConfigError, match="names no host"):
        EgressRules.parse([entry])


def test_the_hosts_own_network_is_no_host() -> None:
    assert EgressRules.parse(["host"]).rules == ()


def test_an_entry_for_the_names_below_a_host_says_that_it_does_not_cover_the_host() -> None:
    rules = EgressRules.parse(["*.example.org", "example.net"])
    (itself, below, other) = (
        parse_target(name, 443) for name in ("example.org", "a.example.org", "example.net")
    )
    assert itself is not None
    assert below is not None
    assert other is not None
    assert not rules.allows(itself)
    assert rules.allows(below)
    assert "list example.org as well" in rules.near_miss(itself)
    assert rules.near_miss(other) == ""
