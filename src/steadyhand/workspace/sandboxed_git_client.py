"""The client of the program inside the sandbox. It validates each value of a reply."""

import functools
import json
import marshal
import re
import sys
import zlib
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import Any

from steadyhand.agents import Agent
from steadyhand.errors import SpawnError, WorkspaceError
from steadyhand.ports import DEFAULT_PATH, Checkout, ExecResult, SandboxExec
from steadyhand.workspace import sandboxed_git
from steadyhand.workspace.git import MIB, git_environment, scrub
from steadyhand.workspace.harvest_frames import FrameReceiver, HarvestFrame

MIRROR_DIR = Path("/mirror")
"""The read-only mount of the mirror's objects in the sandbox; a warm checkout's `.git` points to it."""
BASE_DIR = sandboxed_git.BASE_DIR
GIVEN_DIR = Path("/given")
"""The mount of what a harvest has to know of the job: the refs that it was given, and the paths that it changed."""
SCRATCH_DIR = "/tmp/harvest"  # noqa: S108  # the sandbox's own
LFS_DIR = sandboxed_git.LFS_DIR
HOME_DIR = "/home/agent"
_HEADER_BYTES = MIB
PROGRAM_MODULES = (
    "sandboxed_command",
    "sandboxed_files",
    "sandboxed_given",
    "sandboxed_git",
    "sandboxed_staging",
    "sandboxed_commits",
    "sandboxed_frames",
    "sandboxed_harvest",
    "sandboxed_compare",
    "sandboxed_program",
)
"""The modules of the program inside the sandbox; they import each other and the standard library only."""
_LOADER = """
import marshal, sys, types, zlib
from _frozen_importlib_external import MAGIC_NUMBER
from binascii import a2b_base64
parent = types.ModuleType({package!r})
sys.modules[{package!r}] = parent
is_compiled = MAGIC_NUMBER == {magic!r}
packed = {compiled!r} if is_compiled else {sources!r}
for name, code in marshal.loads(zlib.decompress(a2b_base64(packed))).items():
    module = types.ModuleType({package!r} + "." + name)
    sys.modules[module.__name__] = module
    setattr(parent, name, module)
    exec(code if is_compiled else compile(code, name + ".py", "exec"), module.__dict__)
module.main()
"""
_PORTABLE_MARSHAL = 2
"""A version of the format that each Python reads."""
_PYTHONS = ("/usr/bin/python3", "/usr/local/bin/python3")


@dataclass(frozen=True, slots=True)
class SandboxReply:
    """A reply: `fields` is parsed JSON, `parts` are bytes. An attacker may have written both."""

    fields: Mapping[str, Any]
    parts: Sequence[memoryview]

    def validated_text(self, name: str, pattern: re.Pattern[str]) -> str:
        """Return one value that matches `pattern`. Raise `WorkspaceError`."""
        value = self.fields.get(name)
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            raise WorkspaceError("the reply from inside the sandbox is malformed")
        return value

    def sentence(self, name: str) -> str | None:
        """Return a text of the reply on one line, cut short, or `None`."""
        value = self.fields.get(name)
        return None if not isinstance(value, str) else " ".join(value.split())[:300]


async def run_sandboxed_git(
    sandbox_exec: SandboxExec,
    request: Mapping[str, Any],
    checkout: Checkout,
    agent: Agent,
    *,
    seconds: float,
    max_output: int,
    parts: int,
    on_stderr: Callable[[bytes], None] | None = None,
) -> SandboxReply:
    """Run the program in the checkout's sandbox and return its reply, with `parts` parts or an error.

    Raise `WorkspaceError` if the sandbox does not start, the time or the output exceeds its limit, or the reply is
    malformed.
    """
    result = await _run_program(
        sandbox_exec, request, checkout, agent, seconds=seconds, max_output=max_output, on_stderr=on_stderr
    )
    if result.exit_code != 0:
        raise _no_reply_error(result, seconds)
    return parse_reply(result.stdout, parts)


