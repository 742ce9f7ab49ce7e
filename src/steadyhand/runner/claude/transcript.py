"""Copy and search an agent's transcript. Its folders belong to the agent, so no symlink in them is followed."""

import contextlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from steadyhand.job import JobWarning
from steadyhand.job_warnings import WarningCode
from steadyhand.redact import Redactor
from steadyhand.runner.claude.session import project_folder_name

TRANSCRIPT_BYTES = 64 * 1024 * 1024
_MAX_ENTRIES = 1000
_CHUNK = 1 << 16
_MAX_CALL_ID = 256
_SEARCHED_BYTES = 16 * 1024 * 1024
_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK opening a FIFO would wait for a writer.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


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
        with _opened(config, None, _DIR_FLAGS) as top, _opened("projects", top, _DIR_FLAGS) as projects:
            newest = _newest_session(projects, slug, owner, since)
            return None if newest is None else _copy_redacted(projects, newest, target, redactor)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return JobWarning(WarningCode.TRANSCRIPT_LOST, f"The transcript could not be kept: {error.strerror}.")


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
            start = max(first, end - _CHUNK)
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
            return os.pread(file, _CHUNK, max(0, info.st_size - _CHUNK))
    return b""


def remove_session(config: Path, directory: str, session: str, prompt_id: bytes) -> bool:
    """Remove the file of a session once it says that the turn of a prompt is taken back; return True if it is gone."""
    taken_back = b'"cutUuid":"%s"' % prompt_id
    with contextlib.suppress(OSError), _opened_session(config, directory, session) as (folder, file):
        info = os.fstat(file)
        start = max(0, info.st_size - _CHUNK)
        if not stat.S_ISREG(info.st_mode) or taken_back not in os.pread(file, _CHUNK, start):
            return False
        os.unlink(f"{session}.jsonl", dir_fd=folder)
        return True
    return False


@contextlib.contextmanager
def _opened_session(config: Path, directory: str, session: str) -> Iterator[tuple[int, int]]:
    """Open the folder and the file of a session; no part of the path is a link. Raise `OSError`."""
    with (
        _opened(config, None, _DIR_FLAGS) as top,
        _opened("projects", top, _DIR_FLAGS) as projects,
        _opened(project_folder_name(directory), projects, _DIR_FLAGS) as folder,
        _opened(f"{session}.jsonl", folder, _FILE_FLAGS) as file,
    ):
        yield folder, file


@contextlib.contextmanager
def _opened(path: Path | str, folder: int | None, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)


def _newest_session(
    projects: int, slug: str | None, owner: int | None, since: float
) -> tuple[str, str] | None:
    newest: tuple[float, str, str] | None = None
    for project in sorted(os.listdir(projects))[:_MAX_ENTRIES]:
        if slug is not None and project != slug:
            continue
        with contextlib.suppress(OSError), _opened(project, projects, _DIR_FLAGS) as folder:
            for name in sorted(os.listdir(folder))[:_MAX_ENTRIES]:  # noqa: PTH208  # a descriptor has no path
                if not name.endswith(".jsonl") or name.startswith("agent-"):  # a subagent's record
                    continue
                info = os.stat(name, dir_fd=folder, follow_symlinks=False)
                is_owned = owner is None or info.st_uid == owner
                if stat.S_ISREG(info.st_mode) and is_owned and info.st_mtime >= since:
                    newest = max(newest or (0.0, "", ""), (info.st_mtime, project, name))
    return None if newest is None else newest[1:]


def _copy_redacted(
    projects: int, session: tuple[str, str], target: Path, redactor: Redactor
) -> JobWarning | None:
    project, name = session
    with _opened(project, projects, _DIR_FLAGS) as folder, _opened(name, folder, _FILE_FLAGS) as source:
        if not stat.S_ISREG(os.fstat(source).st_mode):
            return None
        part = target.with_name(f"{target.name}.part")
        bytes_left = TRANSCRIPT_BYTES
        lines = redactor.line_stream()
        with part.open("wb") as file:
            while bytes_left > 0 and (chunk := os.read(source, min(_CHUNK, bytes_left))):
                file.write(lines.feed(chunk))
                bytes_left -= len(chunk)
            truncated = bytes_left == 0 and os.read(source, 1) != b""
            file.write(lines.end(torn=truncated))
        part.replace(target)
    return (
        JobWarning(WarningCode.TRANSCRIPT_CUT, "The agent's own record was cut at 64 MiB.")
        if truncated
        else None
    )
