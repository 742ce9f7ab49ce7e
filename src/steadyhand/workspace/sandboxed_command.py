"""Run git inside the sandbox. Standard library only.

It is a part of the program that `sandboxed_git_client` sends into the sandbox.
"""

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

MIB = 1024 * 1024
MAX_REASON_LENGTH = 300


class GitError(Exception):  # the result of git, not a bug of this program
    """A git command failed; the text is the line of its stderr that names the cause."""


def git(
    *arguments: str,
    stdin: bytes = b"",
    stdout_file: Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    seconds: float | None = None,
    accepted: Sequence[int] = (0,),
    stderr: list[bytes] | None = None,
) -> bytes:
    """Run git and return its stdout, or write it to `stdout_file`; `stderr` gets its lines. Raise `GitError`."""
    with contextlib.ExitStack() as stack:
        out = subprocess.PIPE if stdout_file is None else stack.enter_context(stdout_file.open("wb"))
        try:
            result = subprocess.run(
                ["git", *arguments], input=stdin, stdout=out, stderr=subprocess.PIPE, cwd=cwd,
                env={**os.environ, **(env or {})}, check=False, timeout=seconds,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise GitError(f"git {arguments[0]} took longer than {seconds:g} s") from error
    lines = [line.strip() for line in result.stderr.split(b"\n") if line.strip()]
    if stderr is not None:
        stderr += lines
    if result.returncode not in accepted:
        errors = [line for line in lines if line.startswith((b"fatal:", b"error:"))] or lines
        text = errors[-1].decode("utf-8", "replace") if errors else f"git {arguments[0]} failed"
        raise GitError(text[:MAX_REASON_LENGTH])
    return result.stdout or b""


def decode_line(out: bytes) -> str:
    """Return a line of ASCII, such as an object id."""
    return out.decode("ascii", "replace").strip()
