"""Runs an image as a compose file says, without an engine: the same namespaces, user, capabilities and masks."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from tests.container.image_builder import PATH, Image, enter_command

from steadyhand.testing.service import wait_until

MASKED = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""What Docker covers, and what it makes read-only, unless told otherwise by `systempaths=unconfined`."""
_KNOWN = {
    "build", "image", "init", "environment", "ports", "volumes", "security_opt", "cap_drop", "pids_limit",
    "stop_grace_period", "restart", "command", "depends_on", "read_only", "tmpfs",
}  # fmt: skip
_OPTIONS = {"seccomp:unconfined", "apparmor:unconfined", "systempaths=unconfined", "no-new-privileges:true"}
_SECONDS = re.compile(r"([0-9]+)s")


@dataclass(frozen=True, slots=True)
class ComposeService:
    """One service of a compose file, as far as it can be carried out here; what is not known fails."""

    environment: dict[str, str]
    options: frozenset[str]
    volume: str
    published: tuple[str, int, int] | None
    """The address and port on the machine, and the port inside."""
    grace_seconds: int
    command: tuple[str, ...] = ()
    """The words in place of the image's command, if there are any."""
    read_only: bool = False
    """True if the root is read-only; `tmpfs` are the directories of memory in it."""
    tmpfs: tuple[str, ...] = ()
    binds: tuple[tuple[str, str], ...] = ()
    """Files beside the compose file, and their paths inside."""

    @classmethod
    def read(cls, file: Path, variables: dict[str, str], name: str = "steadyhand") -> Self:
        """Read a service of a compose file; `variables` are those of the shell that starts it."""
        document = yaml.safe_load(file.read_text("utf-8"))
        assert {each for each in document if not each.startswith("x-")} == {"services", "volumes"}
        service: dict[str, Any] = document["services"][name]
        assert set(service) <= _KNOWN, set(service) - _KNOWN
        assert (service["init"], service["cap_drop"]) == (True, ["ALL"])
        assert (file.parent / service["build"]).resolve() == Path(__file__).parents[2]
        assert set(service["security_opt"]) <= _OPTIONS
        volume, *mounts = service["volumes"]
        volume_name, _, target = volume.partition(":")
        assert volume_name in document["volumes"]
        assert all(mount["type"] == "bind" and mount["read_only"] is True for mount in mounts)
        grace = _SECONDS.fullmatch(service["stop_grace_period"])
        assert grace is not None
        return cls(
            {key: _substitute(str(value), variables) for key, value in service["environment"].items()},
            frozenset(service["security_opt"]),
            target,
            _published(service.get("ports", [])),
            int(grace[1]),
            tuple(service.get("command", ())),
            service.get("read_only", False),
            tuple(service.get("tmpfs", ())),
            tuple((mount["source"], mount["target"]) for mount in mounts),
        )

    def without(self, option: str) -> "ComposeService":
        """Give the same with one option of the engine left out."""
        assert option in self.options
        return replace(self, options=self.options - {option})


def _published(ports: Sequence[str]) -> tuple[str, int, int] | None:
    if not ports:
        return None
    (port,) = ports
    address, outside, inside = port.split(":")
    return address, int(outside), int(inside)


def _substitute(value: str, variables: dict[str, str]) -> str:
    """Replace `${NAME:-default}` and `${NAME:?reason}`; the second one must be set."""

    def found(match: re.Match[str]) -> str:
        if match[2] == "?":
            return variables[match[1]]
        return variables.get(match[1]) or match[3]

    return re.sub(r"\$\{(\w+):([-?])([^}]*)\}", found, value)


