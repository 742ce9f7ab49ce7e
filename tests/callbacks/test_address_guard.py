"""The guard of callbacks: which URLs may be set, and which addresses are connected to."""

import asyncio
import ipaddress
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand.addresses import Address
from steadyhand.callbacks.address_guard import AddressGuard, parse_callback_url
from steadyhand.errors import CallbackRefused, ConfigError

NAMES: Mapping[str, Sequence[str]] = {
    "public.example": ["93.184.216.34", "2606:4700::1111"],
    "private.example": ["10.1.2.3"],
    "loopback.example": ["127.0.0.1"],
    "loopback6.example": ["::1"],
    "mapped.example": ["::ffff:10.0.0.1"],
    "mixed.example": ["93.184.216.34", "192.168.0.1"],
    "mixed6.example": ["2606:4700::1111", "fe80::1"],
    "metadata.example": ["169.254.169.254"],
    "metadata.google.internal": ["169.254.169.254"],
    "cloud.example": ["100.100.100.200"],
    "wire.example": ["168.63.129.16"],
    "nat64.example": ["64:ff9b::a9fe:a9fe"],
    "sixtofour.example": ["2002:a9fe:a9fe::1"],
    "teredo.example": ["2001:0:4136:e378:8000:63bf:3fff:fdd2"],
    "zero.example": ["0.0.0.0"],  # noqa: S104  # refused
    "broadcast.example": ["255.255.255.255"],
    "multicast.example": ["224.0.0.251"],
    "site.example": ["fec0::1"],
    "unique.example": ["fd12:3456::1"],
    "ec2.example": ["fd00:ec2::254"],
    "gce.example": ["fd20:ce::254"],
    "many.example": [f"93.184.216.{each}" for each in range(40)],
    "nothing.example": [],
    "localhost": ["127.0.0.1", "::1"],
    "localhost.localdomain": ["127.0.0.1"],
    "ip6-localhost": ["::1"],
    "service": ["172.17.0.2"],
    "n8n": ["172.18.0.5"],
    "rebound": ["169.254.169.254"],
}


async def resolve(name: str, _port: int) -> list[Address]:
    if name not in NAMES:
        raise OSError("no such name")
    return [ipaddress.ip_address(each) for each in NAMES[name]]


def check(url: str, *allow: str) -> None:
    asyncio.run(AddressGuard(allow, resolve).check(url))


_HOSTS = [
    # loopback, in every spelling
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0x7f.0x0.0x0.0x1", "017700000001",
    "0177.0.0.1", "0177.1", "127.255.255.254", "127.0.0.1.", "127.000.000.001", "0x7F.0.0.1", "127.0x0.1",
    "[::1]", "[0:0:0:0:0:0:0:1]", "[0000:0000:0000:0000:0000:0000:0000:0001]", "[::ffff:127.0.0.1]",
    "[::FFFF:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "[::127.0.0.1]", "[::7f00:1]", "[::ffff:0:127.0.0.1]",
    # this host, broadcast, multicast, reserved
    "0.0.0.0", "0", "0x0", "00",  # noqa: S104
    "0.0.0.1", "0.1", "255.255.255.255", "4294967295", "0xffffffff", "224.0.0.1",
    "239.255.255.250", "240.0.0.1", "[::]", "[0:0:0:0:0:0:0:0]", "[ff02::1]", "[ff0e::1]", "[::ffff:0.0.0.0]",
    # private
    "10.0.0.1", "10.255.255.255", "167772161", "0xa000001", "012.0.0.1", "10.1", "172.16.0.1", "172.31.255.255",
    "2886729729", "192.168.0.1", "192.168.1", "3232235521", "0xc0a80001", "0300.0250.0.1", "192.168.255.255",
    "100.64.0.1", "100.127.255.255", "198.18.0.1", "198.19.255.255", "192.0.0.1", "192.0.2.1", "198.51.100.1",
    "203.0.113.1", "192.88.99.1", "[fc00::1]", "[fd00::1]", "[fd12:3456:789a::1]", "[fec0::1]", "[::ffff:10.0.0.1]",
    "[::ffff:192.168.0.1]", "[::ffff:a00:1]", "[::ffff:ac10:1]", "[::10.0.0.1]", "[100::1]", "[2001:db8::1]",
    "[3fff::1]", "[5f00::1]",
    # link-local and metadata
    "169.254.169.254", "169.254.170.2", "169.254.0.1", "2852039166", "0xa9fea9fe", "0xA9.0xFE.0xA9.0xFE",
    "0251.0376.0251.0376", "025177524776", "169.254.43518", "169.16689662", "169.254.169.254.", "0xa9.254.0251.254",
    "100.100.100.200", "1684301000", "168.63.129.16", "2822734096", "192.0.0.192", "[fe80::1]", "[febf::1]",
    "[fd00:ec2::254]", "[fd00:42::42]", "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[::169.254.169.254]",
    # another address inside
    "[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b::10.0.0.1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]",
    "[2002:a9fe:a9fe::]", "[2002:c0a8:1::]", "[2001::1]", "[2001:0:7f00:1::]", "[2001:10::1]",
    # names
    "private.example", "loopback.example", "LOOPBACK.example", "loopback.example.", "loopback6.example",
    "mapped.example", "mixed.example", "mixed6.example", "metadata.example", "metadata.google.internal",
    "cloud.example", "wire.example", "nat64.example", "sixtofour.example", "teredo.example", "zero.example",
    "broadcast.example", "multicast.example", "site.example", "unique.example", "ec2.example", "many.example",
    "nothing.example", "unknown.example", "localhost", "LOCALHOST", "localhost.", "localhost.localdomain",
    "ip6-localhost", "service", "n8n",
    # no host at all
    "256.1.1.1", "1.2.3.4.5", "08.1.1.1", "[fe80::1%eth0]", "[fe80::1%25eth0]", "[::1", "::1", "[public.example]",
    "public..example", ".public.example", "-public.example", "public.example%00", "public.example%2e", "*",
]  # fmt: skip
_URLS = [
    *(f"http://{host}/" for host in _HOSTS),
    # ports
    *(f"https://public.example:{port}/" for port in (0, 1, 21, 22, 25, 53, 6379, 5678, 8080, 65536, "", "+443")),
    "http://93.184.216.34:22/", "http://[2606:4700::1111]:6379/",
    # schemes, users, fragments, and characters that parsers read in two ways
    "", "public.example", "//public.example/", "ftp://public.example/", "file:///etc/passwd", "gopher://public.example/",
    "http:public.example", "http:/public.example", "http:///public.example", "https://", "javascript:alert(1)",
    "unix:///run/service.sock", "http+unix://public.example/", "https://user@public.example/",
    "https://user:secret@public.example/", "https://public.example@127.0.0.1/", "https://127.0.0.1@public.example/",
    "https://public.example#@127.0.0.1/", "https://127.0.0.1#public.example/", "https://public.example/#part",
    "https://public.example\\@127.0.0.1/", "https://public.example\\.evil.test/", "https://127.0.0.1\\public.example/",
    "https://public.example /", " https://public.example/", "https://public.example/\n",
    "https://public.example/\r\nx: y",
    "https://public.example/\t", "https://public.example/\0", "https://public.exam\u00adple/", "https://\u2460.example/",
    "https://public\u3002example/", "https://\uff11\uff12\uff17.0.0.1/", "https://public.example/%zz",
    "https://public.example/" + "a" * 2_048,
]  # fmt: skip


