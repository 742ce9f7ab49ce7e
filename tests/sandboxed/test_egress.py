"""A host that is not on the list is not reached: by name, by address, past the proxy, by a redirect; and it is told."""

import json
from collections.abc import Iterator

import pytest
from tests.sandboxed.conftest import CONFIG
from tests.sandboxed.host_inspection import run_commands
from tests.sandboxed.recording_server import RecordingServer

from steadyhand.testing.service import MakeService, Service
from steadyhand.testing.shell import python_command, shell_prompt

BY_PROXY = {
    "a name": ("curl -sS -m 5 http://attacker.example/", "attacker.example"),
    "a name with TLS": ("curl -sS -m 5 https://attacker.example/", "attacker.example"),
    "a name in capitals": ("curl -sS -m 5 http://ATTACKER.Example./", "attacker.example"),
    "an address": ("curl -sS -m 5 http://93.184.215.14/", "93.184.215.14"),
    "an address of version 6": ("curl -sS -g -m 5 'http://[2606:2800:21f:cb07::1]/'", "[2606:2800:21f:cb07::1]"),
    "the metadata of a cloud": ("curl -sS -m 5 http://169.254.169.254/latest/", "169.254.169.254"),
    "this machine in hex": ("curl -sS -m 5 --noproxy '' http://0x7f.1:PORT/", "127.0.0.1:PORT"),
    "this machine by number": ("curl -sS -m 5 --noproxy '' http://2130706433:PORT/", "127.0.0.1:PORT"),
    "this machine by name": ("curl -sS -m 5 --noproxy '' http://localhost:PORT/", "localhost:PORT"),
    "a tunnel to mail": ("curl -sS -m 5 -p http://attacker.example:25/", "attacker.example:25"),
    "git": ("git ls-remote https://attacker.example/x.git", "attacker.example"),
    "a name that starts as one that is listed": ("curl -sS -m 5 http://listed.example.attacker.example/",
                                                 "listed.example.attacker.example"),
    "a name that ends as one that is listed": ("curl -sS -m 5 http://evillisted.example/", "evillisted.example"),
    "a user that looks like a host": ("curl -sS -m 5 http://listed.example@attacker.example/", "attacker.example"),
}  # fmt: skip
PAST_IT = {
    "an address": "s.connect(('93.184.215.14', 80))",
    "this machine": "s.connect(('127.0.0.1', PORT))",
    "this machine's other addresses": "s.connect(('127.0.0.53', PORT))",
    "the service": "s.connect(('127.0.0.1', SERVICE))",
    "a name": "s.connect(('attacker.example', 80))",
    "a datagram": "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('93.184.215.14', 53))",
    "version 6": "s = socket.socket(socket.AF_INET6); s.connect(('2606:2800:21f:cb07::1', 80))",
    "a raw socket": "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); s.sendto(b'x', ('93.184.215.14', 0))",
    "packets": "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "the machine below": "s = socket.socket(socket.AF_VSOCK); s.connect((2, 22))",
}


@pytest.fixture(scope="module")
def service(make_service_in: MakeService, listener: RecordingServer) -> Iterator[Service]:
    listed = f'"listed.example", "*.pages.example", "127.0.0.1:{listener.port}"'
    more = f'[agents.reaching]\nworkspace = "scratch"\negress = [{listed}]\n[agents.alone]\nworkspace = "scratch"\n'
    more += '[agents.open]\nworkspace = "scratch"\negress = "host"\n'
    with make_service_in(config=CONFIG + more) as made:
        yield made


def refusals(service: Service, job_id: str) -> list[str]:
    return [event["data"]["host"] for event in service.events(job_id) if event["type"] == "egress.refused"]


def ports(text: str, listener: RecordingServer, service: Service) -> str:
    return text.replace("SERVICE", service.url.rpartition(":")[2]).replace("PORT", str(listener.port))


def test_what_is_listed_is_reached(service: Service, listener: RecordingServer) -> None:
    """The probe: the way out works, so what is refused below is refused."""
    listener.requests.clear()
    job = service.run_job(
        shell_prompt(f"curl -sS -m 30 --noproxy '' http://127.0.0.1:{listener.port}/hello"), agent="reaching"
    )
    assert job["answer"] == "ok"
    assert listener.requests == ["/hello"]
    assert refusals(service, job["id"]) == []
    told = [event["data"] for event in service.events(job["id"]) if event["type"] == "warning"]
    reached = f"The agent reached 127.0.0.1:{listener.port}."
    assert told == [{"code": "egress_host", "message": reached}]