class Container:
    """An image that runs as a service says, in namespaces of its own; `more` is added to its environment.

    `binds` are paths of this machine, and those that they have inside.
    """

    def __init__(
        self,
        image: Image,
        service: ComposeService,
        scratch: Path,
        *,
        binds: Sequence[tuple[Path, str]] = (),
        **more: str,
    ) -> None:
        self._image = image
        self._service = service
        self._binds = [(str(source), target) for source, target in binds]
        self._area = Path(tempfile.mkdtemp(prefix="run-", dir=scratch))
        for name in ("root", "upper", "work", "data"):
            (self._area / name).mkdir(mode=0o755)
        uid, gid = image.stage.user
        os.chown(
            self._area / "data", uid, gid
        )  # as the folder in the image is, from which an engine fills a new volume
        home = str(Path(image.stage.folder))
        self._env = {"PATH": PATH, "HOME": home, **image.stage.env, **service.environment, **more}
        self._log = self._area / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._others: list[subprocess.Popen[bytes]] = []

    def give_data_to_group(self) -> None:
        """Let the volume belong to root and be open to the image's group, as Kubernetes leaves it."""
        os.chown(self._area / "data", 0, self._image.stage.user[1])
        (self._area / "data").chmod(0o2775)

    def __enter__(self) -> Self:
        masks = "systempaths=unconfined" not in self._service.options
        spec: dict[str, object] = {
            "root": str(self._area / "root"), "lower": self._image.layers, "upper": str(self._area / "upper"),
            "work": str(self._area / "work"), "binds": [(str(self._area / "data"), self._service.volume), *self._binds],
            "read_only_root": self._service.read_only, "tmpfs": self._service.tmpfs,
            "masked": MASKED if masks else (), "read_only": READ_ONLY if masks else (), "alone": True, "init": True,
            "folder": self._image.stage.folder, "env": self._env,
            "argv": [*self._as_user(), *self._image.stage.entrypoint,
                     *(self._service.command or self._image.stage.command)],
        }  # fmt: skip
        words = enter_command(spec, "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={"PATH": PATH}
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (*self._others, self.process):
            process.kill()  # with the first process of its pid namespace all that is in it goes
            process.wait(30)
        shutil.rmtree(self._area)

    def _as_user(self) -> list[str]:
        """Give the words that make the next ones run as the image's user, without any capability."""
        uid, gid = self._image.stage.user
        words = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--inh-caps=-all"]
        words += ["--bounding-set=-all"]
        return [*words, *(["--no-new-privs"] if "no-new-privileges:true" in self._service.options else [])]

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """What holds the namespaces."""
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        """All that it printed."""
        return self._log.read_text("utf-8", "replace")

    @property
    def init_pid(self) -> int:
        """The pid of its process 1 as this machine sees it."""
        file = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")

        def look() -> str | None:
            return file.read_text("ascii").strip() or None

        return int(wait_until(look))

    def _inside(self, words: tuple[str, ...]) -> list[str]:
        enter = [
            "nsenter",
            "--target",
            str(self.init_pid),
            "--mount",
            "--pid",
            "--net",
            "--uts",
            "--ipc",
            "--cgroup",
        ]
        return ["setpriv", "--pdeathsig", "KILL", *enter, "--", *self._as_user(), *words]

    def execute(self, *words: str, seconds: float = 60) -> "subprocess.CompletedProcess[str]":
        """Run a command in it, as `exec` of an engine does."""
        return subprocess.run(
            self._inside(words), env=self._env, capture_output=True, text=True, timeout=seconds, check=False
        )

    def background(self, *words: str) -> "subprocess.Popen[bytes]":
        """The same for a command that goes on; it ends with the container."""
        process = subprocess.Popen(self._inside(words), env=self._env, stdout=subprocess.PIPE)
        self._others.append(process)
        return process

    def healthy(self, more_seconds: float = 0) -> None:
        """Wait until the image's own check says that it is well; fails when that takes longer than it may."""
        options = self._image.stage.health_options
        allowed = more_seconds + int(options["start-period"].removesuffix("s"))
        allowed += int(options["interval"].removesuffix("s")) * int(options["retries"])

        def well() -> bool:
            assert self.process.poll() is None, self.log
            return self.execute(*self._image.stage.health).returncode == 0

        try:
            wait_until(well, allowed, interval=1.0)
        except TimeoutError as error:
            raise AssertionError(f"it is not healthy:\n{self.log}") from error

    def stop(self) -> int:
        """Stop it as an engine does, and give its exit code; fails when the grace period does not do."""
        os.kill(self.init_pid, signal.SIGTERM)
        began = time.monotonic()
        code = self.process.wait(self._service.grace_seconds)
        assert time.monotonic() - began < self._service.grace_seconds
        return code
