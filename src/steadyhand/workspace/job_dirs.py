"""The folders of jobs in the data directory: created for a run and removed after it."""

import asyncio
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from steadyhand.agents import AgentDefinition
from steadyhand.errors import NotFound, SessionGone, WorkspaceError
from steadyhand.ports import AgentFiles, AgentFilesOf, Checkout, JobPaths
from steadyhand.workspace.checkout_note import delete_note, jobs_with_checkout
from steadyhand.workspace.filesystem import (
    PRIVATE,
    TRAVERSABLE,
    chown_tree,
    copy_tree,
    make_dir,
    remove_tree,
)

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class JobDirs:
    """The folder `jobs` of a data directory, with one folder for each job; nothing is created before the first job."""

    def __init__(
        self, data_dir: Path, agent_files_of: AgentFilesOf, *, separate_users: bool, sandboxed: bool
    ) -> None:
        """Keep the settings. `separate_users`: agents have uids of their own. `sandboxed`: all see the same paths."""
        self.jobs = data_dir / "jobs"
        self.ahead = data_dir / "ahead"
        self._data_dir = data_dir
        self._agent_files_of = agent_files_of
        self._separate_users = separate_users
        self._sandboxed = sandboxed

    def files_of(self, job_id: str) -> JobPaths:
        """Return the paths of a job's files. Raise `NotFound` if the id is malformed."""
        if _JOB_ID.fullmatch(job_id) is None:
            raise NotFound("Job not found")
        return JobPaths(self.jobs / job_id)

    def ahead_files_of(self, checkout_id: str) -> JobPaths:
        """Return the paths of a checkout that is prepared before its job is there."""
        return JobPaths(self.ahead / checkout_id)

    def list_job_ids(self) -> list[str]:
        """Return the ids of the jobs that have a folder."""
        folders = self.jobs.iterdir() if self.jobs.is_dir() else ()
        return sorted(each.name for each in folders if _JOB_ID.fullmatch(each.name))

    def list_ahead(self) -> list[JobPaths]:
        """Return the folders of checkouts that have no job yet."""
        folders = sorted(self.ahead.iterdir()) if self.ahead.is_dir() else ()
        return [JobPaths(each) for each in folders if each.is_dir() and not each.is_symlink()]

    def is_ahead(self, files: JobPaths) -> bool:
        """Return True if a checkout has no job yet."""
        return files.root.parent == self.ahead

    def move_ahead(self, old: JobPaths, new: JobPaths) -> bool:
        """Move the folder of a checkout to that of its job; return False if the job has one already."""
        make_dir(self.jobs, TRAVERSABLE)
        if new.root.exists():
            return False
        try:
            old.root.rename(new.root)
        except OSError:
            return False  # the folder of the jobs is another file system
        (new.root / "prepared").write_bytes(b"")
        return True

    def move_back(self, checkout: Checkout, new: JobPaths) -> None:
        """Move the folders of a job's checkout to `new`; the job keeps a copy of its config directory."""
        old = checkout.paths
        if new.root.is_symlink():
            new.root.unlink()
        make_dir(new.root, TRAVERSABLE)
        make_dir(new.artifacts, PRIVATE)
        copy = old.root / "config.copy"
        remove_tree(copy)
        copy_tree(old.config_dir, copy)
        chown_tree(copy, checkout.uid)
        delete_note(old)
        for path in transient_paths(old):
            if path.exists():
                target = new.root / path.relative_to(old.root)
                if target.parent != new.root:
                    make_dir(target.parent, PRIVATE)
                path.rename(target)
        # One right after the other: a turn that does not wait resumes the session that is there.
        old.config_dir.rename(new.config_dir)
        copy.rename(old.config_dir)
        if not self._sandboxed:
            agent_files = self._agent_files_of(checkout.runner)
            agent_files.restore_sessions(new.config_dir, new.checkout, old.checkout)

    def keep_old_path(self, old: JobPaths, checkout: Checkout) -> None:
        """Let a process without a sandbox find a moved checkout, its home and its sessions where it was started."""
        old.root.symlink_to(checkout.paths.root)
        if checkout.config_dir is not None:
            self._agent_files_of(checkout.runner).redirect_sessions(
                checkout.config_dir, old.checkout, checkout.paths.checkout, checkout.uid
            )

    def make_job_dir(self, files: JobPaths, origin: JobPaths | None, agent_files: AgentFiles) -> None:
        """Create the job's folder. It keeps only the output of earlier runs, and gets the session of `origin`.

        Raise `SessionGone` if another job is the origin and its session is removed.
        """
        make_dir(files.root.parent, TRAVERSABLE)
        if self._separate_users:
            # An agent's uid can enter the data directory but not list it.
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
            if not origin.config_dir.is_dir():
                raise SessionGone(f"The files of the job {origin.root.name} are deleted.")
            copy_tree(origin.config_dir, files.config_dir)
            if not self._sandboxed:  # all sandboxed jobs have the same path
                agent_files.move_session(files.config_dir, origin.checkout, files.checkout)
        (files.root / "prepared").write_bytes(b"")

    def make_home_and_config(
        self,
        files: JobPaths,
        user: int | None,
        texts: Mapping[str, str],
        definitions: Mapping[str, AgentDefinition],
        agent_files: AgentFiles,
    ) -> None:
        """Create the job's home, and its config directory unless it holds a session; both belong to `user`."""
        make_dir(files.home, PRIVATE)
        make_dir(files.home / "tmp", PRIVATE)
        is_new = not files.config_dir.is_dir()
        make_dir(files.config_dir, PRIVATE)
        if is_new:  # else it belongs to the agent and holds the session to resume
            agent_files.write_config(files.config_dir, texts, definitions, sandboxed=self._sandboxed)
        chown_tree(files.home, user)
        chown_tree(files.config_dir, user)

    def with_checkout(self) -> Mapping[str, datetime]:
        """Return the jobs that have a checkout, each with the time of its last preparation."""
        return dict(jobs_with_checkout(self.jobs))

    def leftovers(self, keep: Collection[str]) -> Iterator[Path]:
        """Return the remains of earlier processes: checkouts and homes of jobs not in `keep`, and half-removed trees.

        The notes of those jobs are deleted at once: a run must not continue in a half-removed checkout.
        """
        yield from self.ahead.iterdir() if self.ahead.is_dir() else ()
        for folder in sorted(self.jobs.iterdir()) if self.jobs.is_dir() else ():
            if folder.name.startswith(".trash-"):
                yield folder
            elif _JOB_ID.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
                if folder.name not in keep:
                    delete_note(JobPaths(folder))
                    yield from transient_paths(JobPaths(folder))
                yield from folder.glob(".trash-*")

    async def remove(self, paths: Iterable[Path]) -> None:
        """Remove as many of these paths as possible. Raise `WorkspaceError` if one could not be removed."""
        failed = await asyncio.to_thread(_remove_each, tuple(paths))
        if failed is not None:
            raise WorkspaceError("A checkout could not be removed completely.") from failed