def test_who_shares_the_network_reaches_this_machine_and_each_start_says_so(
    service: Service, listener: RecordingServer
) -> None:
    listener.requests.clear()
    reach = f"curl -sS -m 30 http://127.0.0.1:{listener.port}/shared"
    assert run_commands(service, reach, agent="open") == "ok"
    assert listener.requests == ["/shared"]
    assert "egress.host" in service.log_since_start
    assert "agent open" in service.log_since_start


# This machine's address is on the list of the one agent; of the rest, two are enough for the one without a list.
CASES = [("alone" if host == "127.0.0.1:PORT" else "reaching", what) for what, (_, host) in BY_PROXY.items()]
CASES += [("alone", "a name with TLS"), ("alone", "an address")]
NOW = {
    ("alone", "this machine in hex"),
    ("alone", "an address"),
    ("reaching", "this machine by name"),
    ("reaching", "a tunnel to mail"),
    ("reaching", "git"),
    ("reaching", "a user that looks like a host"),
}
"""The others are for the long run: test_attacks_by_process_mode.py tries all of them in two jobs."""


@pytest.mark.parametrize(
    ("agent", "what"),
    [pytest.param(*case, marks=[] if case in NOW else [pytest.mark.long]) for case in CASES],
)
def test_what_is_not_listed_is_refused_and_told(
    service: Service, listener: RecordingServer, agent: str, what: str
) -> None:
    listener.requests.clear()
    command, host = (ports(each, listener, service) for each in BY_PROXY[what])
    job = service.run_job(shell_prompt(f"{command} 2>&1; true"), agent=agent)
    assert job["state"] == "completed"
    assert set(refusals(service, job["id"])) == {host}
    assert listener.requests == []


PAST_IT_NOW = {"this machine", "the service", "a datagram"}
"""The same for those past the proxy."""


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[] if what in PAST_IT_NOW else [pytest.mark.long]) for what in PAST_IT]
)
def test_there_is_no_way_past_the_proxy(service: Service, listener: RecordingServer, what: str) -> None:
    listener.requests.clear()
    code = (
        "import socket\ns = socket.socket()\ns.settimeout(3)\ntry:\n    "
        + ports(PAST_IT[what], listener, service)
        + "\n    print('SENT')\nexcept OSError as error:\n    print('refused')\n"
    )
    assert run_commands(service, python_command(code), agent="reaching") == "refused"
    assert listener.requests == []


@pytest.mark.parametrize(
    ("path", "host"),
    [pytest.param("/redirect", "attacker.example", marks=pytest.mark.long), ("/inside", "localhost:PORT")],
)
def test_a_redirect_is_refused_where_it_leads(
    service: Service, listener: RecordingServer, path: str, host: str
) -> None:
    listener.requests.clear()
    url = f"http://127.0.0.1:{listener.port}{path}"
    job = service.run_job(shell_prompt(f"curl -sS -L -m 5 --noproxy '' {url}; true"), agent="reaching")
    assert refusals(service, job["id"]) == [ports(host, listener, service)]
    assert listener.requests == [path]


def test_the_doors_of_one_run_are_no_doors_of_another(service: Service, listener: RecordingServer) -> None:
    """An agent with a list and one without, at once: the second reaches nothing through the first."""
    listener.requests.clear()
    look = f"for i in 1 2 3; do curl -sS -m 30 --noproxy '' http://127.0.0.1:{listener.port}/x; sleep 0.3; done; true"
    first = service.submit(shell_prompt(look), agent="reaching")["id"]
    second = service.submit(shell_prompt(look.replace("/x", "/stolen")), agent="alone")["id"]
    assert service.wait_until_ended(first)["answer"] == "okokok"
    service.wait_until_ended(second)
    assert set(refusals(service, second)) == {f"127.0.0.1:{listener.port}"}
    assert "/stolen" not in listener.requests


def test_all_of_it_is_on_the_record_as_json(service: Service) -> None:
    job = service.run_job(shell_prompt("curl -sS -m 5 http://attacker.example/; true"), agent="alone")
    (event,) = [each for each in service.events(job["id"]) if each["type"] == "egress.refused"]
    assert json.loads(json.dumps(event["data"])) == {"host": "attacker.example"}
