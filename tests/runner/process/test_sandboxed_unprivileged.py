"""Sealed runs of a service that is not root: the same end, by a user namespace of its own."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.runner.sandboxed_process import PYTHON, shared_etc

import steadyhand
from steadyhand.testing.processes import pids_with_mark, wait_until_gone

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")

SERVICE_UID = 64700
AFTER_SECONDS = 10.0
HERE = Path(__file__).parents[1]
UNRULY = (HERE / "unruly_agent.py").read_text(encoding="utf-8")
DOORS = """
import asyncio, socket
from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec
from tests.runner.sandboxed_process import sandbox_harness

CODE = "import socket; print(socket.create_connection(('127.0.0.1', 3128), 5).recv(9), len(socket.if_nameindex()))"

async def main():
    taken = []
    with sandbox_harness("nobody", etc=Path(sys.argv[1])) as world:
        launch = LaunchSpec(world.python(CODE))
        async with asyncio.timeout(20), AgentProcess.start(launch, None, taken.extend) as process:
            listener = socket.socket(fileno=taken[0])
            listener.setblocking(False)
            loop = asyncio.get_running_loop()
            connection, _ = await loop.sock_accept(listener)
            await loop.sock_sendall(connection, b"hello")
            connection.close()
            print((await process.stdout.read()).decode(), (await process.wait()).code, process.containment)

import sys
from pathlib import Path
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def copy() -> Iterator[Path]:
    """Give a copy of the code that another user can read."""
    folder = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    folder.chmod(0o755)
    without = shutil.ignore_patterns("__pycache__")
    for package in (steadyhand, yaml):
        source = Path(package.__path__[0])
        shutil.copytree(source, folder / source.name, ignore=without)
    (folder / "tests" / "runner").mkdir(parents=True)
    shutil.copy(HERE / "sandboxed_process.py", folder / "tests" / "runner")
    yield folder
    shutil.rmtree(folder)


