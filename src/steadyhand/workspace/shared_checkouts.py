"""Checkouts of a node among many: the files of a job are stored where every node reaches them, as they come.

The files in the job's folder are as they are on one machine. `run` in that folder is the number of the last run that
this node prepared: if a later one is stored, another node has gone on with the job, and the folder is brought up to
that. `unshared` says that the files of that run are not stored yet.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import structlog

from steadyhand.agents import Workspace
from steadyhand.errors import (
    ArtifactTooLarge,
    Conflict,
    NotFound,
    SteadyhandError,
    StoreUnavailable,
    WorkspaceError,
)
from steadyhand.job import Job, JobWarning
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import Checkout, Harvest, JobPaths
from steadyhand.ports.artifacts import Artifacts, FileName, StoredArtifact
from steadyhand.retry import continues_parent
from steadyhand.workspace.checkout import GitCheckouts
from steadyhand.workspace.filesystem import PRIVATE, TRAVERSABLE, make_dir, remove_tree
from steadyhand.workspace.job_dirs import progress_paths
from steadyhand.workspace.session_archive import pack, signature, unpack

SHARE_SECONDS = 20.0
"""The time for which the end of a job waits until its files are stored; then they are stored later."""
UNCHANGED_SECONDS = 60.0
"""The time after which the work of a run is stored although its session is as it was: one tool may work for long."""
FETCHED_SECONDS = 3600.0
"""The time for which a file that was fetched for a caller is kept."""
_FILES: tuple[FileName, ...] = ("diff", "bundle", "transcript")
_RUN_FILE, _UNSHARED_FILE = "run", "unshared"


class SharedCheckouts(GitCheckouts):
    """`GitCheckouts` whose results are in `artifacts` as well."""

    def __init__(self, data_dir: Path, *, artifacts: Artifacts, **settings: Any) -> None:
        """Keep the settings; see `GitCheckouts`."""
        super().__init__(data_dir, **settings)
        self._artifacts = artifacts
        self._fetched = data_dir.absolute() / "fetched"
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._unshared: set[str] | None = None
        """The jobs whose files are not stored yet; None until the folders are looked at."""
        self._signatures: dict[str, tuple[object, float]] = {}
        self._log = structlog.get_logger("steadyhand.workspace")

    # --- reading ---------------------------------------------------------------------------

    async def has_session(self, job_id: str) -> bool:
        """Return True if the job's session is here or stored."""
        return await super().has_session(job_id) or "session" in await self._artifacts.list_stored(job_id)

    async def find_file(self, job_id: str, name: FileName) -> Path | None:
        """Return the path of a file that a job has left, fetched if it is on another node; None if there is none."""
        files = self.job_paths(job_id)
        for _ in range(3):
            artifact = (await self._artifacts.list_stored(job_id)).get(name)
            local = await super().find_file(job_id, name)
            state = await asyncio.to_thread(_read_state, files)
            if local is not None and (artifact is None or state.run >= artifact.run):
                # Without a stored one it is only shown while it waits, or if an earlier release has left it.
                return local if artifact is not None or state.is_unshared or not state.run else None
            if artifact is None:
                return None
            with contextlib.suppress(NotFound):  # it was replaced meanwhile
                return await self._fetch_file(job_id, artifact)
        return None

    async def _fetch_file(self, job_id: str, artifact: StoredArtifact) -> Path:
        """Return the path of a stored file on this node; its name is its digest."""
        folder = self._fetched / job_id
        path = folder / artifact.digest
        async with self._lock(artifact.digest):
            if await asyncio.to_thread(path.is_file):
                await asyncio.to_thread(os.utime, path)
                return path
            part = folder / f"{artifact.digest}.part"
            for each in (self._fetched, folder):
                await asyncio.to_thread(make_dir, each, PRIVATE)
            await asyncio.to_thread(part.unlink, missing_ok=True)
            await self._artifacts.load(artifact, part)
            await asyncio.to_thread(part.replace, path)
        return path

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    # --- before the run --------------------------------------------------------------------

    async def prepare(self, job: Job, workspace: Workspace, slot: int) -> Checkout:
        """Create a checkout as on one machine, from the newest state that any node has left."""
        if job.begin == "resume":
            is_next_turn = job.parent_job_id is not None and continues_parent(job)
            await self._bring_up_to_date(job.parent_job_id if is_next_turn and job.parent_job_id else job.id)
        checkout = await super().prepare(job, workspace, slot)
        await asyncio.to_thread(_write_run, checkout.paths, job.run)
        return checkout

    async def hand_over(self, checkout: Checkout, job: Job, agent_root: Path | None) -> Checkout | None:
        """Move a checkout that was prepared ahead to a job's folder, as on one machine."""
        moved = await super().hand_over(checkout, job, agent_root)
        if moved is not None:
            await asyncio.to_thread(_write_run, moved.paths, job.run)
        return moved

    async def _bring_up_to_date(self, job_id: str) -> None:
        """Replace the files of a job by the stored ones if a later run has left these. Raise `WorkspaceError`."""
        files = self.job_paths(job_id)
        async with self._lock(job_id):
            for _ in range(3):
                stored = await self._artifacts.list_stored(job_id)
                session = stored.get("session")
                state = await asyncio.to_thread(_read_state, files)
                has_own = await super().has_session(job_id)
                if session is None or (state.run >= session.run and has_own):
                    return
                with contextlib.suppress(NotFound):  # it was replaced meanwhile
                    await self._replace_files(files, stored)
                    return
            raise WorkspaceError("The stored files of the job change all the time.")

    async def _replace_files(self, files: JobPaths, stored: Mapping[str, StoredArtifact]) -> None:
        scratch = JobPaths(files.root / "fetched")
        await asyncio.to_thread(_make_folders, files, scratch)
        try:
            archive = scratch.root / "session"
            await self._artifacts.load(stored["session"], archive)
            old_directory = await asyncio.to_thread(unpack, archive, scratch.config_dir)
            for name in _FILES:
                if name in stored:
                    await self._artifacts.load(stored[name], _path_of(scratch, name))
            await self._remove_checkout(files)
            await asyncio.to_thread(_move_files, scratch, files)
            if self._sandbox_exec is None and old_directory != files.checkout:
                await asyncio.to_thread(
                    self._agent_files.move_session, files.config_dir, old_directory, files.checkout
                )
            await asyncio.to_thread(_write_run, files, stored["session"].run)
        finally:
            await asyncio.to_thread(remove_tree, scratch.root)

    # --- during and after the run ----------------------------------------------------------

    async def save_progress(self, job: Job, checkout: Checkout) -> None:
        """Store the session and the work of a run that goes on, if the session has changed, and now and again.

        The work is read after the session: an agent that goes on from them finds no file older than it knows.
        """
        if checkout.config_dir is None:
            return
        now, at = await asyncio.to_thread(signature, checkout.config_dir), time.monotonic()
        before, saved_at = self._signatures.get(job.id, (None, 0.0))
        if before == now and at - saved_at < UNCHANGED_SECONDS:
            return
        results = progress_paths(checkout.paths)
        await asyncio.to_thread(_make_results, results)
        try:
            archive = results.root / "session"
            await asyncio.to_thread(pack, checkout.config_dir, archive, checkout.directory)
            if checkout.workspace.mode != "in_place":
                await self._harvester.save_progress(checkout, results)
            found = await asyncio.to_thread(_existing, results, ("diff", "bundle"))
            await self._artifacts.save(job.id, job.run, {**found, "session": archive})
            self._signatures[job.id] = (now, at)
        finally:
            await asyncio.to_thread(remove_tree, results.root)

    async def harvest(self, checkout: Checkout) -> Harvest:
        """Store the results of a run: in the job's folder, and for the other nodes."""
        harvest = await super().harvest(checkout)
        files = checkout.paths
        self._signatures.pop(files.root.name, None)
        try:
            async with self._lock(files.root.name):  # `save_pending` finds them as soon as they are marked
                await asyncio.to_thread((files.root / _UNSHARED_FILE).touch)
                async with asyncio.timeout(SHARE_SECONDS):
                    await self._share(files, checkout.config_dir, checkout.directory)
        except ArtifactTooLarge as error:
            warning = JobWarning(
                WarningCode.NOT_SHARED, f"No other node has all files of this job. {error.detail}"
            )
            return replace(harvest, warnings=(*harvest.warnings, warning))
        except (SteadyhandError, OSError, TimeoutError) as error:
            self._log.warning("files.unshared", job=files.root.name, error=str(error) or "the time was over")
            (await self._list_unshared()).add(files.root.name)
        return harvest

    async def _share(self, files: JobPaths, config_dir: Path | None, directory: Path) -> None:
        """Store the files of the last run. If a later one has begun elsewhere, or the job is gone, they are not.

        The caller has the lock of the job: of two at once, one would remove the archive that the other stores.
        """
        state = await asyncio.to_thread(_read_state, files)
        archive = files.root / "session.part"
        await asyncio.to_thread(archive.unlink, missing_ok=True)
        try:
            shared = dict(await asyncio.to_thread(_existing, files, _FILES))
            if config_dir is not None and await asyncio.to_thread(config_dir.is_dir):
                await asyncio.to_thread(pack, config_dir, archive, directory)
                shared["session"] = archive
            with contextlib.suppress(NotFound, Conflict):
                await self._save_what_fits(files.root.name, state.run, shared)
            await asyncio.to_thread((files.root / _UNSHARED_FILE).unlink, missing_ok=True)
        finally:
            await asyncio.to_thread(archive.unlink, missing_ok=True)

    async def _save_what_fits(self, job_id: str, run: int, files: Mapping[str, Path | None]) -> None:
        """Store files without those that are too large. Raise `ArtifactTooLarge` for these then."""
        shared, refused = dict(files), None
        while True:
            try:
                await self._artifacts.save(job_id, run, shared)
            except ArtifactTooLarge as error:
                refused = error
                shared = {name: None if name == error.name else path for name, path in shared.items()}
            else:
                break
        if refused is not None:
            raise refused

    async def save_pending(self) -> None:
        """Store the files of ended runs that could not be stored at their end. Raise `StoreUnavailable`."""
        unshared = await self._list_unshared()
        for job_id in sorted(unshared):
            await self._save_pending(job_id)
            unshared.discard(job_id)

    async def _save_pending(self, job_id: str) -> None:
        files = self.job_paths(job_id)
        async with self._lock(job_id):
            if not await asyncio.to_thread((files.root / _UNSHARED_FILE).exists):
                return
            try:
                async with asyncio.timeout(SHARE_SECONDS):
                    await self._share(files, files.config_dir, files.checkout)
            except TimeoutError as error:
                raise StoreUnavailable("The files of a job could not be stored in time.") from error
            except (ArtifactTooLarge, WorkspaceError, OSError) as error:
                self._log.warning("files.unshared", job=job_id, error=str(error))

    async def _list_unshared(self) -> set[str]:
        if self._unshared is None:
            folders = await super().list_job_ids()
            self._unshared = await asyncio.to_thread(
                lambda: {each for each in folders if (self.job_paths(each).root / _UNSHARED_FILE).exists()}
            )
        return self._unshared

    # --- removal ---------------------------------------------------------------------------

    async def delete_job(self, job_id: str) -> None:
        """Remove all files of a job here. The stored ones have lost their job, and go with the others of this kind."""
        await super().delete_job(job_id)
        await asyncio.to_thread(remove_tree, self._fetched / job_id)
        self._signatures.pop(job_id, None)
        if self._unshared is not None:
            self._unshared.discard(job_id)
        await self._remove_unused()

    async def list_job_ids(self) -> Sequence[str]:
        """Return the ids of the jobs that have files here, also of those that were fetched for a caller."""
        fetched = await asyncio.to_thread(_names, self._fetched)
        return sorted({*await super().list_job_ids(), *fetched})

    async def _remove_unused(self) -> None:
        with contextlib.suppress(StoreUnavailable):  # the next look does
            while await self._artifacts.remove_unused():
                pass

    async def apply_retention(
        self,
        now: datetime,
        max_transcript_age: timedelta | None,
        max_bytes: int | None,
        spared: Collection[str] = (),
    ) -> None:
        """Remove old files here and in the shared store; `max_bytes` is a limit of this node alone."""
        await super().apply_retention(now, max_transcript_age, max_bytes, spared)
        await asyncio.to_thread(_remove_fetched, self._fetched)
        if max_transcript_age is not None:
            await self._artifacts.remove_older(("transcript", "session"), now - max_transcript_age, spared)
        await self._remove_unused()


