"""Copy and search an agent's transcript. Its folders belong to the agent, so no symlink in them is followed."""

import contextlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from steadyhand.job import JobWarning
from steadyhand.redact import Redactor
from steadyhand.runner.claude.session import PROJECTS_DIR, project_folder_name
from steadyhand.runner.process.agent_record import (
    CHUNK_BYTES,
    DIR_FLAGS,
    FILE_FLAGS,
    MAX_ENTRIES,
    copy_redacted,
    is_record,
    opened,
    record_lost,
)

_MAX_CALL_ID = 256
_SEARCHED_BYTES = 16 * 1024 * 1024


def copy_transcript(
    config: Path,
    target: Path,
    *,
    owner: int | None,
    redactor: Redactor,
    since: float = 0.0,
    directory: Path | None = None,
) -> JobWarning | None:
    """Copy the newest session file in `config/projects` to `target` without live secrets, if there is one.

    Only regular files of `owner` (`None` is any owner) that changed after `since` (seconds since the epoch) count.
    With `directory`, only sessions of that working directory count. Files above 64 MiB are cut.
    """
    slug = None if directory is None else project_folder_name(str(directory))
    try:
        with opened(config, None, DIR_FLAGS) as top, opened(PROJECTS_DIR, top, DIR_FLAGS) as projects:
            newest = _newest_session(projects, slug, owner, since)
            if newest is None:
                return None
            with opened(newest[0], projects, DIR_FLAGS) as folder:
                return copy_redacted(folder, newest[1], target, redactor)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return record_lost(error)


def session_holds(config: Path, directory: str, session: str, tool_use_ids: Iterable[str]) -> bool:
    """Return True if the end of a session's file has every tool call of these ids.

    Without the file, or if it cannot be read, return False.
    """
    missing = {f'"id":{json.dumps(each)}'.encode() for each in tool_use_ids}
    if any(len(each) > _MAX_CALL_ID for each in missing):
        return False
    with contextlib.suppress(OSError), _opened_session(config, directory, session) as (_, file):
        info = os.fstat(file)
        if not stat.S_ISREG(info.st_mode):
            return False
        end, overlap = info.st_size, b""
        first = max(0, end - _SEARCHED_BYTES)
        while missing and end > first:
            start = max(first, end - CHUNK_BYTES)
            text = os.pread(file, end - start, start) + overlap
            missing = {each for each in missing if each not in text}
            end, overlap = start, text[:_MAX_CALL_ID]
        return not missing
    return False


def ends_with(config: Path, directory: str, session: str, text: bytes) -> bool:
    """Return True if the last part of a session's file holds a text."""
    return text in _tail(config, directory, session)


def user_messages(config: Path, directory: str, session: str) -> list[str]:
    """Return the ids of the user's messages at the end of a session's file, once its last line is whole."""
    found = []
    for line in _tail(config, directory, session).split(b"\n"):
        with contextlib.suppress(ValueError):
            entry = json.loads(line) if line else {}
            if entry.get("type") == "user" and isinstance(entry.get("uuid"), str):
                found.append(entry["uuid"])
    return found


def _tail(config: Path, directory: str, session: str) -> bytes:
    with contextlib.suppress(OSError), _opened_session(config, directory, session) as (_, file):
        info = os.fstat(file)
        if stat.S_ISREG(info.st_mode):
            return os.pread(file, CHUNK_BYTES, max(0, info.st_size - CHUNK_BYTES))
    return b""


def remove_session(config: Path, directory: str, session: str, prompt_id: bytes) -> bool:
    """Remove the file of a session once it says that the turn of a prompt is taken back; return True if it is gone."""
    taken_back = b'"cutUuid":"%s"' % prompt_id
    with contextlib.suppress(OSError), _opened_session(config, directory, session) as (folder, file):
        info = os.fstat(file)
        start = max(0, info.st_size - CHUNK_BYTES)
        if not stat.S_ISREG(info.st_mode) or taken_back not in os.pread(file, CHUNK_BYTES, start):
            return False
        os.unlink(f"{session}.jsonl", dir_fd=folder)
        return True
    return False


@contextlib.contextmanager
def _opened_session(config: Path, directory: str, session: str) -> Iterator[tuple[int, int]]:
    """Open the folder and the file of a session; no part of the path is a link. Raise `OSError`."""
    with (
        opened(config, None, DIR_FLAGS) as top,
        opened(PROJECTS_DIR, top, DIR_FLAGS) as projects,
        opened(project_folder_name(directory), projects, DIR_FLAGS) as folder,
        opened(f"{session}.jsonl", folder, FILE_FLAGS) as file,
    ):
        yield folder, file


def _newest_session(
    projects: int, slug: str | None, owner: int | None, since: float
) -> tuple[str, str] | None:
    newest: tuple[float, str, str] | None = None
    for project in sorted(os.listdir(projects))[:MAX_ENTRIES]:
        if slug is not None and project != slug:
            continue
        with contextlib.suppress(OSError), opened(project, projects, DIR_FLAGS) as folder:
            for name in sorted(os.listdir(folder))[:MAX_ENTRIES]:  # noqa: PTH208  # a descriptor has no path
                if not name.endswith(".jsonl") or name.startswith("agent-"):  # a subagent's record
                    continue
                info = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if is_record(info, owner, since):
                    newest = max(newest or (0.0, "", ""), (info.st_mtime, project, name))
    return None if newest is None else newest[1:]
