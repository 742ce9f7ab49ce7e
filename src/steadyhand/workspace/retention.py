"""Retention of the files of ended jobs, by age and by size. The store deletes the jobs themselves."""

import os
from collections.abc import Collection
from datetime import datetime, timedelta
from pathlib import Path

from steadyhand.ports import JobPaths
from steadyhand.workspace.filesystem import disk_usage, remove_tree

MIN_AGE = timedelta(days=1)
"""Files that are younger than this are never removed because of their size: a run or a reader may need them."""


def trim(
    jobs: Path,
    *,
    now: datetime,
    transcripts: timedelta | None,
    max_bytes: int | None,
    spared: Collection[str] = (),
) -> int:
    """Remove transcripts, sessions and output older than `transcripts`, then files above `max_bytes`, oldest first.

    Diffs and commits are removed only because of size. The jobs in `spared` lose nothing. Return the number of jobs
    that lost files. Blocks.
    """
    by_age = sorted(_jobs_by_prepared(jobs), key=lambda job: job[0])
    removable = [job for job in by_age if job[1].root.name not in spared]
    trimmed = 0
    if transcripts is not None:
        oldest = (now - transcripts).timestamp()
        trimmed += sum(
            _remove_existing(_log_paths(files)) for prepared, files in removable if prepared < oldest
        )
    if max_bytes is None:
        return trimmed
    sizes = {files.root: disk_usage(files.root) for _, files in by_age}
    total = sum(sizes.values())
    for prepared, files in removable:
        if total <= max_bytes or prepared >= (now - MIN_AGE).timestamp():
            break
        total -= sizes[files.root]
        trimmed += _remove_existing([files.config_dir, files.artifacts])
    return trimmed


def _jobs_by_prepared(jobs: Path) -> list[tuple[float, JobPaths]]:
    """Return the files of each job with the time at which its newest run was prepared."""
    prepared_jobs = []
    for folder in jobs.iterdir() if jobs.is_dir() else ():
        try:
            prepared_jobs.append(((folder / "prepared").lstat().st_mtime, JobPaths(folder)))
        except OSError:
            continue  # being made, or not a job's
    return prepared_jobs


def _log_paths(files: JobPaths) -> list[Path]:
    """Return the paths of a job's record, without its diff and commits."""
    return [files.config_dir, files.transcript, *files.artifacts.glob("run-*")]


def _remove_existing(paths: list[Path]) -> bool:
    existing = [path for path in paths if os.path.lexists(path)]
    for path in existing:
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink()
    return bool(existing)
