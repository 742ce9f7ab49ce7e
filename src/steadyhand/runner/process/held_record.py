"""The files of a held run, and the search for runs that an earlier service left.

The folder of a run is `<data-dir>/run/held/<job>-<run>`. It belongs to the service alone and has `record` (JSON: the
run, its supervisor, its secret and the facts that the worker keeps), `control` (the supervisor's socket), `stdout`,
`stderr`, `inputs` and `replies` (what the agent got), `results` (what it is to get), `exit` (the end of the agent),
`settled` if the service kills an agent that has answered, and `left` if a stop of the service left the run. That of a
process that waits for its run has another name and no record.
"""

import contextlib
import json
import marshal
import os
import secrets
import shutil
import socket
import struct
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steadyhand.ports import HoldSpec, OrphanedRun
from steadyhand.runner.process.cgroups import start_ticks
from steadyhand.runner.process.spool import MAX_SPOOL_BYTES

CONNECT_SECONDS = 2.0
"""Seconds for the supervisor of an orphaned run to notice that its service died, and to answer."""
_PAUSE_SECONDS = 0.01
_MAX_STATE_BYTES = 1 << 16
_MAX_DESCRIPTORS = 16
_IDLE = "waiting-"
_NOTES = ("inputs", "replies", "results", "settled")
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


def held_dir(data_dir: Path) -> Path:
    """Return the folder with the folders of held runs."""
    return data_dir / "run" / "held"


def idle_hold(parent: Path, seconds: float, listener: int | None) -> HoldSpec:
    """Return the order for a process that waits for its run: it ends with the service until it has one."""
    return HoldSpec(parent / f"{_IDLE}{uuid.uuid4().hex}", "", 0, seconds, listener)


@dataclass(slots=True)
class Holding:
    """The service's side of a run that it holds: the files, and the descriptors for the supervisor."""

    spec: HoldSpec
    secret: str
    stdout: int
    stderr: int
    _for_supervisor: list[int] = field(default_factory=list)
    _spools_taken: bool = False

    @classmethod
    def create(cls, spec: HoldSpec) -> "Holding":
        """Create the files of a run. Raises `OSError`."""
        folder = spec.folder
        folder.parent.parent.mkdir(mode=0o711, exist_ok=True)
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # of a run that never began
        folder.mkdir(mode=0o700)
        opened: list[int] = []
        try:
            opened += [os.open(folder / name, _NEW, 0o600) for name in ("stdout", "stderr", "exit")]
            with contextlib.closing(_bind_control_socket(folder)) as control:
                opened.append(os.dup(control.fileno()))
            listener = [] if spec.listener is None else [spec.listener]
            stdout, stderr, exit_file, control_fd = opened
            holding = cls(spec, secrets.token_hex(32), stdout, stderr, [control_fd, exit_file, *listener])
        except BaseException:  # whatever it is, no descriptor stays open
            for descriptor in opened:
                os.close(descriptor)
            raise
        return holding

    def descriptors(self, pipes: tuple[int, int, int]) -> tuple[int, ...]:
        """Return the descriptors for the supervisor, with the service's ends of the agent's pipes."""
        return (*pipes, self.stdout, self.stderr, *self._for_supervisor)

    def close_supervisor_end(self) -> None:
        """Close the descriptors that only the supervisor needs, once it has its own copies."""
        for descriptor in self._for_supervisor[:2]:
            os.close(descriptor)
        self._for_supervisor = []

    def take_spools(self) -> tuple[int, int]:
        """Return the files of stdout and stderr, which the caller closes."""
        self._spools_taken = True
        return self.stdout, self.stderr

    def close(self) -> None:
        """Close the descriptors that nobody has taken."""
        self.close_supervisor_end()
        if not self._spools_taken:
            self._spools_taken = True
            os.close(self.stdout)
            os.close(self.stderr)

    def move_to(self, spec: HoldSpec) -> None:
        """Use the files for the run of a process that has waited for it. Raises `OSError`."""
        self.spec.folder.rename(spec.folder)
        self.spec = spec

    def move_away(self) -> None:
        """Let the files be those of no run, which has ended: the record goes first. Raises `OSError`."""
        folder = self.spec.folder
        for name in ("record", "left", *_NOTES):
            (folder / name).unlink(missing_ok=True)
        idle = idle_hold(folder.parent, self.spec.seconds, self.spec.listener)
        folder.rename(idle.folder)
        self.spec = idle

    def to_message(self, first: int) -> dict[str, Any]:
        """Return the order to hold the run as a message to the supervisor."""
        return {
            "first": first,
            "seconds": self.spec.seconds,
            "secret": self.secret.encode(),
            "limit": MAX_SPOOL_BYTES,
        }

    def write_record(self, pid: int, started: int, *, sandboxed: bool) -> bool:
        """Write the record, as one atomic change; return False if it cannot be written."""
        spec = self.spec
        record = {
            "job": spec.job_id,
            "run": spec.run,
            "pid": pid,
            "started": started,
            "secret": self.secret,
            "facts": {**spec.facts, "sandboxed": sandboxed},
        }
        part = spec.folder / "record.part"
        try:
            with os.fdopen(os.open(part, _NEW, 0o600), "w", encoding="utf-8") as file:
                json.dump(record, file)
            part.replace(spec.folder / "record")
        except OSError:
            return False
        return True


