"""Git for the checks of generated histories: plain commands, without anybody's configuration."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from steadyhand.testing.cli import SYSTEM_PATH

_ENVIRONMENT = {
    "PATH": SYSTEM_PATH,
    "HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
}

Entry = tuple[bytes, bytes]
"""A mode and an object id, as git prints them."""


Environment = Mapping[str, str | os.PathLike[str]]


def _run(
    arguments: Sequence[str | os.PathLike[str]], cwd: Path, stdin: bytes, env: Environment | None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["git", *arguments], cwd=cwd, input=stdin, capture_output=True, check=False, timeout=60,
        env={**_ENVIRONMENT, **(env or {})},
    )  # fmt: skip


def git(
    *arguments: str | os.PathLike[str],
    cwd: Path,
    stdin: bytes = b"",
    check: bool = True,
    env: Environment | None = None,
) -> bytes:
    """Run git and give what it printed; nothing if it failed and `check` is False."""
    result = _run(arguments, cwd, stdin, env)
    if check and result.returncode != 0:
        raise AssertionError(f"git {arguments}: {result.stderr.decode('utf-8', 'replace')}")
    return result.stdout if result.returncode == 0 else b""


def succeeds(
    *arguments: str | os.PathLike[str], cwd: Path, stdin: bytes = b"", env: Environment | None = None
) -> bool:
    """Run git and return True if it succeeded."""
    return _run(arguments, cwd, stdin, env).returncode == 0


def read_entries(listing: bytes) -> dict[bytes, Entry]:
    """Parse `ls-files -s -z` or `ls-tree -r -z`: entries by their path; those of a merge that failed are left out."""
    entries = {}
    for line in listing.split(b"\0"):
        head, _, path = line.partition(b"\t")
        fields = head.split()
        if path and len(fields) == 3:
            is_tree = fields[1] in (b"blob", b"commit")
            if is_tree or fields[2] == b"0":
                entries[path] = (fields[0], fields[2] if is_tree else fields[1])
    return entries


def read_refs(git_dir: Path) -> dict[str, str]:
    """Return the refs of a repository and what they point to."""
    listing = git(
        "for-each-ref",
        "--format=%(objectname) %(refname)",
        cwd=git_dir.parent,
        env={"GIT_DIR": git_dir},
        check=False,
    )
    pairs = (line.partition(" ") for line in listing.decode("utf-8", "surrogateescape").split("\n") if line)
    return {name: value for value, _, name in pairs}
