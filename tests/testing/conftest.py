"""A small world for one agent: a home, a working directory, an unprivileged user, and ways to run an agent in it."""

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from steadyhand.testing.cli import isolated_env
from steadyhand.testing.model import ScriptedModel

ROOT = os.geteuid() == 0
AGENT_UID = 64000 if ROOT else os.geteuid()
PLAIN_OPTIONS = ("-p", "--dangerously-skip-permissions", "--output-format", "json")
STREAM_OPTIONS = (
    *(
        "-p",
        "--dangerously-skip-permissions",
        "--input-format",
        "stream-json",
        "--output-format",
        "stream-json",
    ),
    *("--verbose", "--include-partial-messages"),
)


@dataclass(frozen=True)
class ProcessResult:
    """What a finished process left: exit code, stdout, stderr."""

    code: int
    out: bytes
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All JSON lines on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


class Conversation:
    """A process that is talked to in JSON lines, each wait with a bound."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.seen: list[dict[str, Any]] = []
        self._waiting = b""

    def send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def control(self, subtype: str, **fields: Any) -> dict[str, Any]:
        """Send a control request and wait for its answer."""
        ident = f"request-{len(self.seen)}-{subtype}"
        self.send({"type": "control_request", "request_id": ident, "request": {"subtype": subtype, **fields}})
        response: dict[str, Any] = self.until("control_response")["response"]
        assert response["request_id"] == ident
        return response

    def say(self, role: str, text: str, **fields: Any) -> None:
        content = text if role == "user" else [{"type": "text", "text": text}]
        message = {"role": role, "content": content}
        self.send(
            {"type": role, "message": message, "parent_tool_use_id": None, "session_id": "default", **fields}
        )

    def ask(self, text: str) -> dict[str, Any]:
        """A prompt and its result."""
        self.say("user", text)
        return self.until("result")

    def until(self, kind: str, seconds: float = 30) -> dict[str, Any]:
        """The next message of this type; all that came before it are kept in ``seen``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            line, newline, rest = self._waiting.partition(b"\n")
            if newline:
                self._waiting = rest
                message: dict[str, Any] = json.loads(line)
                self.seen.append(message)
                if message["type"] == kind:
                    return message
                continue
            self._read(end - time.monotonic())
        raise AssertionError(f"no {kind} within {seconds} s; seen: {[kind_of(m) for m in self.seen]}")

    def finish(self) -> int:
        """End the input; the exit code."""
        assert self.process.stdin
        self.process.stdin.close()
        return self.process.wait(20)

    def _read(self, seconds: float) -> None:
        assert self.process.stdout
        fd = self.process.stdout.fileno()
        if select.select([fd], [], [], max(0.0, seconds))[0]:
            piece = os.read(fd, 1 << 16)
            if not piece:
                raise AssertionError(f"the output has ended; seen: {[kind_of(m) for m in self.seen]}")
            self._waiting += piece


class AgentHarness:
    """Runs agents as an unprivileged user with an environment built from nothing."""

    def __init__(self, root: Path, base_url: str) -> None:
        self.root = root
        self.base_url = base_url
        for name in ("home", "work"):
            path = root / name
            path.mkdir()
            if ROOT:
                os.chown(path, AGENT_UID, AGENT_UID)
        self.home = root / "home"
        self.work = root / "work"
        self.config = self.home / ".claude"
        self._started: list[subprocess.Popen[bytes]] = []

    def environment(self, **extra: str) -> dict[str, str]:
        return {**isolated_env(self.home, self.base_url), **extra}

    def start(self, cli: Path, *options: str, **extra: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [cli, *options],
            cwd=self.work,
            env=self.environment(**extra),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            user=AGENT_UID if ROOT else None,
            group=AGENT_UID if ROOT else None,
            extra_groups=[] if ROOT else None,
        )
        self._started.append(process)
        return process

    def run(
        self, cli: Path, prompt: str, *options: str, base: tuple[str, ...] = PLAIN_OPTIONS, **extra: str
    ) -> ProcessResult:
        process = self.start(cli, *base, *options, **extra)
        out, err = process.communicate(prompt.encode(), timeout=60)
        return ProcessResult(process.returncode, out, err.decode(errors="replace"))

    def start_conversation(self, cli: Path, *options: str, **extra: str) -> Conversation:
        return Conversation(self.start(cli, *STREAM_OPTIONS, *options, **extra))

    def write(self, name: str, text: str) -> Path:
        """A file under the root, readable for the agent."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait(10)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    stream.close()


@contextmanager
def agent_world() -> Iterator[tuple[AgentHarness, ScriptedModel]]:
    """Yield a world with a scripted model of its own, for a scene that several tests look at."""
    root = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    root.chmod(0o755)
    with ScriptedModel() as model:
        world = AgentHarness(root, model.url)
        try:
            yield world, model
        finally:
            world.close()
            shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def world(world_dir: Path, scripted_model: Any) -> Iterator[AgentHarness]:
    world = AgentHarness(world_dir, scripted_model.url)
    yield world
    world.close()


def kind_of(message: dict[str, Any]) -> str:
    """Type and subtype, or for a stream event its own type."""
    inner = message.get("event", {}).get("type") or message.get("subtype")
    return f"{message['type']}/{inner}" if inner else str(message["type"])
