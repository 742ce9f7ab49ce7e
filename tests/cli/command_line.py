"""The command line as a subprocess, and a scripted HTTP service for what a real one seldom does."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, chdir, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, cast
from unittest.mock import patch

from typer import Typer, main, testing

import steadyhand.cli.jobs
import steadyhand.cli.keys
import steadyhand.cli.lifecycle
import steadyhand.cli.run
import steadyhand.cli.service
import steadyhand.cli.tools
import steadyhand.cli.usage  # each of these adds its commands to the program
from steadyhand.cli.app import app
from steadyhand.testing.cli import SYSTEM_PATH
from steadyhand.testing.preloaded import Process
from steadyhand.testing.service import Service

JOB_ID = "3f2a9c01be77"
KEY = "a-key-of-the-tests-0123456789"
COMMAND = [sys.executable, "-m", "steadyhand"]
PROGRAM = str(Path(steadyhand.cli.__file__).parent.with_name("__main__.py"))
"""The first word that a program sees when it is started as `COMMAND`."""


def job_json(**changes: Any) -> dict[str, Any]:
    """A completed job with every key of the contract."""
    job: dict[str, Any] = {
        "object": "job",
        "id": JOB_ID,
        "state": "completed",
        "outcome": {"type": "success", "detail": None},
        "title": None,
        "prompt": "Say hello.",
        "agent": "claude",
        "runner": "claude",
        "model": None,
        "workspace": None,
        "ref": None,
        "commit": None,
        "priority": 0,
        "metadata": {},
        "budget_usd": "5.000000",
        "timeout_seconds": 2700,
        "created_at": "2026-01-01T00:00:00Z",
        "started_at": "2026-01-01T00:00:01Z",
        "finished_at": "2026-01-01T00:00:03Z",
        "queue_position": None,
        "run": 1,
        "runs": [],
        "answer": "Hello.",
        "structured_output": None,
        "usage": {
            "input_tokens": 10,
            "output_tokens": 5,
            "cache_read_input_tokens": 0,
            "cache_creation_input_tokens": 0,
            "turns": 1,
        },
        "cost": {"usd": "0.041200", "source": "reported", "priced": True, "reported_usd": "0.041200"},
        "changes": None,
        "warnings": [],
        "error": None,
        "last_event": 3,
    }
    return job | changes


def event_json(seq: int | None, kind: str, **data: Any) -> dict[str, Any]:
    """One event as it stands on the wire."""
    return {
        "object": "event",
        "seq": seq,
        "job_id": JOB_ID,
        "run": 1,
        "type": kind,
        "at": "2026-01-01T00:00:01Z",
        "data": data,
    }


def sse_stream(events: list[dict[str, Any]]) -> bytes:
    """Events as a stream of server-sent events."""
    parts = []
    for event in events:
        number = f"id: {event['seq']}\n" if event["seq"] is not None else ""
        parts.append(f"{number}event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n")
    return "".join(parts).encode()


@dataclass
class ScriptedAnswer:
    """What the scripted service says; `cut` breaks the connection off after the body."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False

    @classmethod
    def of(cls, value: Any, status: int = 200, **headers: str) -> "ScriptedAnswer":
        return cls(
            status, json.dumps(value).encode(), headers={k.replace("_", "-"): v for k, v in headers.items()}
        )

    @classmethod
    def problem(cls, status: int, code: str, detail: str, **headers: str) -> "ScriptedAnswer":
        body = {
            "type": "about:blank",
            "status": status,
            "detail": detail,
            "code": code,
            "request_id": "req_1",
        }
        return cls.of(body, status, **headers)

    @classmethod
    def stream(cls, *events: dict[str, Any], cut: bool = False) -> "ScriptedAnswer":
        return cls(200, sse_stream(list(events)), "text/event-stream", cut=cut)


