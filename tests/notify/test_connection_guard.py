"""The guard of a process, each time in a process of its own: it stays for good."""

import subprocess
import sys

import pytest

from steadyhand.testing.cli import SYSTEM_PATH

PROGRAM = """
import ipaddress, socket, subprocess, sys
from steadyhand.notify.connection_guard import ConnectionGuard
real = socket.getaddrinfo
answers = {names}
def resolve(host, port, *rest, **named):
    try:
        ipaddress.ip_address(host)
    except ValueError:
        found = answers[host]
        address = found.pop(0) if len(found) > 1 else found[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]
    return real(host, port, *rest, **named)
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
guard = ConnectionGuard(resolve)
guard.install()
guard.use([each.replace("PORT", str(port)) for each in {allow}], {ports})
try:
    {act}
    print("reached")
except (OSError, PermissionError) as error:
    print("refused", type(error).__name__, guard.refusal)
"""


def run(act: str, *, names: str = "{}", allow: str = "[]", ports: str = "[]") -> str:
    program = PROGRAM
    for name, value in {"names": names, "allow": allow, "ports": ports, "act": act}.items():
        program = program.replace("{" + name + "}", value)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": SYSTEM_PATH},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "act",
    [
        'socket.create_connection(("127.0.0.1", port), 5)',
        'socket.create_connection(("n8n.example", port), 5)',
        'socket.create_connection(("two.example", 443), 5)',
        'socket.socket().connect(("127.0.0.1", port))',
        'socket.socket().connect_ex(("127.0.0.1", port))',
        'socket.socket().connect(("localhost", port))',
        'socket.socket(socket.AF_UNIX).connect("/run/docker.sock")',
        'socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port))',
        'subprocess.run(["true"])',
        'socket.create_connection(("2130706433", port), 5)',
    ],
)
def test_an_address_that_was_not_checked_is_not_reached(act: str) -> None:
    names = '{"n8n.example": ["127.0.0.1"], "two.example": ["169.254.169.254"]}'
    assert run(act, names=names).startswith("refused")


def test_a_listed_name_is_reached_and_no_other_port_of_it() -> None:
    names, allow = '{"n8n.example": ["127.0.0.1"]}', '["n8n.example:PORT"]'
    assert run('socket.create_connection(("n8n.example", port), 5)', names=names, allow=allow) == "reached"
    other = run('socket.create_connection(("n8n.example", port - 1), 5)', names=names, allow=allow)
    assert other.startswith("refused gaierror is on port")


def test_an_address_of_an_earlier_request_is_not_reached() -> None:
    act = (
        'socket.create_connection(("n8n.example", port), 5); guard.use([], []); '
        'socket.socket().connect(("127.0.0.1", port))'
    )
    assert run(act, names='{"n8n.example": ["127.0.0.1"]}', allow='["n8n.example:PORT"]') == (
        "refused PermissionError leads to an address that was not checked"
    )


def test_a_name_that_resolves_to_another_address_later_gains_nothing() -> None:
    # The first lookup is public, the second is not; the connection goes to what its own lookup found.
    act = 'guard._get_address_info("two.example", 443); socket.create_connection(("two.example", 443), 5)'
    names = '{"two.example": ["93.184.216.34", "127.0.0.1"]}'
    assert run(act, names=names) == (
        "refused gaierror leads to an address that is not public; callbacks.allow can list it"
    )


def test_ports_of_mail_are_those_of_public_servers_alone() -> None:
    names = '{"mail.example": ["10.0.0.1"], "public.example": ["93.184.216.34"]}'
    refused = run('socket.create_connection(("mail.example", 587), 5)', names=names, ports="[587]")
    assert refused.startswith("refused gaierror leads to an address that is not public")
    act = 'print(guard._get_address_info("public.example", 587)[0][4])'
    assert run(act, names=names, ports="[587]") == "('93.184.216.34', 587)\nreached"
    assert run(act, names=names).startswith("refused gaierror is on port 587")
