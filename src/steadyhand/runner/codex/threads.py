"""The sessions of Codex: files below its folder, each with the id of its thread in its name."""

import re
from pathlib import Path

SESSIONS_DIR = "sessions"
_ROLLOUT = re.compile(
    r"rollout-[0-9T-]{19}-([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\.jsonl"
)
_MAX_FILES = 1000


def find_thread(config_dir: Path, session: str | None) -> str | None:
    """Return the id of the thread to continue: that of the job if its file is there, else the newest; None without one.

    A run that was killed has not told its id. Blocks.
    """
    # The names of folders and files are times, so the newest is the last.
    names = sorted(path.name for path in (config_dir / SESSIONS_DIR).glob("*/*/*/rollout-*.jsonl"))[
        -_MAX_FILES:
    ]
    threads = [match[1] for name in names if (match := _ROLLOUT.fullmatch(name)) is not None]
    if session is not None and session in threads:
        return session
    return threads[-1] if threads else None
