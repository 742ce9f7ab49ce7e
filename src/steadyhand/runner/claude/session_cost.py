"""The cost that a session has when a run resumes it: the CLI's figures go on from there."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from steadyhand.ports import RunSpec, Sandbox
from steadyhand.runner.claude.messages import parse_dollars
from steadyhand.runner.claude.session import config_dir_of, session_directory, session_file

_COST_KEY = "totalCostUSD"
_MAX_READ_BYTES = 4 * 1024 * 1024
"""The end of a session's file in which its cost is looked for; the CLI writes it at the end of each run."""
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def read_carried_micros(spec: RunSpec, sandbox: Sandbox, session: str) -> int:
    """Return the cost of the session's earlier turns in micro-dollars; 0 without any.

    The file is the agent's own, so it is not trusted: whatever it holds, this is a number.
    """
    directory = session_directory(sandbox.agent_paths(spec.checkout), sandbox)
    lines = _read_end(session_file(config_dir_of(spec.checkout), directory, session)).splitlines()
    for line in reversed(lines):
        entry = _parse(line) if _COST_KEY.encode() in line else None
        if isinstance(entry, dict) and _COST_KEY in entry:
            return parse_dollars(entry[_COST_KEY]) or 0
    return 0


def _read_end(path: Path) -> bytes:
    try:
        with os.fdopen(os.open(path, _FILE_FLAGS), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return b""
            file.seek(max(0, status.st_size - _MAX_READ_BYTES))
            return file.read(_MAX_READ_BYTES)
    except OSError:
        return b""


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