@dataclass
class RecordedRequest:
    """A request that came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


class ScriptedService:
    """A real HTTP server whose answers a test lays out: by method and path, each in turn, the last one again."""

    def __init__(self) -> None:
        self.requests: list[RecordedRequest] = []
        self._answers: dict[tuple[str, str], list[ScriptedAnswer]] = {}
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                raw = self.rfile.read(length)
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = RecordedRequest(self.command, self.path, headers, json.loads(raw) if raw else None)
                answer = service.next_answer(asked)
                self.send_response(answer.status)
                self.send_header("content-type", answer.content_type)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if answer.status != 204:
                    # One byte more than comes is how a client notices that it was cut off.
                    self.send_header("content-length", str(len(answer.body) + answer.cut))
                self.end_headers()
                self.wfile.write(answer.body)
                if answer.cut:
                    self.close_connection = True

            do_GET = do_POST = do_PATCH = do_DELETE = _handle  # noqa: N815  # the names that the base class calls

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def respond(self, method: str, path: str, *answers: ScriptedAnswer) -> "ScriptedService":
        self._answers[method, path] = list(answers)
        return self

    def next_answer(self, request: RecordedRequest) -> ScriptedAnswer:
        self.requests.append(request)
        answers = self._answers.get((request.method, request.path.partition("?")[0]), [])
        if not answers:
            return ScriptedAnswer.problem(404, "not_found", "Job not found")
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@dataclass
class CommandResult:
    """What a command came to."""

    code: int
    out: str
    err: str


class RunningCommand:
    """A command under way, with this end of each pipe that it has; `None` for a stream that is no pipe."""

    def __init__(self, process: Process, pipes: list[BinaryIO | None]) -> None:
        self.process = process
        self.stdin, self.stdout, self.stderr = pipes
        self.pid = process.pid
        self.poll, self.wait = process.poll, process.wait
        self.send_signal, self.kill = process.send_signal, process.kill

    @property
    def returncode(self) -> int | None:
        return self.process.returncode

    def communicate(self, given: bytes = b"", timeout: float = 90) -> tuple[bytes, bytes]:
        """Send this to stdin, read to the end of stdout and stderr, and wait for the end of the command."""
        with ThreadPoolExecutor(3) as pool:
            if self.stdin is not None:
                pool.submit(_write_all, self.stdin, given)
            reading = [pool.submit(_read_all, stream) for stream in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            return reading[0].result(), reading[1].result()

    def close(self) -> None:
        """Kill it if it is still there."""
        if self.poll() is None:
            self.kill()
            self.wait(20)
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()


def _write_all(stream: BinaryIO, data: bytes) -> None:
    with suppress(BrokenPipeError), stream:
        stream.write(data)


def _read_all(stream: BinaryIO | None) -> bytes:
    return b"" if stream is None else stream.read()


class CommandLine:
    """`steadyhand` as a process, in an environment made from nothing.

    Commands are forked from a process with the code loaded where that does the same as a start; see `Preloaded`.
    """

    def __init__(self, home: Path, url: str | None, token: str | None) -> None:
        self.home = home
        self.env = {
            "PATH": SYSTEM_PATH,
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "TMPDIR": str(home),
            "STEADYHAND_DATA_DIR": str(home / "data"),
        }
        if url is not None:
            self.env["STEADYHAND_URL"] = url
        if token is not None:
            self.env["STEADYHAND_TOKEN"] = token

    def __call__(self, *arguments: str, given: str = "", timeout: float = 90, **env: str) -> CommandResult:
        return self.run_process(*arguments, given=given, timeout=timeout, fresh=False, **env)

    def run_process(
        self, *arguments: str, given: str = "", timeout: float = 90, fresh: bool = False, **env: str
    ) -> CommandResult:
        """Run it to its end in a process of its own."""
        with self.running(*arguments, stdin=subprocess.PIPE, fresh=fresh, more_env=env) as process:
            out, err = process.communicate(given.encode(), timeout)
            return CommandResult(process.wait(), out.decode(), err.decode())

    @contextmanager
    def running(
        self,
        *arguments: str,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        fresh: bool = False,
        more_env: Mapping[str, str] | None = None,
        constants: Mapping[str, str] | None = None,
    ) -> Iterator[RunningCommand]:
        """The command under way; killed at the end of the block if it is still there.

        `fresh` starts an interpreter. `constants` are values for constants of modules, which only a fork can have.
        """
        env = self.env | dict(more_env or {})
        with ExitStack() as theirs:
            opened = [
                _open_stream(theirs, kind, mode)
                for kind, mode in ((stdin, "wb"), (stdout, "rb"), (stderr, "rb"))
            ]
            streams = opened[0][0], opened[1][0], opened[2][0]
            process: Process
            if not fresh and Service.preloaded is not None and Service.preloaded.can_start(env):
                process = Service.preloaded.start([PROGRAM, *arguments], self.home, env, streams, constants)
            else:
                assert not constants
                process = subprocess.Popen(
                    [*COMMAND, *arguments],
                    env=env,
                    cwd=self.home,
                    stdin=streams[0],
                    stdout=streams[1],
                    stderr=streams[2],
                )
        command = RunningCommand(process, [ours for _, ours in opened])
        try:
            yield command
        finally:
            command.close()

    def on_terminal(
        self, *arguments: str, given: str = "", timeout: float = 90, fresh: bool = False, **env: str
    ) -> CommandResult:
        """Run it on a pseudo-terminal of its own, which is all of stdin, stdout and stderr; `given` is typed ahead."""
        ours, theirs = os.openpty()
        os.write(ours, given.encode())
        more_env = {"TERM": "xterm-256color"} | env
        with self.running(
            *arguments, stdin=theirs, stdout=theirs, stderr=theirs, fresh=fresh, more_env=more_env
        ) as process:
            os.close(theirs)
            shown = b"".join(_until_closed(ours, timeout))
            os.close(ours)
            return CommandResult(process.wait(timeout), shown.decode("utf-8", "replace"), "")


def _open_stream(theirs: ExitStack, kind: int, mode: str) -> tuple[int, BinaryIO | None]:
    """Return the command's end of a stream, which is closed with `theirs`, and this end if it is a pipe."""
    if kind == subprocess.DEVNULL:
        number = os.open(os.devnull, os.O_RDWR)
        theirs.callback(os.close, number)
        return number, None
    if kind != subprocess.PIPE:
        return kind, None
    reader, writer = os.pipe()
    number, ours = (reader, writer) if mode == "wb" else (writer, reader)
    theirs.callback(os.close, number)
    return number, cast("BinaryIO", os.fdopen(ours, mode))


