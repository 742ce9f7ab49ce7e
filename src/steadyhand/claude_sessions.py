"""The paths of session files of the Claude CLI. Pure."""

import re
from pathlib import PurePath
from typing import TypeVar

_Path = TypeVar("_Path", bound=PurePath)


def project_folder_name(directory: str) -> str:
    """Return the name of the folder with the sessions of a directory; the path must have no symbolic links."""
    return re.sub(r"[^A-Za-z0-9]", "-", directory)


def session_file(config: _Path, directory: str, session: str) -> _Path:
    """Return the path of the file of a session of a directory."""
    return config / "projects" / project_folder_name(directory) / f"{session}.jsonl"