class _State:
    """The state of the files in a job's folder: the number of their run, 0 if none, and if they wait to be stored."""

    def __init__(self, run: int, *, is_unshared: bool) -> None:
        self.run = run
        self.is_unshared = is_unshared


def _read_state(files: JobPaths) -> _State:
    try:
        run = int((files.root / _RUN_FILE).read_text("ascii"))
    except (OSError, ValueError):
        run = 0
    return _State(run, is_unshared=(files.root / _UNSHARED_FILE).exists())


def _write_run(files: JobPaths, run: int) -> None:
    part = files.root / f"{_RUN_FILE}.part"
    part.write_text(str(run), "ascii")
    part.replace(files.root / _RUN_FILE)


def _path_of(files: JobPaths, name: FileName) -> Path:
    return {"diff": files.diff, "bundle": files.bundle, "transcript": files.transcript}[name]


def _existing(files: JobPaths, names: Collection[FileName]) -> dict[str, Path | None]:
    paths = {name: _path_of(files, name) for name in names}
    return {name: path if path.is_file() else None for name, path in paths.items()}


def _make_results(results: JobPaths) -> None:
    remove_tree(results.root)
    make_dir(results.root, TRAVERSABLE)
    make_dir(results.artifacts, PRIVATE)


def _make_folders(files: JobPaths, scratch: JobPaths) -> None:
    make_dir(files.root.parent, TRAVERSABLE)
    make_dir(files.root, TRAVERSABLE)
    make_dir(files.artifacts, PRIVATE)
    _make_results(scratch)


def _move_files(scratch: JobPaths, files: JobPaths) -> None:
    """Move fetched files to their places, where nothing of an earlier run is left."""
    remove_tree(files.config_dir)
    scratch.config_dir.rename(files.config_dir)
    for name in _FILES:
        target, source = _path_of(files, name), _path_of(scratch, name)
        target.unlink(missing_ok=True)
        if source.is_file():
            source.rename(target)
    (files.root / _UNSHARED_FILE).unlink(missing_ok=True)
    (files.root / "prepared").write_bytes(b"")


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _remove_fetched(folder: Path) -> None:
    """Remove the fetched files that nobody has asked for lately."""
    oldest = time.time() - FETCHED_SECONDS
    for path in folder.glob("*/*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
    for path in folder.glob("*"):
        with contextlib.suppress(OSError):  # it is not empty
            path.rmdir()