@cache
def _build_program(program: Typer) -> Any:
    """Return the program with its commands: building it takes as long as most commands."""
    return main.get_command(program)


class InProcessCommandLine(CommandLine):
    """The same without a process for each command: the program is called, in the environment it is to see."""

    def __call__(self, *arguments: str, given: str = "", timeout: float = 90, **env: str) -> CommandResult:  # noqa: ARG002  # the test's own bound holds
        before = signal.getsignal(signal.SIGTERM)
        with (
            patch.dict(os.environ, self.env | env, clear=True),
            patch.object(testing, "_get_command", _build_program),
            chdir(self.home),
        ):
            try:
                result = testing.CliRunner().invoke(
                    app, list(arguments), input=given.encode(), prog_name="steadyhand"
                )
            finally:
                signal.signal(signal.SIGTERM, before)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return CommandResult(result.exit_code, result.stdout, result.stderr)


def _until_closed(handle: int, timeout: float) -> Iterator[bytes]:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        ready, _, _ = select.select([handle], [], [], 1)
        if not ready:
            continue
        try:
            chunk = os.read(handle, 65_536)
        except OSError:  # the other end is closed
            return
        if not chunk:
            return
        yield chunk
    raise TimeoutError("the terminal was not closed in time")


def read_until(stream: Any, expected: str, timeout: float = 30) -> str:
    """Read from a process's stream until a text is there."""
    deadline, seen = time.monotonic() + timeout, b""
    while expected.encode() not in seen:
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{expected!r} did not come; this did: {seen.decode('utf-8', 'replace')}"
        chunk = os.read(stream.fileno(), 65_536)
        assert chunk, f"{expected!r} did not come before the end; this did: {seen.decode('utf-8', 'replace')}"
        seen += chunk
    return seen.decode("utf-8", "replace")


def wait_until(condition: Callable[[], Any], timeout: float = 20) -> Any:
    """Look again and again until something true is seen; the bound is generous, the look cheap."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)
    return found


@dataclass
class RealService:
    """`steadyhand serve` as a process, with the stand-in as its agent."""

    url: str
    token: str
    process: RunningCommand
