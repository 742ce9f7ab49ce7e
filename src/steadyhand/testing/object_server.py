"""A real object store for tests: `rclone serve s3` over a directory, on the loopback interface."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from steadyhand.testing.live_folders import files_below
from steadyhand.testing.reserved_port import ReservedPort

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_KEY, _SECRET = "steadyhand-tests", "steadyhand-tests-secret"  # of this server alone


class ObjectServer:
    """A server of objects; `folder` has its buckets. It keeps its port when it is started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bucket").mkdir(parents=True)
        self._port = ReservedPort()
        self.port = self._port.number
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of a folder in its bucket."""
        return "s3://bucket/steadyhand"

    @property
    def options(self) -> dict[str, str]:
        """The options with which the store is opened."""
        return {
            "aws_endpoint": f"http://127.0.0.1:{self.port}",
            "aws_access_key_id": _KEY,
            "aws_secret_access_key": _SECRET,
            "aws_region": "us-east-1",
        }

    def objects(self) -> list[Path]:
        """Return the files of the objects."""
        return sorted(files_below(self.folder / "bucket"))

    def start(self) -> None:
        """Start it, and return once it answers."""
        program = Path(sys.executable).with_name("rclone")
        command = [str(program), "serve", "s3", "--addr", f"127.0.0.1:{self.port}"]
        command += ["--auth-key", f"{_KEY},{_SECRET}", "--config", "/dev/null", str(self.folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_SECONDS
        while not self._port.is_served():
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.stop()
                raise RuntimeError("rclone did not start")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it at once, as if its machine had failed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_SECONDS)
            self._process = None

    def close(self) -> None:
        """End it for good."""
        self.stop()
        self._port.close()


@contextlib.contextmanager
def object_server(folder: Path) -> Iterator[ObjectServer]:
    """Run a server of objects for the length of the block."""
    server = ObjectServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.close()