async def receive_harvest(
    sandbox_exec: SandboxExec,
    request: Mapping[str, Any],
    checkout: Checkout,
    receiver: FrameReceiver,
    *,
    seconds: float,
    on_progress: Callable[[float], None],
) -> Sequence[HarvestFrame]:
    """Run a harvest in the checkout's sandbox and return its frames, also those of a harvest that was cut.

    Each MiB adds to the time limit; `on_progress` gets these seconds. Raise `WorkspaceError` if nothing came.
    """

    def feed(chunk: bytes) -> float:
        gained = receiver.feed(chunk)
        if gained:
            on_progress(gained)
        return gained

    agent = Agent("harvest")
    try:
        result = await _run_program(
            sandbox_exec, request, checkout, agent,
            seconds=seconds, max_output=2 * receiver.max_bytes, on_stdout=feed,
        )  # fmt: skip
        receiver.feed(result.stdout)
    finally:
        receiver.close()
    if not receiver.frames:
        raise _no_reply_error(result, seconds)
    return receiver.frames


def _no_reply_error(result: ExecResult, seconds: float) -> WorkspaceError:
    """Return the error of a program that sent no reply within its limits."""
    if result.exit_code is None:
        return WorkspaceError(f"it took longer than {seconds:g} s, or its output was too large")
    last_line = result.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
    return WorkspaceError(f"the work inside the sandbox ended with {result.exit_code}: {last_line[:200]}")


async def _run_program(
    sandbox_exec: SandboxExec,
    request: Mapping[str, Any],
    checkout: Checkout,
    agent: Agent,
    *,
    seconds: float,
    max_output: int,
    on_stdout: Callable[[bytes], float] | None = None,
    on_stderr: Callable[[bytes], None] | None = None,
) -> ExecResult:
    argv = [_find_python(), "-I", "-S", "-c", _program()]
    env = git_environment({"PATH": DEFAULT_PATH, "HOME": HOME_DIR, "TMPDIR": "/tmp"})  # noqa: S108  # the sandbox's own
    stdin = json.dumps(dict(request)).encode()
    try:
        return await sandbox_exec.run(
            argv, checkout, agent, env=env, stdin=stdin, timeout_seconds=seconds, max_output=max_output,
            on_stdout=on_stdout, on_stderr=on_stderr,
        )  # fmt: skip
    except SpawnError as error:
        raise WorkspaceError(f"the sandbox could not be started: {error.detail}") from error


def parse_reply(out: bytes, expected_parts: int) -> SandboxReply:
    """Parse a reply; see `sandboxed_git.main`. Raise `WorkspaceError` if it is malformed."""
    malformed = WorkspaceError("the reply from inside the sandbox is malformed")
    end = out.find(b"\n", 0, _HEADER_BYTES)
    try:
        fields = json.loads(out[:end]) if end >= 0 else None
    except (ValueError, RecursionError) as error:
        raise malformed from error
    if not isinstance(fields, dict):
        raise malformed
    reply = SandboxReply(fields, ())
    fault = reply.sentence("error")
    if fault is not None:
        raise WorkspaceError(scrub(fault))
    sizes = fields.get("parts")
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        raise malformed
    rest = memoryview(out)[end + 1 :]
    if sum(sizes) != len(rest) or len(sizes) not in {0, expected_parts}:
        raise malformed
    parts, offset = [], 0
    for size in sizes:
        parts.append(rest[offset : offset + size])
        offset += size
    return SandboxReply(fields, parts)


def program_sources() -> Mapping[str, str]:
    """Return the modules of the program by name, in an order in which each imports only earlier ones."""
    folder = Path(sandboxed_git.__file__).parent
    return {name: (folder / f"{name}.py").read_text(encoding="utf-8") for name in PROGRAM_MODULES}


@functools.cache
def _program() -> str:
    return build_program(program_sources())


def build_program(sources: Mapping[str, str]) -> str:
    """Return one text that has these modules under their own names, and runs the last one's `main`.

    They are in it as the code of this Python, which takes a tenth of a second to make, and as text for any other one.
    """
    package = sandboxed_git.__name__.rpartition(".")[0]
    codes = {name: compile(text, f"{name}.py", "exec", dont_inherit=True) for name, text in sources.items()}
    return _LOADER.format(
        package=package,
        magic=MAGIC_NUMBER,
        compiled=_pack(marshal.dumps(codes)),
        sources=_pack(marshal.dumps(dict(sources), _PORTABLE_MARSHAL)),
    )


def _pack(data: bytes) -> str:
    return b64encode(zlib.compress(data)).decode()


@functools.cache
def _find_python() -> str:
    """Return a Python that the sandbox can see: it shows this machine's /usr."""
    own_python = Path(sys.executable).resolve()
    if own_python.is_relative_to("/usr"):
        return str(own_python)
    for path in _PYTHONS:
        if Path(path).is_file():
            return path
    raise WorkspaceError("There is no Python below /usr for the work inside the sandbox.", retryable=False)
