"""A service is replaced while it works: no request is refused, no run ends, and nothing is lost or doubled."""

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from steadyhand.testing.service import ADMIN_KEY, PLAIN_HTTP, MakeService, Service, wait_until

CALLERS = 8
SECONDS_BETWEEN = 0.04
"""The pause of each caller between two requests: together they make 200 a second, if the machine can."""


class Caller(threading.Thread):
    """Submits a job, reads it and goes on, by one connection or by a new one for each request."""

    def __init__(self, url: str, number: int, stop: threading.Event) -> None:
        super().__init__(name=f"caller {number}")
        self.job_ids: list[str] = []
        self.answers: Counter[int] = Counter()
        self.errors: list[str] = []
        self.longest = 0.0
        self._stop_event = stop
        self._client = httpx2.Client(
            base_url=url,
            headers={"authorization": f"Bearer {ADMIN_KEY}"}
            | ({"connection": "close"} if number % 2 else {}),
            timeout=60,
            trust_env=False,
            verify=PLAIN_HTTP,
        )

    def run(self) -> None:
        with self._client:
            while not self._stop_event.is_set():
                began = time.monotonic()
                try:
                    self._ask()
                except httpx2.HTTPError as error:
                    self.errors.append(repr(error))
                self.longest = max(self.longest, time.monotonic() - began)
                self._stop_event.wait(max(0.0, 2 * SECONDS_BETWEEN - (time.monotonic() - began)))

    def _ask(self) -> None:
        answer = self._client.post("/v1/jobs", json={"prompt": "Wait.", "workspace": "scratch"})
        self.answers[answer.status_code] += 1
        if answer.status_code != 202:
            self.errors.append(answer.text)
        else:
            self.job_ids.append(answer.json()["id"])
            answer = self._client.get(f"/v1/jobs/{self.job_ids[-1]}")
            self.answers[answer.status_code] += 1


def ask_through(service: Service, hand_overs: int) -> list[Caller]:
    """Replace the service some times while callers ask it; return the callers at the end."""
    stop = threading.Event()
    callers = [Caller(service.url, number, stop) for number in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(hand_overs):
            wait_until(lambda: all(caller.answers for caller in callers), 30)
            assert service.replace() == 0
    finally:
        stop.set()
        for caller in callers:
            caller.join(90)
    return callers


def check_none_refused(service: Service, callers: list[Caller]) -> None:
    assert [error for caller in callers for error in caller.errors] == []
    assert {status for caller in callers for status in caller.answers} == {200, 202}
    accepted = [job_id for caller in callers for job_id in caller.job_ids]
    stored, cursor = [], ""
    while cursor is not None:
        page = service.client.get("/v1/jobs", params={"limit": 200} | ({"cursor": cursor} if cursor else {}))
        stored += [job["id"] for job in page.json()["data"]]
        cursor = page.json().get("next_cursor")
    assert sorted(stored) == sorted(accepted)


PAUSED = "[service]\npaused = true\nmax_queued = 20000\n"


@pytest.fixture
def paused(make_service: MakeService) -> Iterator[Service]:
    """A service that accepts jobs and starts none."""
    with make_service(config=PAUSED) as service:
        yield service


def test_requests_go_on_through_a_hand_over_and_none_is_refused(paused: Service) -> None:
    check_none_refused(paused, ask_through(paused, 1))


@pytest.mark.long
def test_requests_go_on_through_ten_hand_overs_and_none_is_refused(paused: Service) -> None:
    check_none_refused(paused, ask_through(paused, 10))


@pytest.mark.long  # as in `tests/serve/test_handover`
def test_a_connection_without_a_request_passes_on(paused: Service) -> None:
    """A client that never closes notices nothing: neither on a connection that it used, nor on an unused one."""
    host, port = paused.url.removeprefix("http://").split(":")
    with (
        socket.create_connection((host, int(port)), 60) as used,
        socket.create_connection((host, int(port)), 60) as unused,
    ):
        for _ in range(2):
            used.sendall(b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            assert read_answer(used).startswith(b"HTTP/1.1 200 ")
        assert paused.replace() == 0
        for each in (used, unused):
            each.sendall(b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            assert read_answer(each).startswith(b"HTTP/1.1 200 ")


def read_answer(sock: socket.socket) -> bytes:
    """Read one answer with a length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(4096)
    head, _, body = data.partition(b"\r\n\r\n")
    (length,) = [
        int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
    ]
    while len(body) < length:
        body += sock.recv(4096)
    return data


def test_a_service_that_cannot_start_leaves_the_running_one_as_it_is(make_service: MakeService) -> None:
    with make_service(config=PAUSED) as service:
        running = service.process
        service._env["STEADYHAND_RUNNER__CLAUDE__PATH"] = "/nowhere/claude"
        assert service.spawn("--replace").wait(60) == 2
        assert "/nowhere/claude" in service.log_since_start
        service._process = running
        assert service.client.get("/readyz").status_code == 200


def test_a_reload_by_a_signal_tells_the_manager_the_new_process(
    make_service: MakeService, tmp_path: Path
) -> None:
    """It goes as under systemd: the old process starts the new one, and names it before it ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        service = make_service(config=PAUSED, env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        with service:
            assert manager.recv(100) == b"READY=1"
            running = service.process
            service._env["NOTIFY_SOCKET"] = ""
            assert service.spawn("--replace").wait(60) == 2
            assert "systemctl reload" in service.log_since_start
            service._process = running
            service.process.send_signal(signal.SIGUSR2)
            assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            name, _, pid = manager.recv(100).partition(b"=")
            try:
                assert (name, manager.recv(100)) == (b"MAINPID", b"READY=1")
                assert service.process.wait(60) == 0
                assert (service.data_dir / "lock").read_text().split() == [pid.decode()]
                assert service.client.get("/readyz").status_code == 200
            finally:
                os.kill(int(pid), signal.SIGTERM)
                wait_until(lambda: not (service.data_dir / "lock").read_text(), 60)
