"""Where the files of jobs lie in the data directory: made for a run, and removed after it."""

import asyncio
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from steadyhand.agents import Definition
from steadyhand.claude_sessions import folder_name
from steadyhand.errors import NotFound, WorkspaceError
from steadyhand.ports import JobFiles
from steadyhand.workspace.checkout_note import forget_note, noted
from steadyhand.workspace.filesystem import (
    PRIVATE,
    TRAVERSABLE,
    copy_tree,
    hand_over,
    make_folder,
    remove_tree,
)
from steadyhand.workspace.instructions import write_config

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Folders:
    """The folder `jobs` of a data directory, one folder a job; nothing is made before the first job."""

    def __init__(self, data_dir: Path, *, shared: bool, sealed: bool) -> None:
        """`shared` says that agents are other users of the machine, `sealed` that all see the same paths."""
        self.jobs = data_dir / "jobs"
        self._data_dir = data_dir
        self._shared = shared
        self._sealed = sealed

    def of(self, job_id: str) -> JobFiles:
        """Say where a job's files lie; raises `NotFound` for what is no job's id."""
        if _JOB_ID.fullmatch(job_id) is None:
            raise NotFound("Job not found")
        return JobFiles(self.jobs / job_id)

    def make_room(self, files: JobFiles, origin: JobFiles | None) -> None:
        """Make the job's folder, empty but for what is kept of earlier runs' output, and the session of `origin`."""
        make_folder(self.jobs, TRAVERSABLE)
        if self._shared:
            # An agent's uid passes through the data directory and lists nothing in it.
            self._data_dir.chmod(self._data_dir.stat().st_mode | 0o011)
        make_folder(files.root, TRAVERSABLE)
        make_folder(files.kept, PRIVATE)
        for path in transient(files):
            remove_tree(path)
        if origin is None or origin.root != files.root:
            remove_tree(files.config)
            for path in (files.diff, files.bundle, files.transcript):
                path.unlink(missing_ok=True)
        if origin is not None and origin.root != files.root:
            copy_tree(origin.config, files.config)
            if not self._sealed:
                _move_session(files.config, origin.checkout, files.checkout)
        (files.root / "prepared").write_bytes(b"")

    def make_homes(
        self,
        files: JobFiles,
        user: int | None,
        texts: Mapping[str, str],
        definitions: Mapping[str, Definition],
    ) -> None:
        """Make the job's home, and its config directory unless a session is in it; both belong to `user`."""
        make_folder(files.home, PRIVATE)
        make_folder(files.home / "tmp", PRIVATE)
        fresh = not files.config.is_dir()
        make_folder(files.config, PRIVATE)
        if fresh:  # else it is the agent's, with the session that the run goes on with
            write_config(files.config, texts, definitions, sealed=self._sealed)
        hand_over(files.home, user)
        hand_over(files.config, user)

    def kept(self) -> Mapping[str, datetime]:
        """Give the jobs whose checkout is there, and since when."""
        return dict(noted(self.jobs))

    def left_over(self, spared: Collection[str]) -> Iterator[Path]:
        """Give what earlier lives left: checkouts and homes of jobs that are not spared, and half removed trees.

        The notes of those jobs go at once: what is half removed is nothing to go on in.
        """
        for folder in sorted(self.jobs.iterdir()) if self.jobs.is_dir() else ():
            if folder.name.startswith(".trash-"):
                yield folder
            elif _JOB_ID.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
                if folder.name not in spared:
                    forget_note(JobFiles(folder))
                    yield from transient(JobFiles(folder))
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


def _move_session(config: Path, before: Path, after: Path) -> None:
    """Put a session where the CLI looks for it in another directory; sealed ones are all at the same place."""
    old, new = (config / "projects" / folder_name(str(each.resolve())) for each in (before, after))
    if old.is_dir() and not old.is_symlink():
        old.rename(new)


def transient(files: JobFiles) -> tuple[Path, ...]:
    """Give what is there only as long as a job has a checkout."""
    root = files.root
    layers = (*upper_of(files), image_of(files))
    return (files.checkout, files.home, *layers, root / "harvest", base_of(files), base_index(files))


def upper_of(files: JobFiles) -> tuple[Path, Path]:
    """Give the folders of what a job writes over a warm checkout: the files, and the kernel's own beside them."""
    return files.root / "upper", files.root / "work"


def image_of(files: JobFiles) -> Path:
    """Give the file with the file system that holds both when the job's disk has a limit."""
    return files.root / "disk.ext4"


def base_index(files: JobFiles) -> Path:
    """The index as it was when the run began, which the service alone can write; without isolation."""
    return files.root / "base.index"


def base_of(files: JobFiles) -> Path:
    """The folder of what a harvest of a sealed private copy stands on."""
    return files.root / "base"
