"""Keeps the agent's own record. The folders belong to the agent: no symlink in them is followed."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from steadyhand.claude_sessions import folder_name
from steadyhand.job import Notice
from steadyhand.job_warnings import WarningCode
from steadyhand.redact import Redactor
from steadyhand.workspace.git import MIB

TRANSCRIPT_BYTES = 64 * MIB
_FOLDERS = 1000
_CHUNK = 1 << 16
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK opening a FIFO would wait for a writer.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def keep_transcript(
    config: Path,
    target: Path,
    *,
    owner: int | None,
    since: float = 0.0,
    directory: Path | None = None,
    redactor: Redactor | None = None,
) -> Notice | None:
    """Copy the newest session file in `config/projects` to `target`, without live secrets; nothing when there is none.

    Only regular files of `owner` (null is anybody) that changed after `since` (seconds since the epoch)
    count, and with `directory` only sessions of that working directory. Files above 64 MiB are cut.
    """
    slug = None if directory is None else folder_name(str(directory))
    try:
        with _opened(config, None, _FOLDER_FLAGS) as top, _opened("projects", top, _FOLDER_FLAGS) as projects:
            newest = _newest(projects, slug, owner, since)
            return None if newest is None else _copy(projects, newest, target, redactor or Redactor())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return Notice(
            WarningCode.TRANSCRIPT_LOST, f"The agent's own record could not be kept: {error.strerror}."
        )


@contextlib.contextmanager
def _opened(path: Path | str, folder: int | None, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)


def _newest(projects: int, slug: str | None, owner: int | None, since: float) -> tuple[str, str] | None:
    best: tuple[float, str, str] | None = None
    for project in sorted(os.listdir(projects))[:_FOLDERS]:
        if slug is not None and project != slug:
            continue
        with contextlib.suppress(OSError), _opened(project, projects, _FOLDER_FLAGS) as folder:
            for name in sorted(os.listdir(folder))[:_FOLDERS]:  # noqa: PTH208  # a descriptor has no path
                if not name.endswith(".jsonl") or name.startswith("agent-"):  # a subagent's record
                    continue
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                mine = owner is None or found.st_uid == owner
                if stat.S_ISREG(found.st_mode) and mine and found.st_mtime >= since:
                    best = max(best or (0.0, "", ""), (found.st_mtime, project, name))
    return None if best is None else best[1:]


def _copy(projects: int, which: tuple[str, str], target: Path, redactor: Redactor) -> Notice | None:
    project, name = which
    with _opened(project, projects, _FOLDER_FLAGS) as folder, _opened(name, folder, _FILE_FLAGS) as source:
        if not stat.S_ISREG(os.fstat(source).st_mode):
            return None
        part = target.with_name(f"{target.name}.part")
        left = TRANSCRIPT_BYTES
        lines = redactor.line_stream()
        with part.open("wb") as file:
            while left > 0 and (chunk := os.read(source, min(_CHUNK, left))):
                file.write(lines.feed(chunk))
                left -= len(chunk)
            more = left == 0 and os.read(source, 1) != b""
            file.write(lines.end(torn=more))
        part.replace(target)
    return Notice(WarningCode.TRANSCRIPT_CUT, "The agent's own record was cut at 64 MiB.") if more else None
