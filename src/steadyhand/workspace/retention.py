"""What is kept of ended jobs, trimmed by age and by size. The jobs themselves are the store's to forget."""

import os
from datetime import datetime, timedelta
from pathlib import Path

from steadyhand.ports import JobFiles
from steadyhand.workspace.filesystem import remove_tree, size_of

SPARED = timedelta(days=1)
"""What was made less than this long ago is never trimmed for its size: it may be running, or just read."""


def trim(jobs: Path, *, now: datetime, transcripts: timedelta | None, max_bytes: int | None) -> int:
    """Remove transcripts, sessions and printed output older than `transcripts`, then whatever is over `max_bytes`.

    Oldest first. Gives how many jobs lost something. Diff and commits go for size only. Blocks.
    """
    found = sorted(_jobs(jobs), key=lambda job: job[0])
    trimmed = 0
    if transcripts is not None:
        oldest = (now - transcripts).timestamp()
        trimmed += sum(_drop(_record(files)) for prepared, files in found if prepared < oldest)
    if max_bytes is None:
        return trimmed
    sizes = {files.root: size_of(files.root) for _, files in found}
    total = sum(sizes.values())
    for prepared, files in found:
        if total <= max_bytes or prepared >= (now - SPARED).timestamp():
            break
        total -= sizes[files.root]
        trimmed += _drop([files.config, files.kept])
    return trimmed


def _jobs(jobs: Path) -> list[tuple[float, JobFiles]]:
    """Give each job's files with when its newest run was prepared."""
    found = []
    for folder in jobs.iterdir() if jobs.is_dir() else ():
        try:
            found.append(((folder / "prepared").lstat().st_mtime, JobFiles(folder)))
        except OSError:
            continue  # being made, or not a job's
    return found


def _record(files: JobFiles) -> list[Path]:
    """Give what tells how a job went, beside what it changed."""
    return [files.config, files.transcript, *files.kept.glob("run-*")]


def _drop(paths: list[Path]) -> bool:
    there = [path for path in paths if os.path.lexists(path)]
    for path in there:
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink()
    return bool(there)