def test_the_table_has_150_addresses_and_more() -> None:
    assert len(set(_URLS)) == len(_URLS) >= 150


@pytest.mark.parametrize("url", _URLS)
def test_an_address_that_is_not_public_is_refused(url: str) -> None:
    with pytest.raises(CallbackRefused) as refused:
        check(url)
    assert "169.254" not in refused.value.detail  # it does not tell where a name leads to


@pytest.mark.parametrize(
    "url",
    [
        "https://public.example", "HTTPS://PUBLIC.example./hook?a=b%20c", "http://public.example:80/", "http://1.1.1.1",
        "https://public.example:80/", "https://93.184.216.34/", "https://[2606:4700::1111]/?a", "http://134744072/",
        "https://[::ffff:1.1.1.1]/",
    ],
)  # fmt: skip
def test_a_public_address_on_a_usual_port_is_accepted(url: str) -> None:
    check(url)


@pytest.mark.parametrize(
    ("url", "entry"),
    [
        ("http://n8n:5678/webhook-waiting/7?signature=x", "n8n:5678"),
        ("http://n8n/", "n8n"),
        ("http://172.18.0.5:5678/", "172.18.0.5:5678"),
        ("http://private.example/", "*.example"),
        ("http://private.example/", "10.1.2.3"),
        ("http://localhost:5678/", "localhost:5678"),
        ("http://[::1]:5678/", "[::1]:5678"),
        ("http://169.254.169.254/", "169.254.169.254"),
        ("https://public.example:8443/", "public.example:8443"),
    ],
)
def test_a_listed_receiver_is_accepted(url: str, entry: str) -> None:
    check(url, entry)
    with pytest.raises(CallbackRefused):
        check(url)


@pytest.mark.parametrize(
    ("url", "entry"),
    [
        ("http://n8n:5679/", "n8n:5678"),
        ("http://n8n:5678/", "n8n"),
        ("http://service:5678/", "n8n:5678"),
        ("http://metadata.example/", "metadata.example"),
        ("http://cloud.example/", "*.example"),
        ("http://ec2.example/", "ec2.example"),
        ("http://gce.example/", "gce.example"),
        ("http://zero.example/", "zero.example"),
        ("http://multicast.example/", "multicast.example"),
        ("http://mixed6.example/", "mixed6.example"),
        ("http://private.example:22/", "10.1.2.3"),
    ],
)
def test_a_list_allows_no_other_port_and_no_metadata_behind_a_name(url: str, entry: str) -> None:
    with pytest.raises(CallbackRefused):
        check(url, entry)


def test_a_connection_goes_to_an_address_that_was_checked() -> None:
    answers = iter((["93.184.216.34"], ["127.0.0.1"]))

    async def rebinding(_name: str, _port: int) -> list[Address]:
        return [ipaddress.ip_address(each) for each in next(answers)]

    async def scenario() -> None:
        guard = AddressGuard((), rebinding)
        target = parse_callback_url("https://public.example/").target
        assert await guard.find_addresses(target) == [ipaddress.ip_address("93.184.216.34")]
        with pytest.raises(CallbackRefused):
            await guard.find_addresses(target)

    asyncio.run(scenario())


def test_the_origin_has_no_path_and_no_query() -> None:
    url = parse_callback_url("HTTPS://Public.Example:8443/secret?signature=secret")
    assert (url.origin, url.path) == ("https://public.example:8443", "/secret?signature=secret")
    assert parse_callback_url("http://[::1]/?a").host_header == "[::1]"
    assert parse_callback_url("https://public.example:80").host_header == "public.example:80"


def test_an_entry_that_names_no_host_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match=r"callbacks\.allow"):
        AddressGuard(["https://n8n:5678/"])


@given(st.text(max_size=60))
def test_no_text_makes_the_guard_fail(text: str) -> None:
    for url in (text, f"http://{text}", f"http://public.example/{text}"):
        try:
            parsed = parse_callback_url(url)
        except CallbackRefused:
            continue
        assert parsed.origin.isascii()
        assert parsed.path.startswith("/")
