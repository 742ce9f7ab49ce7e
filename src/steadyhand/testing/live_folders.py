"""Reading a folder that a service or an agent changes meanwhile.

`Path.rglob` and `Path.glob` raise `FileNotFoundError` when a folder goes between its listing and its reading. These
functions pass over what goes.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path


def paths_in(folder: Path) -> list[Path]:
    """Return the files and folders directly in `folder`; none if it is gone."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        return []


def paths_below(folder: Path, pattern: str = "*") -> list[Path]:
    """Return all files, folders and links below `folder` whose name matches `pattern`. Links are not followed."""
    return [
        Path(where, name)
        for where, folders, files in os.walk(folder)
        for name in (*folders, *files)
        if fnmatchcase(name, pattern)
    ]


def files_below(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the regular files below `folder` whose name matches `pattern`."""
    return [path for path in paths_below(folder, pattern) if path.is_file() and not path.is_symlink()]


def contents_below(folder: Path, pattern: str = "*") -> Iterator[tuple[Path, bytes]]:
    """Yield the regular files below `folder` whose name matches `pattern`, in order, each with its bytes."""
    for path in sorted(files_below(folder, pattern)):
        with suppress(FileNotFoundError, NotADirectoryError):
            yield path, path.read_bytes()


def stats_below(folder: Path, pattern: str = "*") -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the regular files below `folder` whose name matches `pattern`, in order, each with its stat result."""
    for path in sorted(files_below(folder, pattern)):
        with suppress(FileNotFoundError, NotADirectoryError):
            yield path, path.lstat()
