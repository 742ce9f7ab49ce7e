"""A real service for tests: `steadyhand serve` as a process of its own, in an environment made from nothing.

It listens on a free port of loopback, keeps everything in one directory, and runs the agent it is given. Only
processes that were started here are ended, by their pid.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

import httpx2

from steadyhand.testing.cli import DUMMY_API_KEY, SYSTEM_PATH, require_loopback
from steadyhand.testing.preloaded import Preloaded, Process

T = TypeVar("T")

ADMIN_KEY = "sh-test-key-with-every-scope"
CLASSIC_KEY = "sh-test-key-of-a-classic-caller"
CREDENTIAL_VARIABLES = frozenset({"ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_API_KEY_FILE"})
UNUSED_MODEL_URL = "http://127.0.0.1:9"
"""An address where nothing listens: the stand-in needs no model."""
START_SECONDS = 30.0
STOP_SECONDS = 60.0
_CLOSE_WAITS = (0.2, 1.0, *(2.0,) * 10)
"""The waits for the end of a service that is closed; before each it gets a signal."""
UIDS_PER_SERVICE = 20
"""The number of user ids that one service may use for its agents."""
_URL_PATTERN = re.compile(r"http://127\.0\.0\.1:\d+")
_ENDED_STATES = frozenset({"completed", "failed", "timeout", "cancelled", "interrupted", "error"})
PLAIN_HTTP = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients that only ask on loopback, without TLS: reading the machine's certificates takes longer than a test."""
_LONGEST_PAUSE = 0.15
LOG_TAIL_BYTES = 8_000
"""The bytes of a log that the message about a failure has."""
_service_numbers = itertools.count()


def wait_until(condition: Callable[[], T | None], seconds: float = 20.0, *, interval: float = 0.02) -> T:
    """Return the first true value of `what`; raises TimeoutError when none came within so many seconds.

    The longer it takes, the longer are the pauses, up to `_LONGEST_PAUSE`: looking costs processor time on both sides.
    """
    began = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - began
        if waited > seconds:
            raise TimeoutError(f"nothing came within {seconds} s")
        time.sleep(max(interval, min(waited / 10, _LONGEST_PAUSE)))


