"""Commands that start without importing anything: forked from a process that has imported the program's code.

Importing takes two seconds of a processor for a service and half a second for a client, a job of the stand-in a tenth
of one, and the tests start hundreds of both. A forked command is a process like one that was started as `steadyhand`:
a session, an environment, a command line, a working directory and streams of its own, and the program's own `main`.
Its parent is a process that waits for it and reports its exit code.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from steadyhand.testing.cli import SYSTEM_PATH

_ENVIRONMENT = {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8"}
_AT_START = ("PYTHON", "LC_", "LD_")
"""Variables that an interpreter reads once, when it starts: a fork would be too late."""
_MODULES = (
    *(f"steadyhand.cli.{name}" for name in ("jobs", "keys", "run", "service", "usage")),
    *("steadyhand.serve", "alembic.command", "sqlite3", "anyio.streams.tls"),
    *("steadyhand.workspace.lfs", "steadyhand.json_schema.answer_validation"),
)
"""Whatever a service has imported once its first job has ended."""
_MOST_BYTES = 1 << 17
_START_SECONDS = 60.0
_PR_SET_NAME = 15
_PR_SET_MM = 35
_PR_SET_MM_MAP, _PR_SET_MM_MAP_SIZE = 14, 15
_NO_FILE = 0xFFFF_FFFF
_ZEROS = (ctypes.c_ulong(0),) * 3
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.sbrk.restype = ctypes.c_void_p
_SHOWN: list[ctypes.Array[ctypes.c_char]] = []
"""The memory that /proc shows as a command line and an environment."""


class Process(Protocol):
    """A process that was started, with the part of the interface of `subprocess.Popen` that tests use."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class ForkedProcess:
    """A command that was forked; see `Process`."""

    def __init__(self, report: int) -> None:
        self._report = os.fdopen(report, "rb", buffering=0)
        self._lock = threading.Lock()
        self.returncode: int | None = None
        self.pid = self._read(_START_SECONDS)

    def _read(self, seconds: float | None) -> int:
        if not select.select([self._report], [], [], seconds)[0]:
            raise subprocess.TimeoutExpired("steadyhand", seconds or 0.0)
        line = self._report.read(16)
        if not line:
            raise RuntimeError("the process that waits for a command was killed")
        return int(line)

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        with self._lock:
            if self.returncode is None:
                self.returncode = self._read(timeout)
                self._report.close()
            return self.returncode

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Preloaded:
    """The process that commands are forked from; started at the first of them, ended with the process that made it."""

    def __init__(self) -> None:
        self._door: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def can_start(self, environment: Mapping[str, str]) -> bool:
        """Return true when a fork does the same as a start would."""
        if environment.get("LANG") != _ENVIRONMENT["LANG"] or not _can_show():
            return False
        return not any(name.startswith(_AT_START) for name in environment)

    def start(
        self,
        argv: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        streams: tuple[int, int, int],
        constants: Mapping[str, float] | Mapping[str, str] | None = None,
    ) -> ForkedProcess:
        """Fork a command with these descriptors as its stdin, stdout and stderr.

        `constants` are values for constants of modules, by their full names, such as bounds that hold on a machine at
        rest.
        """
        reader, writer = os.pipe()
        asked = json.dumps(
            {
                "argv": list(argv),
                "folder": str(folder),
                "env": dict(environment),
                "constants": constants or {},
            }
        )
        try:
            with self._lock:
                if self._door is None:
                    self._door = self._begin()
                socket.send_fds(self._door, [asked.encode()], [*streams, writer])
        finally:
            os.close(writer)
        return ForkedProcess(reader)

    def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = "import sys; from steadyhand.testing.preloaded import main; main(int(sys.argv[1]))"
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-P", "-c", words, str(theirs.fileno())],
                env=_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return ours


@functools.cache
def _can_show() -> bool:
    """Return true when this kernel lets a process set what /proc shows of it."""
    size = ctypes.c_uint(0)
    asked = ctypes.c_ulong(_PR_SET_MM_MAP_SIZE), ctypes.byref(size)
    return bool(_LIBC.prctl(_PR_SET_MM, *asked, *_ZEROS[:2]) == 0)


