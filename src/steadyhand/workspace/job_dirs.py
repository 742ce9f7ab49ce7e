"""Where the files of jobs lie in the data directory: made for a run, and removed after it."""

import asyncio
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from steadyhand.agents import AgentDefinition
from steadyhand.claude_sessions import project_folder_name
from steadyhand.errors import NotFound, WorkspaceError
from steadyhand.ports import JobPaths
from steadyhand.workspace.checkout_note import delete_note, jobs_with_checkout
from steadyhand.workspace.filesystem import (
    PRIVATE,
    TRAVERSABLE,
    chown_tree,
    copy_tree,
    make_dir,
    remove_tree,
)
from steadyhand.workspace.instructions import write_config

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class JobDirs:
    """The folder `jobs` of a data directory, one folder a job; nothing is made before the first job."""

    def __init__(self, data_dir: Path, *, separate_users: bool, sandboxed: bool) -> None:
        """`shared` says that agents are other users of the machine, `sealed` that all see the same paths."""
        self.jobs = data_dir / "jobs"
        self._data_dir = data_dir
        self._separate_users = separate_users
        self._sandboxed = sandboxed

    def files_of(self, job_id: str) -> JobPaths:
        """Say where a job's files lie; raises `NotFound` for what is no job's id."""
        if _JOB_ID.fullmatch(job_id) is None:
            raise NotFound("Job not found")
        return JobPaths(self.jobs / job_id)

    def make_job_dir(self, files: JobPaths, origin: JobPaths | None) -> None:
        """Make the job's folder, empty but for what is kept of earlier runs' output, and the session of `origin`."""
        make_dir(self.jobs, TRAVERSABLE)
        if self._separate_users:
            # An agent's uid passes through the data directory and lists nothing in it.
            self._data_dir.chmod(self._data_dir.stat().st_mode | 0o011)
        make_dir(files.root, TRAVERSABLE)
        make_dir(files.artifacts, PRIVATE)
        for path in transient_paths(files):
            remove_tree(path)
        if origin is None or origin.root != files.root:
            remove_tree(files.config_dir)
            for path in (files.diff, files.bundle, files.transcript):
                path.unlink(missing_ok=True)
        if origin is not None and origin.root != files.root:
            copy_tree(origin.config_dir, files.config_dir)
            if not self._sandboxed:
                _move_session(files.config_dir, origin.checkout, files.checkout)
        (files.root / "prepared").write_bytes(b"")

    def make_home_and_config(
        self,
        files: JobPaths,
        user: int | None,
        texts: Mapping[str, str],
        definitions: Mapping[str, AgentDefinition],
    ) -> None:
        """Make the job's home, and its config directory unless a session is in it; both belong to `user`."""
        make_dir(files.home, PRIVATE)
        make_dir(files.home / "tmp", PRIVATE)
        is_new = not files.config_dir.is_dir()
        make_dir(files.config_dir, PRIVATE)
        if is_new:  # else it is the agent's, with the session that the run goes on with
            write_config(files.config_dir, texts, definitions, sandboxed=self._sandboxed)
        chown_tree(files.home, user)
        chown_tree(files.config_dir, user)

    def with_checkout(self) -> Mapping[str, datetime]:
        """Give the jobs whose checkout is there, and since when."""
        return dict(jobs_with_checkout(self.jobs))

    def leftovers(self, keep: Collection[str]) -> Iterator[Path]:
        """Give what earlier lives left: checkouts and homes of jobs that are not spared, and half removed trees.

        The notes of those jobs go at once: what is half removed is nothing to go on in.
        """
        for folder in sorted(self.jobs.iterdir()) if self.jobs.is_dir() else ():
            if folder.name.startswith(".trash-"):
                yield folder
            elif _JOB_ID.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
                if folder.name not in keep:
                    delete_note(JobPaths(folder))
                    yield from transient_paths(JobPaths(folder))
                yield from folder.glob(".trash-*")

    async def remove(self, paths: Iterable[Path]) -> None:
        """Remove these, as many as can be; raises `WorkspaceError` when one could not."""
        failed: Exception | None = None
        for path in paths:
            try:
                await asyncio.to_thread(remove_tree, path)
            except (OSError, WorkspaceError) as error:
                failed = error
        if failed is not None:
            raise WorkspaceError("A checkout could not be removed whole.") from failed


def _move_session(config: Path, old_checkout: Path, new_checkout: Path) -> None:
    """Put a session where the CLI looks for it in another directory; sealed ones are all at the same place."""
    old, new = (
        config / "projects" / project_folder_name(str(each.resolve()))
        for each in (old_checkout, new_checkout)
    )
    if old.is_dir() and not old.is_symlink():
        old.rename(new)


def transient_paths(files: JobPaths) -> tuple[Path, ...]:
    """Give what is there only as long as a job has a checkout."""
    root = files.root
    layers = (*overlay_dirs(files), disk_image_path(files))
    return (files.checkout, files.home, *layers, root / "harvest", base_dir(files), base_index_path(files))


def overlay_dirs(files: JobPaths) -> tuple[Path, Path]:
    """Give the folders of what a job writes over a warm checkout: the files, and the kernel's own beside them."""
    return files.root / "upper", files.root / "work"


def disk_image_path(files: JobPaths) -> Path:
    """Give the file with the file system that holds both when the job's disk has a limit."""
    return files.root / "disk.ext4"


def base_index_path(files: JobPaths) -> Path:
    """The index as it was when the run began, which the service alone can write; without isolation."""
    return files.root / "base.index"


def base_dir(files: JobPaths) -> Path:
    """The folder of what a harvest of a sealed private copy stands on."""
    return files.root / "base"