def run_git(folder: Path, *arguments: str) -> str:
    """Run git in a folder as its owner, free of anybody's configuration, and give what it printed."""
    identity = {
        f"GIT_{role}_{what}": "test@example.org"
        for role in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    owner = folder.stat().st_uid
    result = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={"PATH": SYSTEM_PATH, "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", **identity},
        user=owner if owner != os.geteuid() else None,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return result.stdout.strip()


class Service:
    """One service and its directory `root`, which has to exist and be traversable for any user.

    `claude` is the agent: set in the settings, or, in the classic profile, put on PATH. `env` and `config` (the
    text of `steadyhand.toml`) and `arguments` of `command` are added to what a service needs; a value of None takes a
    variable away. `constants` are bounds of waits that a busy machine may need longer, by their full names; only a
    service that is forked has them.
    """

    reattach_seconds: ClassVar[float | None] = None
    """Overrides the default of that setting; the configuration of a service goes first."""
    preloaded: ClassVar[Preloaded | None] = None
    """The process that services are forked from; without one each is started as `steadyhand serve`."""

    def __init__(
        self,
        root: Path,
        claude: Path,
        *,
        classic: bool = False,
        env: Mapping[str, str | None] | None = None,
        config: str = "",
        model: str = UNUSED_MODEL_URL,
        arguments: Sequence[str] = (),
        constants: Mapping[str, float] | None = None,
        command: str = "serve",
    ) -> None:
        self.root = root
        self._constants = dict(constants or {})
        self.classic = classic
        self.data_dir = root / "data"
        self.home = root / "home"
        self.log_path = root / "service.log"
        self.uid_base = (
            100_000 + (os.getpid() % 10_000) * 1_000 + (next(_service_numbers) % 50) * UIDS_PER_SERVICE
        )
        self.url = ""
        self._bin = root / "bin"
        self._claude = claude
        self._model = model
        self._arguments = [command, *arguments]
        self._env = dict(env or {})
        self._process: Process | None = None
        self._http: httpx2.Client | None = None
        self._log_offset = 0
        for folder in (self._bin, self.home):
            folder.mkdir(exist_ok=True)
        if classic:
            (self._bin / "claude").symlink_to(claude)
        self.give_to_agent(self.home)
        self.config_path = root / "steadyhand.toml"
        self.config_path.write_text(config, encoding="utf-8")

    # --- its life --------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def environment(self) -> dict[str, str]:
        """Return the environment of the service; nothing of this process's own goes in.

        Raises ConfigError for one with which a model beyond loopback could be reached.
        """
        defaults: dict[str, str | None] = {
            "PATH": f"{self._bin}:{SYSTEM_PATH}",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "ANTHROPIC_API_KEY": DUMMY_API_KEY,
            "ANTHROPIC_BASE_URL": self._model,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_TELEMETRY": "1",
            "API_BEARER_TOKEN": CLASSIC_KEY,
            "STEADYHAND_API_KEY": ADMIN_KEY,
            "STEADYHAND_DATA_DIR": str(self.data_dir),
            "STEADYHAND_CONFIG": str(self.config_path),
            "STEADYHAND_SERVER__PORT": "0",
            "STEADYHAND_SERVICE__AGENT_UID_BASE": str(self.uid_base),
        }
        if self.reattach_seconds is not None and "reattach_seconds" not in self.config_path.read_text(
            "utf-8"
        ):
            defaults["STEADYHAND_SERVICE__REATTACH_SECONDS"] = str(self.reattach_seconds)
        if self.classic:
            defaults["STEADYHAND_PROFILE"] = "classic"
        else:
            defaults["STEADYHAND_RUNNER__CLAUDE__PATH"] = str(self._claude)
        environment = {name: value for name, value in {**defaults, **self._env}.items() if value is not None}
        if "ANTHROPIC_BASE_URL" in environment or CREDENTIAL_VARIABLES & set(environment):
            require_loopback(environment.get("ANTHROPIC_BASE_URL", "the model's own address"))
        return environment

    def spawn(self, *more: str) -> Process:
        """Start the process, with more arguments, and wait for nothing; `start` is what most callers want."""
        self._log_offset = self.log_path.stat().st_size if self.log_path.exists() else 0
        argv = [str(Path(sys.executable).parent / "steadyhand"), *self._arguments, *more]
        environment = self.environment()
        with self.log_path.open("ab") as log, Path(os.devnull).open("rb") as nothing:
            if self.preloaded is not None and self.preloaded.can_start(environment):
                streams = nothing.fileno(), log.fileno(), log.fileno()
                self._process = self.preloaded.start(argv, self.root, environment, streams, self._constants)
            else:
                self._process = subprocess.Popen(
                    argv,
                    cwd=self.root,
                    env=environment,
                    stdin=nothing,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        return self._process

    def start(self) -> Self:
        """Start it and wait until it answers; raises RuntimeError with its log when it does not."""
        self._close_client()  # the port is another one each time
        self.spawn()
        self._wait_until_ready()
        return self

    def replace(self, seconds: float = STOP_SECONDS) -> int:
        """Start the next service, which takes the place of this one; return the exit code of this one.

        The client and its connections stay: they are handed over.
        """
        earlier = self.process
        successor = self.spawn("--replace")
        try:
            code = earlier.wait(seconds)
        except subprocess.TimeoutExpired:
            successor.kill()
            self._process = earlier
            raise
        self._wait_until_ready()
        return code

    def _wait_until_ready(self) -> None:
        process = self.process

        def is_ready() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"the service ended with {process.returncode}:\n{self.log_tail()}")
            match = _URL_PATTERN.search(self.log_since_start)
            if match is None:
                return False
            self.url = match[0]
            try:
                answer = httpx2.get(f"{self.url}/livez", timeout=5, trust_env=False, verify=PLAIN_HTTP)
            except httpx2.TransportError:
                return False
            return answer.status_code == 200  # noqa: PLR2004

        try:
            wait_until(is_ready, START_SECONDS)
        except TimeoutError as error:
            self.kill()
            raise RuntimeError(f"the service did not answer:\n{self.log_tail()}") from error

    @property
    def process(self) -> Process:
        """The process of this start."""
        if self._process is None:
            raise RuntimeError("the service was not started")
        return self._process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def terminate(self, seconds: float = STOP_SECONDS) -> int:
        """Send SIGTERM and give the exit code; raises subprocess.TimeoutExpired when it does not end in time."""
        self._close_client()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """Kill it as a crash would."""
        self._close_client()
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    def restart(self) -> Self:
        """Start it again on the same directory."""
        return self.start()

    def close(self) -> None:
        """End it if it is still there, at once."""
        self._close_client()
        if self._process is not None and self._process.poll() is None:
            for (
                seconds
            ) in _CLOSE_WAITS:  # two signals that arrive together are one, which starts a grace period
                with suppress(ProcessLookupError):  # it has just ended
                    self.process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(seconds)
                    return
            self.process.kill()
            self.process.wait(STOP_SECONDS)

    def _close_client(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None

    # --- looking at it ---------------------------------------------------------------------

    @property
    def log(self) -> str:
        """All that it wrote to stdout and stderr, over all its starts."""
        return self.log_path.read_text("utf-8", errors="replace")

    @property
    def log_since_start(self) -> str:
        """Return the log since the last start."""
        return self.log_path.read_bytes()[self._log_offset :].decode("utf-8", errors="replace")

    def log_tail(self) -> str:
        """Return the last lines of the log; empty before the first start."""
        data = self.log.encode() if self.log_path.exists() else b""
        tail = data[-LOG_TAIL_BYTES:]
        return (tail if tail == data else tail.partition(b"\n")[2]).decode("utf-8", "replace")

    def describe_end(self) -> str:
        """Return whether it runs, and the last lines of its log."""
        code = None if self._process is None else self._process.poll()
        state = (
            "was not started" if self._process is None else "runs" if code is None else f"ended with {code}"
        )
        return f"It {state}. The end of its log:\n{self.log_tail()}"

    @property
    def resident_bytes(self) -> int:
        """The memory it holds, in bytes, with what of it was swapped out."""
        status = Path(f"/proc/{self.pid}/status").read_text("ascii", errors="replace")
        found = re.findall(r"(?:VmRSS|VmSwap):\s+(\d+) kB", status)
        if not found:
            raise RuntimeError("the service is gone")
        return sum(map(int, found)) * 1024

    def live_agent_pids(self) -> list[int]:
        """Return the pids of its agents and of their leftovers, zombies apart; supervisors count too."""
        mark = os.fsencode(str(self._bin))
        own = self.process.pid if self.process.poll() is None else None
        pids = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == own:
                continue
            try:
                uid = folder.stat().st_uid
                marked = mark in (folder / "environ").read_bytes()
                theirs = os.geteuid() == 0 and self.uid_base <= uid < self.uid_base + UIDS_PER_SERVICE
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if (marked or theirs) and state != "Z":
                pids.append(int(folder.name))
        return pids

    def give_to_agent(self, path: Path) -> None:
        """Hand a path and all in it to the first agent's user, when there is a choice."""
        if os.geteuid() == 0:
            for one in (path, *path.rglob("*")):
                os.chown(one, self.uid_base, self.uid_base, follow_symlinks=False)

    # --- talking to it ---------------------------------------------------------------------

    @property
    def client(self) -> httpx2.Client:
        """A client with the key that may do everything; for one thread."""
        if self._http is None:
            self._http = self.new_client(ADMIN_KEY)
        return self._http

    def new_client(self, token: str | None = ADMIN_KEY) -> httpx2.Client:
        """Return another client, with this key or none."""
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return httpx2.Client(
            base_url=self.url, headers=headers, timeout=75, trust_env=False, verify=PLAIN_HTTP
        )

    def submit(self, prompt: str, **fields: Any) -> dict[str, Any]:
        """Ask for a job by the native route and give it as accepted; without a workspace unless one is named."""
        body = {"prompt": prompt, "workspace": "scratch", **fields}
        answer = self.client.post("/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text  # noqa: S101, PLR2004  # a test's expectation
        return dict(answer.json())

    def get_job(self, job_id: str) -> dict[str, Any]:
        """Return a job in its current state."""
        answer = self.client.get(f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text  # noqa: S101, PLR2004  # a test's expectation
        return dict(answer.json())

    def wait_until_ended(self, job_id: str, seconds: float = 30.0) -> dict[str, Any]:
        """Return a job once it has ended; raises TimeoutError."""

        def look() -> dict[str, Any] | None:
            job = self.get_job(job_id)
            return job if job["state"] in _ENDED_STATES else None

        return wait_until(look, seconds)

    def run_job(self, prompt: str, **fields: Any) -> dict[str, Any]:
        """Ask for a job and give it once it has ended."""
        return self.wait_until_ended(self.submit(prompt, **fields)["id"])

    def events(self, job_id: str, after: int = 0) -> list[dict[str, Any]]:
        """Return all stored events of a job, by pages of JSON."""
        events: list[dict[str, Any]] = []
        while True:
            answer = self.client.get(
                f"/v1/jobs/{job_id}/events", params={"after": after}, headers={"accept": "application/json"}
            )
            assert answer.status_code == 200, answer.text  # noqa: S101, PLR2004  # a test's expectation
            page = answer.json()
            events += page["data"]
            if not page["has_more"]:
                return events
            after = events[-1]["seq"]

    def execute_classic(self, prompt: str, agent: str = "claude", **fields: Any) -> dict[str, Any]:
        """Ask for a job by the classic route, as its callers do, and give the answer's body."""
        answer = self.client.post("/execute", json={"prompt": prompt, "agent": agent, **fields})
        assert answer.status_code == 202, answer.text  # noqa: S101, PLR2004  # a test's expectation
        return dict(answer.json())

    def poll_classic(self, job_id: str, seconds: float = 30.0) -> dict[str, Any]:
        """Do as the classic callers do: ask until the status is anything but `running`."""

        def look() -> dict[str, Any] | None:
            answer = self.client.get(f"/jobs/{job_id}")
            assert answer.status_code == 200, answer.text  # noqa: S101, PLR2004  # a test's expectation
            job: dict[str, Any] = answer.json()
            return job if job["status"] != "running" else None

        return wait_until(look, seconds)


MakeService = Callable[..., Service]
"""Makes a service that was not started; keywords are those of `Service`."""
