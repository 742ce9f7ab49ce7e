"""The end of the terminal: the service drains as by SIGTERM, `run` stops its own service, and nohup changes nothing."""

import os
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from tests.sandboxed.host_inspection import live_agent_processes

from steadyhand.testing.service import ADMIN_KEY, MakeService, wait_until

IN_A_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
UNDER_NOHUP = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""
NOT_UNDER_NOHUP = UNDER_NOHUP.replace("SIG_IGN", "SIG_DFL")  # as the tests themselves may be
SERVE = (str(Path(sys.executable).parent / "steadyhand"), "serve")
RUN = """
import steadyhand.cli.run as run
from steadyhand.cli import main
run.DEFAULT_URL = "http://127.0.0.1:9"
main()
"""


class Terminal:
    """A terminal with a command in it, which leads its session."""

    def __init__(self, argv: Sequence[str], folder: Path, env: dict[str, str]) -> None:
        self._master, slave = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_A_TERMINAL, *argv],
            stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=env, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.shown = b""

    def wait_for(self, pattern: str, seconds: float = 60.0) -> str:
        """Return the first match of a pattern in what the terminal shows."""
        until = time.monotonic() + seconds
        while (found := re.search(pattern, self.shown.decode("utf-8", "replace"))) is None:
            assert time.monotonic() < until, self.shown
            if select.select([self._master], [], [], 0.2)[0]:
                self.shown += os.read(self._master, 65536)
        return found[0]

    def close(self) -> None:
        if self._master >= 0:
            os.close(self._master)
            self._master = -1


@contextmanager
def terminal(argv: Sequence[str], folder: Path, env: dict[str, str]) -> Iterator[Terminal]:
    opened = Terminal(argv, folder, env)
    try:
        yield opened
    finally:
        opened.close()
        if opened.process.poll() is None:
            opened.process.kill()
        opened.process.wait(30)


def client_of(url: str) -> httpx2.Client:
    return httpx2.Client(base_url=url, headers={"authorization": f"Bearer {ADMIN_KEY}"}, trust_env=False)


def states(data_dir: Path) -> dict[str, str]:
    with sqlite3.connect(data_dir / "steadyhand.db") as database:
        return dict(database.execute("SELECT id, state FROM jobs"))


def test_a_service_whose_terminal_is_closed_drains(make_service: MakeService, common_dir: Path) -> None:
    service = make_service(env={"STEADYHAND_CONCURRENCY": "2", "STEADYHAND_SERVICE__DRAIN_SECONDS": "4"})
    quick = f"[[standin: touch={common_dir}/quick wait_for={common_dir}/go]]"
    slow = f"[[standin: touch={common_dir}/slow sleep=60]]"
    with terminal(SERVE, service.root, service.environment()) as opened:
        url = opened.wait_for(r"http://127\.0\.0\.1:\d+")
        with client_of(url) as client:
            jobs = [client.post("/v1/jobs", json={"prompt": prompt}).json()["id"] for prompt in (quick, slow)]
            wait_until(lambda: (common_dir / "quick").exists() and (common_dir / "slow").exists())
            opened.close()
            wait_until(lambda: client.get("/readyz").status_code == 503)
            opened.process.send_signal(
                signal.SIGHUP
            )  # the shell may send one more: no end of the grace period
            (common_dir / "go").touch()
            wait_until(lambda: client.get(f"/v1/jobs/{jobs[0]}").json()["state"] == "completed", 10)
        assert opened.process.wait(60) == 0
    assert states(service.data_dir) == dict(zip(jobs, ("completed", "interrupted"), strict=True))
    assert live_agent_processes(service) == {}


def test_under_nohup_a_closed_terminal_changes_nothing(make_service: MakeService) -> None:
    service = make_service()
    log = service.root / "nohup.out"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", UNDER_NOHUP, *SERVE],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=service.root, env=service.environment(),
        )  # fmt: skip
    try:
        found = wait_until(lambda: re.search(r"http://127\.0\.0\.1:\d+", log.read_text()), 60)
        with client_of(found[0]) as client:
            wait_until(lambda: client.get("/readyz").status_code == 200)
            process.send_signal(signal.SIGHUP)
            answer = client.post("/v1/jobs", json={"prompt": "hello"}, headers={"prefer": "wait=30"})
            assert answer.json()["state"] == "completed"
            assert client.get("/readyz").status_code == 200
        process.terminate()
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(30)


@pytest.mark.parametrize("how", ["closed", pytest.param("signal", marks=pytest.mark.long)])
def test_a_run_with_a_service_of_its_own_stops_it_in_order(
    make_service: MakeService, common_dir: Path, how: str
) -> None:
    service = make_service(env={"STEADYHAND_ISOLATION": "none"})
    prompt = f"[[standin: touch={common_dir}/on spawn=daemon:deaf sleep=60]]"
    argv = (sys.executable, "-c", RUN, "run", prompt)
    with terminal(argv, service.root, service.environment()) as opened:
        opened.wait_for("running one in this process")
        wait_until((common_dir / "on").exists, 60)
        if how == "closed":
            opened.close()
        else:
            opened.process.send_signal(signal.SIGHUP)
        assert opened.process.wait(60) == 129
    assert list(states(service.data_dir).values()) == ["cancelled"]
    assert live_agent_processes(service) == {}


@pytest.mark.long  # a terminal is such a reader above, a stream that fails in `tests/serve/test_logs`
def test_a_log_whose_reader_is_gone_ends_nothing(make_service: MakeService) -> None:
    service = make_service(env={"STEADYHAND_SERVICE__LOG_LEVEL": "debug"})
    process = subprocess.Popen(
        [sys.executable, "-c", NOT_UNDER_NOHUP, *SERVE],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        cwd=service.root, env=service.environment(),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, b"")
        url = next(
            found[0].decode() for line in lines if (found := re.search(rb"http://127\.0\.0\.1:\d+", line))
        )
        process.stdout.close()  # as the end of `tee` in the same terminal
        with client_of(url) as client:
            for _ in range(2):
                answer = client.post("/v1/jobs", json={"prompt": "hello"}, headers={"prefer": "wait=30"})
                assert answer.json()["state"] == "completed"
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(30)
