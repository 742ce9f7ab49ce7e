"""Where the CLI keeps the record of a session, and what says that two conversations are the same. Pure."""

import re
from pathlib import PurePath
from typing import TypeVar

_Path = TypeVar("_Path", bound=PurePath)


def project_folder_name(directory: str) -> str:
    """Give the name of the folder that holds the sessions of a directory, which is without links."""
    return re.sub(r"[^A-Za-z0-9]", "-", directory)


def session_file(config: _Path, directory: str, session: str) -> _Path:
    """Give where the record of a session of a directory lies."""
    return config / "projects" / project_folder_name(directory) / f"{session}.jsonl"