def _remove_each(paths: Iterable[Path]) -> Exception | None:
    """Remove as many of these paths as possible; return the last failure. Blocks."""
    failed: Exception | None = None
    for path in paths:
        try:
            remove_tree(path)
        except (OSError, WorkspaceError) as error:
            failed = error
    return failed


def moved_checkout(checkout: Checkout, files: JobPaths) -> Checkout:
    """Return a checkout whose folder was moved to that of `files`."""

    def moved(path: Path) -> Path:
        return files.root / path.relative_to(checkout.paths.root)

    layers = checkout.layers
    if layers is not None:
        in_image = layers.image is not None
        layers = replace(
            layers,
            upper=layers.upper if in_image else moved(layers.upper),
            work=layers.work if in_image else moved(layers.work),
            image=None if layers.image is None else moved(layers.image),
            refs=None if layers.refs is None else moved(layers.refs),
        )
    return replace(
        checkout,
        paths=files,
        directory=moved(checkout.directory),
        home=moved(checkout.home),
        config_dir=None if checkout.config_dir is None else moved(checkout.config_dir),
        layers=layers,
    )


def transient_paths(files: JobPaths) -> tuple[Path, ...]:
    """Return the paths that exist only as long as a job has a checkout."""
    root = files.root
    layers = (*overlay_dirs(files), disk_image_path(files))
    refs = fetched_refs_path(files).parent
    return (
        files.checkout,
        files.home,
        *layers,
        root / "harvest",
        progress_paths(files).root,
        base_dir(files),
        base_index_path(files),
        refs,
        given_path(files),
    )


def progress_paths(files: JobPaths) -> JobPaths:
    """Return the paths of the work of a run that goes on, before it is stored for other nodes."""
    return JobPaths(files.root / "progress")


def overlay_dirs(files: JobPaths) -> tuple[Path, Path]:
    """Return the upper and work directories of a job's overlay over a warm checkout."""
    return files.root / "upper", files.root / "work"


def disk_image_path(files: JobPaths) -> Path:
    """Return the path of the disk image that holds both directories if the job's disk has a limit."""
    return files.root / "disk.ext4"


def base_index_path(files: JobPaths) -> Path:
    """Return the path of the index at the start of the run, which only the service can write; without isolation."""
    return files.root / "base.index"


def given_path(files: JobPaths) -> Path:
    """Return the path of the record of converted files at the start of the run, beside `base_index_path`."""
    return files.root / "base.given"


def base_dir(files: JobPaths) -> Path:
    """Return the folder with the base of the harvest of a sandboxed private copy."""
    return files.root / "base"


def fetched_refs_path(files: JobPaths) -> Path:
    """Return the path of the record of a job's fetched refs, which the agent cannot write; see `fetched_refs`."""
    return files.root / "refs" / "packed-refs"


def refs_layer_dir(files: JobPaths) -> Path:
    """Return the folder that is laid over a warm checkout and holds the job's fetched refs."""
    return files.root / "refs" / "layer"