def start(copy: Path, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [PYTHON, *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=copy,
        env={"PATH": os.defpath, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        user=SERVICE_UID,
        group=SERVICE_UID,
        extra_groups=[],
    )


def test_an_unprivileged_service_answers_where_its_sealed_run_connects(copy: Path) -> None:
    with start(copy, "-c", DOORS, str(shared_etc())) as service:
        out, _ = service.communicate(timeout=90)
    assert out.split() == ["b'hello'", "1", "0", "pid_namespace"]


HELD = """
import asyncio, os, sys, tempfile
from pathlib import Path
from steadyhand.ports import HoldSpec
from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec
from tests.runner.sandboxed_process import sandbox_harness

CODE = '''
import socket, time
for n in range(200):
    print(n, flush=True)
    time.sleep(0.005)
print(socket.create_connection(("127.0.0.1", 3128), 20).recv(9))
'''

async def main(etc, folder):
    tempfile.tempdir = str(folder)
    with sandbox_harness("nobody", etc=etc) as world:
        hold = HoldSpec(folder / "run" / "held" / "job-1", "job", 1, 60)
        launch = LaunchSpec(world.python(CODE), hold=hold)
        async with AgentProcess.start(launch, None, lambda sockets: list(map(os.close, sockets))) as process:
            process.hold.keep()
            print(process.pid, flush=True)
            await process.stdout.read(100)
            await asyncio.sleep(30)

asyncio.run(main(*map(Path, sys.argv[1:])))
"""
TAKE_UP = """
import asyncio, socket, sys
from pathlib import Path
from steadyhand.runner.process.agent_process import AgentProcess
from steadyhand.runner.process.held_record import find_orphaned_runs

async def main(folder):
    (orphan,), taken = find_orphaned_runs(folder, print), []
    async with AgentProcess.attach(orphan, taken.extend) as process, asyncio.timeout(60):
        listener = socket.socket(fileno=taken[0])
        listener.setblocking(False)
        loop, output = asyncio.get_running_loop(), b""
        connection, _ = await loop.sock_accept(listener)
        await loop.sock_sendall(connection, b"hello")
        connection.close()
        while chunk := await process.stdout.read(1000):
            output += chunk
        *numbers, answer = output.decode().split()
        print(list(map(int, numbers)) == list(range(200)), answer, (await process.wait()).code)

asyncio.run(main(Path(sys.argv[1])))
"""


def test_the_next_unprivileged_service_takes_up_a_sealed_run_with_its_network(copy: Path) -> None:
    folder = copy / "data"
    folder.mkdir(mode=0o755)
    os.chown(folder, SERVICE_UID, SERVICE_UID)
    with start(copy, "-c", HELD, str(shared_etc()), str(folder)) as service:
        assert service.stdout is not None
        assert service.stdout.readline().strip().isdecimal()
        service.kill()
    with start(copy, "-c", TAKE_UP, str(folder)) as service:
        out, _ = service.communicate(timeout=90)
    assert out.split() == ["True", "b'hello'", "0"]


IN_A_CONTAINER = """
for each in 1 2 3 4 5 6 7 8; do /bin/true; done
setpriv --reuid "$1" --regid "$1" --clear-groups /usr/bin/python3 -c "$2" "$3"
"""


@pytest.mark.parametrize("user", [pytest.param(0, marks=pytest.mark.long), SERVICE_UID])
def test_a_sealed_run_starts_where_few_processes_are_to_be_seen(copy: Path, user: int) -> None:
    """In a container the numbers that a new pid namespace gives are nobody's outside it."""
    alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    words = ["/bin/sh", "-ec", IN_A_CONTAINER, "container", str(user), DOORS, str(shared_etc())]
    done = subprocess.run(
        [*alone, *words],
        capture_output=True,
        text=True,
        cwd=copy,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=90,
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == (["b'hello'", "1", "0", "pid_namespace"], "")


HOG = """
import asyncio, sys
from pathlib import Path
from steadyhand.agents import Agent
from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec
from tests.runner.sandboxed_process import sandbox_harness

CODE = "import time; print('there', flush=True); kept = [b'x' * (1 << 20) for _ in range(120)]; time.sleep(20)"

async def main():
    with sandbox_harness("nobody", etc=Path(sys.argv[1])) as world:
        for most, seconds in ((60 << 20, 20), (200 << 20, 2.5)):
            world.agent = Agent("claude", memory_bytes=most, processes=40)
            async with AgentProcess.start(LaunchSpec(world.python(CODE))) as process:
                assert await process.stdout.readline() == b"there\\n"
                try:
                    async with asyncio.timeout(seconds):
                        ended = await process.wait()
                except TimeoutError:
                    ended = await process.kill()
                print(ended.code, ended.signal, ended.out_of_memory)

asyncio.run(main())
"""


def test_an_unprivileged_run_holds_no_more_memory_than_it_may(copy: Path) -> None:
    with start(copy, "-c", HOG, str(shared_etc())) as service:
        out, _ = service.communicate(timeout=90)
    assert out.splitlines() == ["None 9 True", "None 9 False"]


@pytest.mark.parametrize(
    ("kind", "victim"),
    [
        ("daemon", "service"),
        ("reforking", "supervisor"),
        *(
            pytest.param(kind, victim, marks=pytest.mark.long)
            for kind, victim in (
                ("plain", "service"),
                ("plain", "supervisor"),
                ("setsid", "service"),
                ("setsid", "supervisor"),
                ("daemon", "supervisor"),
                ("reforking", "service"),
            )
        ),
    ],
)
def test_nothing_is_left_of_an_unprivileged_run(copy: Path, mark: str, kind: str, victim: str) -> None:
    words = ["-m", "tests.runner.sandboxed_process", mark, str(shared_etc()), UNRULY, kind, "deaf", "stay"]
    with start(copy, *words) as service:
        data = None
        try:
            assert service.stdout is not None
            supervisor, _, data = json.loads(service.stdout.readline())
            assert pids_with_mark(mark)
            os.kill(service.pid if victim == "service" else supervisor, signal.SIGKILL)
            assert wait_until_gone(mark, AFTER_SECONDS)
        finally:
            service.kill()
            if data is not None:
                shutil.rmtree(data)
