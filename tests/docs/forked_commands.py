"""`steadyhand` for the shells of the pages: a program on PATH whose commands are forked instead of started.

The program sends its words, its folder, its environment and its streams to a socket of the test, which forks the
command (see `steadyhand.testing.preloaded`) and returns its exit code. A forked command does what one that is started
does: `tests/cli/test_processes.py` compares them.
"""

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingUnixStreamServer
from typing import Any

from steadyhand.testing.cli import system_python
from steadyhand.testing.preloaded import ForkedProcess
from steadyhand.testing.service import Service

PROGRAM = Path(sys.executable).parent / "steadyhand"
"""The program that the pages mean."""
_LENGTH_BYTES = 8
_TO_BE_STARTED = b"start"
_LAUNCHER = """\
#!{python} -IS
import json, os, socket, sys
words = [{program!r}, *sys.argv[1:]]
asked = json.dumps({{"argv": words, "folder": os.getcwd(), "env": dict(os.environ)}}).encode()
with socket.socket(socket.AF_UNIX) as door:
    door.connect({door!r})
    socket.send_fds(door, [len(asked).to_bytes({length}, "big")], [0, 1, 2])
    door.sendall(asked)
    answer = door.recv(16)
if answer == {start!r}:
    os.execv(words[0], words)
code = int(answer)  # none came if the test has ended
os._exit(code if code >= 0 else 128 - code)
"""


@contextmanager
def forked_commands() -> Iterator[Path]:
    """Yield a directory with a `steadyhand` whose commands are forked for the length of the block."""
    folder = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    door = str(folder / "door")
    launcher = folder / "steadyhand"
    launcher.write_text(
        _LAUNCHER.format(
            python=system_python(),
            program=str(PROGRAM),
            door=door,
            length=_LENGTH_BYTES,
            start=_TO_BE_STARTED,
        )
    )
    launcher.chmod(0o755)
    with ThreadingUnixStreamServer(door, _Command) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield folder
        server.shutdown()
        thread.join(10)
    shutil.rmtree(folder)


class _Command(BaseRequestHandler):
    """One command: the connection of the program that waits for it."""

    request: socket.socket

    def handle(self) -> None:
        length, streams, _, _ = socket.recv_fds(self.request, _LENGTH_BYTES, 3)
        with self.request.makefile("rb") as sent, suppress(BrokenPipeError):
            asked: dict[str, Any] = json.loads(sent.read(int.from_bytes(length, "big")))
            process = _fork(asked["argv"], Path(asked["folder"]), asked["env"], streams)
            code = None if process is None else self._wait_for(process)
            self.request.sendall(_TO_BE_STARTED if code is None else str(code).encode())

    def _wait_for(self, process: ForkedProcess) -> int:
        """Wait for the end of a command, and kill it if whoever waits for it has been killed."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(0.5)
            if select.select([self.request], [], [], 0)[0]:  # it says no more, so it is gone
                process.kill()


def _fork(
    argv: list[str], folder: Path, environment: dict[str, str], streams: list[int]
) -> ForkedProcess | None:
    """Fork a command, or return `None` if only a start would do; the streams are closed here."""
    try:
        if Service.preloaded is None or not Service.preloaded.can_start(environment):
            return None
        stdin, stdout, stderr = streams
        return Service.preloaded.start(argv, folder, environment, (stdin, stdout, stderr))
    finally:
        for stream in streams:
            os.close(stream)
