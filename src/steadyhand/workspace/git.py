"""Run git with a minimal environment, a time limit, an output limit and a uid.

The configuration that is passed here overrides the repository's for each key that it names. That is only a second
line of defence: a filter can have any name, so in a repository that an agent can write to, git runs as the agent's
uid, never as the service's.
"""

import asyncio
import contextlib
import itertools
import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from steadyhand.errors import WorkspaceError
from steadyhand.ports import DEFAULT_PATH
from steadyhand.text_lines import split_lines

MIB = 1024 * 1024
TERM_SECONDS = 2.0  # git removes its lock files on SIGTERM
KILL_SECONDS = 5.0
_POLL_SECONDS = 0.005
_CHUNK = 256 * 1024
_STDERR_TAIL = 64 * 1024

_BASE_ENVIRONMENT = {
    "PATH": DEFAULT_PATH,
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
}
_ISOLATED_CONFIG = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}

_BASE_CONFIG = (
    ("core.hooksPath", os.devnull),
    ("core.fsmonitor", "false"),
    ("core.pager", "cat"),
    ("core.quotePath", "false"),
    ("commit.gpgSign", "false"),
    ("tag.gpgSign", "false"),
    ("credential.helper", ""),
    ("diff.ignoreSubmodules", "all"),
    ("submodule.recurse", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("gc.autoDetach", "false"),
    ("maintenance.autoDetach", "false"),
    ("protocol.ext.allow", "never"),
    ("safe.directory", "*"),
)


@dataclass(frozen=True, slots=True)
class GitSettings:
    """The service's own settings of git: the author of commits, and the access to remotes. Agents never see them."""

    author_name: str = "Steadyhand"
    author_email: str = "steadyhand@localhost"
    credential_file: Path | None = None
    """A file in the format of `git credential-store`."""
    ssh_key_file: Path | None = None
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class GitResult:
    """The result of a git command: exit code, stdout (empty if it went to a file), and the tail of stderr."""

    code: int
    stdout: bytes
    stderr: str
    overflowed: bool = False
    """True if stdout exceeded its limit; git was stopped and the output is cut there."""

    @property
    def text(self) -> str:
        """Stdout as text without the last newline; bytes that are not UTF-8 are kept as surrogates."""
        return os.fsdecode(self.stdout).removesuffix("\n")

    @property
    def reason(self) -> str:
        """The line of stderr that names the cause, without credentials and host paths."""
        return error_line(self.stderr)


class Git:
    """Runs git commands as one user with one configuration; `user` is the uid and gid (`None` is the service's own)."""

    def __init__(
        self,
        *,
        user: int | None = None,
        env: Mapping[str, str] | None = None,
        config: Sequence[tuple[str, str]] = (),
        user_config: bool = False,
    ) -> None:
        """Build the environment. With `user_config`, git also reads the configuration of the user and the machine."""
        self._user = user
        self._env = git_environment(env or {}, config, user_config=user_config)

    async def run(
        self,
        *arguments: str,
        cwd: Path,
        stdin: bytes = b"",
        seconds: float = 30.0,
        limit: int = 16 * MIB,
        stdout_file: BinaryIO | None = None,
        check: bool = True,
        on_stderr: Callable[[bytes], None] | None = None,
    ) -> GitResult:
        """Run one git command and return its result; stdout goes to `stdout_file` if set, at most `limit` bytes of it.

        Raise `WorkspaceError` if git is missing, takes longer than `seconds`, or (with `check`) fails or prints more
        than `limit`. No process of its group is left when this returns or is cancelled. `on_stderr` gets stderr as it
        comes.
        """
        verb = arguments[0]
        try:
            done = await run_process(
                ["git", *arguments], cwd=cwd, env=self._env, user=self._user, stdin=stdin, seconds=seconds,
                limit=limit, stdout_file=stdout_file, on_stderr=on_stderr,
            )  # fmt: skip
        except TimeoutError as error:
            raise WorkspaceError(f"git {verb} took longer than {seconds:g} s.") from error
        except FileNotFoundError as error:
            raise WorkspaceError(_missing_reason(cwd), retryable=False) from error
        except OSError as error:
            raise WorkspaceError(f"git could not be started: {error.strerror}.") from error
        result = GitResult(done.code, done.stdout, done.stderr.decode("utf-8", "replace"), done.overflowed)
        if check and result.overflowed:
            raise WorkspaceError(f"git {verb} printed more than {limit} bytes.")
        if check and result.code != 0:
            raise WorkspaceError(f"git {verb} failed: {result.reason}")
        return result


@dataclass(frozen=True, slots=True)
class ProcessResult:
    """The result of a process: exit code, stdout as far as it was kept, and the tail of stderr."""

    code: int
    stdout: bytes
    stderr: bytes
    overflowed: bool


async def run_process(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    user: int | None,
    stdin: bytes,
    seconds: float,
    limit: int,
    stdout_file: BinaryIO | None = None,
    on_stdout: Callable[[bytes], float] | None = None,
    on_stderr: Callable[[bytes], None] | None = None,
) -> ProcessResult:
    """Run a process and return its result. Its stdout goes to `stdout_file` or `on_stdout`, else it is returned.

    `on_stdout` returns seconds that are added to the time limit. Raise `TimeoutError` and `OSError`. No process of its
    group is left when this returns or is cancelled.
    """
    process = await _spawn(argv, cwd, env, user)
    reader = _ProcessIO(process, limit, stdout_file, on_stderr)
    try:
        async with asyncio.timeout(seconds) as bound:
            if on_stdout is not None:
                reader.on_stdout = lambda chunk: _extend(bound, on_stdout(chunk))
            await reader.communicate(stdin)
            code = await process.wait()
    finally:
        await _stop(process)
    return ProcessResult(code, bytes(reader.stdout), bytes(reader.stderr), reader.overflowed)


def _extend(bound: asyncio.Timeout, seconds: float) -> None:
    when = bound.when()
    if seconds and when is not None:
        bound.reschedule(when + seconds)


async def _spawn(
    argv: Sequence[str], cwd: Path, env: Mapping[str, str], user: int | None
) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    if user is None:
        return await asyncio.create_subprocess_exec(
            *argv, cwd=cwd, env=env, start_new_session=True, stdin=pipe, stdout=pipe, stderr=pipe
        )
    return await asyncio.create_subprocess_exec(
        *argv, cwd=cwd, env=env, start_new_session=True, stdin=pipe, stdout=pipe, stderr=pipe,
        user=user, group=user, extra_groups=[],
    )  # fmt: skip


def _missing_reason(cwd: Path) -> str:
    return "git is not installed." if cwd.is_dir() else "The directory does not exist."


class _ProcessIO:
    """Writes the input of a process and reads its output, with a limit on the bytes that are kept."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        limit: int,
        stdout_file: BinaryIO | None,
        on_stderr: Callable[[bytes], None] | None,
    ) -> None:
        self._on_stderr = on_stderr
        self.on_stdout: Callable[[bytes], None] | None = None
        self._process = process
        self._limit = limit
        self._stdout_file = stdout_file
        self._stdout_bytes = 0
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.overflowed = False

    async def communicate(self, stdin: bytes) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write_stdin(stdin))
            group.create_task(self._read_stdout())
            group.create_task(self._read_stderr())

    async def _write_stdin(self, data: bytes) -> None:
        pipe = self._process.stdin
        if pipe is None:
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            pipe.write(data)
            await pipe.drain()
        pipe.close()

    async def _read_stdout(self) -> None:
        pipe = self._process.stdout
        while pipe is not None and (chunk := await pipe.read(_CHUNK)):
            self._stdout_bytes += len(chunk)
            if self._stdout_bytes > self._limit:
                if not self.overflowed:
                    self.overflowed = True
                    _signal_group(self._process, signal.SIGTERM)
                continue
            if self.on_stdout is not None:
                self.on_stdout(chunk)
            elif self._stdout_file is None:
                self.stdout += chunk
            else:
                self._stdout_file.write(chunk)

    async def _read_stderr(self) -> None:
        pipe = self._process.stderr
        while pipe is not None and (chunk := await pipe.read(_CHUNK)):
            if self._on_stderr is not None:
                self._on_stderr(chunk)
            self.stderr += chunk
            del self.stderr[:-_STDERR_TAIL]


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End the rest of the process group; each wait has a limit."""
    for signal_number, seconds in ((signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        if process.returncode is not None:
            break
        _signal_group(process, signal_number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await process.wait()
    # The processes that git started may end later than git, or ignore SIGTERM.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(KILL_SECONDS):
            while _signal_group(process, signal.SIGKILL) and _group_alive(process.pid):  # noqa: ASYNC110  # there is no event for it
                await asyncio.sleep(_POLL_SECONDS)
    # A grandchild may hold the pipes open; asyncio has no public way to close them.
    process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001


def _signal_group(process: asyncio.subprocess.Process, signal_number: signal.Signals) -> bool:
    """Send a signal to the process group; return false if no process of it is left."""
    try:
        os.killpg(process.pid, signal_number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _group_alive(group: int) -> bool:
    """Return true if the group has a process that is not a zombie; a zombie only waits for its new parent."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_bytes().rpartition(b")")[2].split()[:3]
        except (OSError, ValueError):
            continue  # it is gone
        if int(its_group) == group and state != b"Z":
            return True
    return False


def git_environment(
    extra: Mapping[str, str], config: Sequence[tuple[str, str]] = (), *, user_config: bool = False
) -> dict[str, str]:
    """Return the whole environment for git; see `Git`."""
    env = {**_BASE_ENVIRONMENT, **({} if user_config else _ISOLATED_CONFIG), **extra}
    pairs = [pair for pair in _BASE_CONFIG if not (user_config and pair[0] == "credential.helper")]
    return env | _config_environment([*pairs, *config])


def _config_environment(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    env = {"GIT_CONFIG_COUNT": str(len(pairs))}
    for number, (key, value) in enumerate(pairs):
        env[f"GIT_CONFIG_KEY_{number}"] = key
        env[f"GIT_CONFIG_VALUE_{number}"] = value
    return env


_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
_QUOTED_PATH = re.compile(r"(['\"])/[^'\"]*\1")
_HOST_PATH = re.compile(r"(?<![\w:/.>-])/[^\s:'\"]+")


_GENERIC_ERROR = "fatal: Could not read from remote repository."
"""Git's cause is before this line; after it come only guesses."""


def scrub(text: str) -> str:
    """Return the text without credentials in URLs and without paths of this machine."""
    text = _CREDENTIALS.sub("", text)
    text = _QUOTED_PATH.sub("<path>", text)
    return _HOST_PATH.sub("<path>", text)


def error_line(stderr: str) -> str:
    """Return the last line of git's stderr that names an error, else the last line; at most 300 characters."""
    lines = [line.strip() for line in split_lines(stderr) if line.strip()]
    lines = list(itertools.takewhile(lambda line: line != _GENERIC_ERROR, lines)) or lines
    error_lines = [line for line in lines if line.startswith(("fatal:", "error:"))]
    line = (error_lines or lines or ["git printed no reason"])[-1]
    for prefix in ("fatal: ", "error: "):
        line = line.removeprefix(prefix)
    return scrub(line)[:300]
