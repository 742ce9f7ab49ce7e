"""A private Postgres for tests and measurements: Debian's server, started by its binaries.

It has a data directory, a Unix socket and a port of loopback of its own, and a password that is made up at its start.
As root it runs as the user of Debian's package. It ends with the process that started it, however that one ends. A
test gets a database of its own, a copy of a template.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from steadyhand.testing.cli import SYSTEM_PATH
from steadyhand.testing.reserved_port import ReservedPort
from steadyhand.text_lines import split_lines

USER: Final = "steadyhand"
_OLDEST_VERSION: Final = 15
_INSTALLED_IN = Path("/usr/lib/postgresql")
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
_PAUSE_SECONDS = 0.01
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_SETTINGS = {
    "listen_addresses": "'127.0.0.1'",
    "max_connections": "300",
    "shared_buffers": "'32MB'",
    "autovacuum_naptime": "'10s'",
    "log_min_messages": "warning",
    "log_line_prefix": "'%m [%p] %d '",
    "timezone": "'UTC'",
    "log_timezone": "'UTC'",
}
_UNSAFE_SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "'256MB'"}
"""Nothing of a test outlives the machine: writes need not reach the disk."""


class PostgresMissing(RuntimeError):
    """No server is installed."""

    def __init__(self) -> None:
        super().__init__(
            f"These tests need Postgres {_OLDEST_VERSION} or newer. As root, `make test` installs it; "
            "else: sudo apt-get install postgresql"
        )


def find_binaries() -> Path:
    """Return the directory of the newest installed server's binaries. Raise `PostgresMissing` if there is none."""
    found = [
        (int(path.parent.parent.name), path.parent)
        for path in _INSTALLED_IN.glob("*/bin/initdb")
        if path.parent.parent.name.isdigit()
    ]
    version, directory = max(found, default=(0, Path()))
    if version < _OLDEST_VERSION:
        raise PostgresMissing
    return directory


class Postgres:
    """One server with its data directory, which is a new one below `parent`.

    It keeps what it commits if `is_durable`, as in production; else a crash of the machine may lose it, and a test
    takes less time. A server that is killed or restarted keeps all that it committed either way.
    """

    def __init__(self, parent: Path | None = None, *, is_durable: bool = False) -> None:
        self._binaries = find_binaries()
        self._account = _unprivileged_account()
        self._is_durable = is_durable
        self._root = Path(tempfile.mkdtemp(prefix="pg-", dir=parent))
        self._root.chmod(0o755)
        self.data_directory = self._root / "data"
        self.log_path = self._root / "log"
        self.password = secrets.token_hex(16)
        self._port = ReservedPort()
        self.port = self._port.number
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- its life --------------------------------------------------------------------------

    def start(self) -> Self:
        """Start the server and return once it answers; a first start creates its data."""
        if not self.data_directory.exists():
            self._create()
        log_begin = self.log_path.stat().st_size if self.log_path.exists() else 0
        # The kernel ends a child with the thread that started it, and only the main one lives as long as the process.
        is_main = threading.current_thread() is threading.main_thread()
        before_exec = _end_with_parent if is_main else None
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(  # its end is that of this object
                [str(self._binaries / "postgres"), "-D", str(self.data_directory), "-p", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal is for the tests, which stop it themselves
                preexec_fn=before_exec,  # noqa: PLW1509  # one system call and nothing else
                **self._as_account(),
            )
        self._wait_until_ready(log_begin)
        return self

    @property
    def pid(self) -> int:
        """The pid of the server's first process."""
        return self._running().pid

    def stop(self, signal_number: int = signal.SIGINT) -> None:
        """Stop the server: clients are cut off and their transactions are rolled back. `SIGQUIT` is like a crash."""
        process = self._running()
        process.send_signal(signal_number)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            process.wait(_STOP_SECONDS)
        self._process = None

    def restart(self, signal_number: int = signal.SIGINT) -> None:
        """Stop the server and start it again on the same port."""
        self.stop(signal_number)
        self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze all processes of the server for the length of the block; what they get waits in the kernel."""
        pids = [self.pid]
        os.kill(self.pid, signal.SIGSTOP)  # first: it starts no more of them
        try:
            for pid in _children_of(self.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    pids.append(pid)
            yield
        finally:
            for pid in reversed(pids):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """Stop the server and remove its data."""
        if self._process is not None:
            self.stop(signal.SIGQUIT)
        self._port.close()
        shutil.rmtree(self._root, ignore_errors=True)

    def log(self) -> str:
        """Return the server's log."""
        return self.log_path.read_text("utf-8", "replace")

    # --- its databases ---------------------------------------------------------------------

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database."""
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement outside of a transaction and return its rows."""
        import psycopg  # noqa: PLC0415  # only tests with Postgres need it

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def create_database(self, template: str = "template0") -> str:
        """Create a database, a copy of a template to which nobody is connected, and return its name."""
        name = f"test_{next(self._numbers)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database and cut off its clients."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    # --- within ----------------------------------------------------------------------------

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("this Postgres does not run")
        return self._process

    def _as_account(self) -> dict[str, Any]:
        environment = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        if self._account is None:
            return {"env": environment, "cwd": "/"}
        account = self._account
        return {
            "env": environment,
            "cwd": "/",
            "user": account.pw_uid,
            "group": account.pw_gid,
            "extra_groups": [],
        }

    def _create(self) -> None:
        if self._account is not None:
            os.chown(self._root, self._account.pw_uid, self._account.pw_gid)
        password_file = self._root / "password"
        password_file.write_text(self.password + "\n", encoding="ascii")
        password_file.chmod(0o600)
        if self._account is not None:
            os.chown(password_file, self._account.pw_uid, self._account.pw_gid)
        arguments = ["-D", str(self.data_directory), "-U", USER, f"--pwfile={password_file}"]
        arguments += [
            "-A",
            "scram-sha-256",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
            "--no-instructions",
        ]
        created = subprocess.run(
            [str(self._binaries / "initdb"), *arguments],
            capture_output=True,
            text=True,
            timeout=_START_SECONDS,
            check=False,
            **self._as_account(),
        )
        password_file.unlink()
        if created.returncode:
            raise RuntimeError(f"initdb failed: {created.stderr or created.stdout}")
        settings = {**_SETTINGS, "unix_socket_directories": f"'{self._root}'"}
        settings |= {} if self._is_durable else _UNSAFE_SETTINGS
        with (self.data_directory / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())

    def _wait_until_ready(self, log_begin: int) -> None:
        """Wait for the line that the server writes into its data directory once it takes connections."""
        deadline = time.monotonic() + _START_SECONDS
        state = self.data_directory / "postmaster.pid"
        process = self._running()
        while True:
            if process.poll() is not None:
                self._process = None
                told = self.log_path.read_bytes()[log_begin:].decode("utf-8", "replace")
                raise RuntimeError(f"Postgres ended at once: {told}")
            with suppress(OSError):
                lines = split_lines(state.read_text("utf-8"))
                if lines[:1] == [str(process.pid)] and lines[7:8] and lines[7].strip() == "ready":
                    return
            if time.monotonic() > deadline:
                self.close()
                raise RuntimeError("Postgres did not start in time")
            time.sleep(_PAUSE_SECONDS)


def _children_of(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if path.read_text("utf-8", "replace").rpartition(")")[2].split()[1] == str(parent):
                found.append(int(path.parent.name))
    return found


def _unprivileged_account() -> pwd.struct_passwd | None:
    """Return the account to run as, which root needs: Postgres refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise PostgresMissing


def _end_with_parent() -> None:
    # A crash is good enough: the data goes, too.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
