"""Copies the newest record of a thread of Codex: `sessions/YEAR/MONTH/DAY/rollout-*.jsonl` below its folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from steadyhand.job import JobWarning
from steadyhand.redact import Redactor
from steadyhand.runner.codex.threads import SESSIONS_DIR
from steadyhand.runner.process.agent_record import (
    DIR_FLAGS,
    MAX_ENTRIES,
    copy_redacted,
    is_record,
    opened,
    record_lost,
)

_DATE_FOLDERS = 3


def copy_transcript(
    config: Path, target: Path, *, owner: int | None, redactor: Redactor, since: float = 0.0
) -> JobWarning | None:
    """Copy the newest record to `target` without live secrets, if there is one.

    Only regular files of `owner` (None is any owner) that changed after `since` (seconds since the epoch) count.
    """
    try:
        with opened(config, None, DIR_FLAGS) as top, opened(SESSIONS_DIR, top, DIR_FLAGS) as sessions:
            for folder in _newest_folders(sessions, _DATE_FOLDERS):
                name = _newest_record(folder, owner, since)
                if name is not None:
                    return copy_redacted(folder, name, target, redactor)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return record_lost(error)
    return None


def _newest_folders(folder: int, depth: int) -> Iterator[int]:
    """Open the folders of all days one after the other, the newest first: their names are numbers."""
    if depth == 0:
        yield folder
        return
    for name in sorted(os.listdir(folder), reverse=True)[:MAX_ENTRIES]:  # a descriptor has no path
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            opened(name, folder, DIR_FLAGS) as inner,
        ):
            yield from _newest_folders(inner, depth - 1)


def _newest_record(folder: int, owner: int | None, since: float) -> str | None:
    newest: tuple[float, str] | None = None
    for name in sorted(os.listdir(folder), reverse=True)[:MAX_ENTRIES]:  # the same
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if name.startswith("rollout-") and is_record(info, owner, since):
            newest = max(newest or (0.0, ""), (info.st_mtime, name))
    return None if newest is None else newest[1]