def _bind_control_socket(folder: Path) -> socket.socket:
    """Return a bound socket in a folder, by a descriptor of it: the kernel takes 107 bytes of path."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _path_by_descriptor(folder) as path:
            sock.bind(path)
        (folder / "control").chmod(0o600)  # before it listens: until then nobody can connect
    except BaseException:  # whatever it is, no descriptor stays open
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def _path_by_descriptor(folder: Path) -> Iterator[str]:
    dir_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{dir_fd}/control"
    finally:
        os.close(dir_fd)


def open_spools(folder: Path) -> tuple[int, int]:
    """Return the files of a run's stdout and stderr, which the caller closes. Raises `OSError`."""
    stdout = os.open(folder / "stdout", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return stdout, os.open(folder / "stderr", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        os.close(stdout)
        raise


def mark_left(folder: Path) -> bool:
    """Note that a stop of the service leaves the run to the next one; return False if that cannot be noted."""
    try:
        (folder / "left").touch(mode=0o600)
    except OSError:
        return False
    return True


def mark_settled(folder: Path) -> None:
    """Note that the agent of the run has answered and is killed for that: its end is a good one. Raises `OSError`."""
    (folder / "settled").touch(mode=0o600)


def append_note(folder: Path, name: str, text: str) -> None:
    """Append a line to a file of what the run got. Raises `OSError`."""
    with (folder / name).open("a", encoding="utf-8") as file:
        (folder / name).chmod(0o600)
        file.write(text + "\n")


def read_notes(folder: Path, name: str) -> list[str]:
    """Return the lines of such a file, without one that was half written."""
    try:
        lines = (folder / name).read_text("utf-8", errors="replace").split("\n")
    except OSError:
        return []
    return lines[:-1]


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Keep results for a run, as one atomic change. Raises `OSError`."""
    part = folder / "results.part"
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, _NEW, 0o600), "w", encoding="utf-8") as file:
        json.dump(dict(results), file)
    part.replace(folder / "results")


def read_results(folder: Path) -> Mapping[str, Any]:
    """Return the results that were kept for a run; empty without any."""
    try:
        results = json.loads((folder / "results").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return results if isinstance(results, dict) else {}


def remove_record(folder: Path) -> None:
    """Remove the files of a run that is held no more. The record goes first."""
    with contextlib.suppress(OSError):
        (folder / "record").unlink()
    shutil.rmtree(folder, ignore_errors=True)


# --- the next service --------------------------------------------------------------------------


def find_orphaned_runs(data_dir: Path, on_lost: Callable[[str, str, bool], None]) -> list[OrphanedRun]:
    """Return the runs that an earlier service left and that can be taken up. Remove the files of all others. Blocks.

    `on_lost` is called with the name of the folder of each other one, with the reason, and with True if a stop of the
    service left it.
    """
    found = []
    folder = held_dir(data_dir)
    for each in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            found.append(_take_up(each))
            (each / "left").unlink(missing_ok=True)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            on_lost(each.name, str(error) or type(error).__name__, (each / "left").exists())
            remove_record(each)
    return found


def _take_up(folder: Path) -> OrphanedRun:
    record = json.loads((folder / "record").read_text("utf-8"))
    orphan = OrphanedRun(
        folder,
        str(record["job"]),
        int(record["run"]),
        dict(record["facts"]),
        int(record["pid"]),
        int(record["started"]),
    )
    if start_ticks(orphan.pid) == orphan.started and _connect(orphan, str(record["secret"]).encode()):
        return orphan
    # It has ended, perhaps only now; without its end it was killed, or had to be.
    ended = (folder / "exit").read_bytes()
    if not ended:
        raise ValueError("it ended with its service")
    orphan.exit = marshal.loads(ended)  # noqa: S302  # from our own supervisor, in a file that only we can write
    if (folder / "settled").exists():
        orphan.exit = {**orphan.exit, "exited": 0, "signal": None}
    return orphan


def _connect(orphan: OrphanedRun, secret: bytes) -> bool:
    """Connect to the supervisor of a run and receive its descriptors; return False if it has ended meanwhile."""
    until = time.monotonic() + CONNECT_SECONDS
    while start_ticks(orphan.pid) == orphan.started:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(CONNECT_SECONDS)
        try:
            with _path_by_descriptor(orphan.folder) as path:
                connection.connect(path)
            _receive_state(orphan, connection, secret)
        except ConnectionError:  # it does not listen yet, or has ended
            connection.close()
            if time.monotonic() > until:
                raise
            time.sleep(_PAUSE_SECONDS)
            continue
        except BaseException:  # whatever it is, no descriptor stays open
            connection.close()
            raise
        return True
    return False


def _receive_state(orphan: OrphanedRun, connection: socket.socket, secret: bytes) -> None:
    """Prove this service to the supervisor of a run, check that it is the one of the record, and take what it sends."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    if struct.unpack("3i", credentials)[0] != orphan.pid:  # the kernel notes who listens
        raise PermissionError("another process listens in its place")
    connection.sendall(secret)
    data, descriptors, _, _ = socket.recv_fds(
        connection, _MAX_STATE_BYTES, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
    )
    if not data:
        raise ConnectionResetError("it did not answer")
    state = marshal.loads(data[4:])  # noqa: S302  # from our own supervisor: its pid was compared
    stdin, stdout, stderr, *sockets = descriptors
    orphan.pipes = stdin, stdout, stderr
    if state["gateway"]:
        orphan.gateway_listener = socket.socket(fileno=sockets.pop(0))
    orphan.sandbox_listeners = tuple(sockets)
    orphan.input_open = bool(state["input_open"])
    orphan.containment, orphan.groups = str(state["means"]), tuple(map(str, state["groups"]))
    orphan.connection = connection