# --- over there ------------------------------------------------------------------------------------


def main(number: int) -> None:
    """Import what a command imports, fork for each message on the socket, and end with the socket."""
    for name in _MODULES:
        importlib.import_module(name)
    new_databases = importlib.import_module("steadyhand.testing.new_databases")
    new_databases.copy_new_databases()
    new_databases.migrated_database()  # here, once for all of them
    gc.collect()
    gc.freeze()  # a service does so, too, once it is up: here it is done once for all of them
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    door = socket.socket(fileno=number)
    while True:
        asked, descriptors, _, _ = socket.recv_fds(door, _MOST_BYTES, 4)
        if not asked:
            return
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    door.close()
    *streams, report = descriptors
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child != 0:
        _wait_for(child, streams, report)
    os.close(report)
    given = json.loads(asked)
    _become(given["argv"], given["folder"], given["env"], streams)
    for name, value in given["constants"].items():
        module, _, constant = name.rpartition(".")
        found = importlib.import_module(module)
        getattr(found, constant)  # raises `AttributeError` for a constant that has another name now
        setattr(found, constant, value)
    importlib.import_module("steadyhand.cli").main()


def _wait_for(child: int, streams: Sequence[int], report: int) -> None:
    for descriptor in streams:
        os.close(descriptor)
    os.setsid()
    os.write(report, f"{child:<16}".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        os.write(report, f"{code:<16}".encode())
    finally:
        os._exit(0)


def _become(argv: list[str], folder: str, environment: dict[str, str], streams: Sequence[int]) -> None:
    """Make this process one that looks as if it had been started so."""
    os.setsid()
    os.chdir(folder)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    _open_streams()
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # it may have been found by the environment of before
    sys.argv[:] = argv
    _LIBC.prctl(_PR_SET_NAME, ctypes.c_char_p(os.fsencode(Path(argv[0]).name)), *_ZEROS)
    _show([_interpreter_of(Path(argv[0])), *argv], [f"{name}={value}" for name, value in environment.items()])


def _interpreter_of(script: Path) -> str:
    """Return the program that would run a script: a test may run by another name of it."""
    with script.open(encoding="utf-8") as file:
        line = file.readline()
    return line.removeprefix("#!").strip() if line.startswith("#!") and "python" in line else sys.executable


def _open_streams() -> None:
    """Create `sys.stdin`, `sys.stdout` and `sys.stderr` as an interpreter does: by the line to a terminal."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        before = getattr(sys, name)
        stream = open(  # noqa: SIM115  # it lasts as long as the process
            number,
            mode,
            buffering=1 if name == "stderr" else -1,
            encoding=before.encoding,
            errors=before.errors,
            newline="\n",
            closefd=False,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _show(words: Sequence[str], variables: Sequence[str]) -> None:
    """Let /proc show these as the command line and the environment of this process. Raises `OSError`."""
    after_name = Path("/proc/self/stat").read_text("ascii").rpartition(")")[2].split()
    field = {number: int(text) for number, text in enumerate(after_name[1:], 4)}
    code, data = (field[26], field[27]), (field[45], field[46])
    addresses = [*code, *data, field[47], _LIBC.sbrk(0), field[28], *_kept(words), *_kept(variables)]
    layout = struct.pack("11QQII", *addresses, 0, 0, _NO_FILE)
    asked = ctypes.c_ulong(_PR_SET_MM_MAP), ctypes.c_char_p(layout), ctypes.c_ulong(len(layout))
    if _LIBC.prctl(_PR_SET_MM, *asked, ctypes.c_ulong(0)) != 0:
        raise OSError(ctypes.get_errno(), "the process cannot be shown as it should be")


def _kept(texts: Sequence[str]) -> tuple[int, int]:
    """Return the first address and the one after the last of these texts, in memory that stays."""
    data = b"".join(os.fsencode(text) + b"\0" for text in texts)
    _SHOWN.append(ctypes.create_string_buffer(data, len(data)))
    first = ctypes.addressof(_SHOWN[-1])
    return first, first + len(data)
